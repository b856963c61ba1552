"""The store contract: a call that has its answer keeps it, whoever has its key since."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.verdicts import (
    NEVER_MS,
    Busy,
    Claimed,
    Lost,
    Mismatch,
    Note,
    Recorded,
    Replay,
    Resolve,
    Settle,
    Superseded,
    Unknown,
)
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract.kit import (
    FAILURE,
    FIRST,
    HORIZON_MS,
    KEEP_MS,
    KEY,
    LEASE_MS,
    OTHER_PROCESS,
    OTHER_RESULT,
    PROCESS,
    RESULT,
    SECOND,
    STRANGER,
    THIRD,
    Ending,
    Message,
    StoreClock,
    claim,
    compensate,
    complete,
    fail,
    fail_cut_off,
    hold,
    interrupt,
    note,
    release,
    release_failed,
    renew,
    replace,
    retry,
    settle,
    step,
    stored,
    unknown,
)

ANEW = replace(FIRST, publication=b"published anew", digest=b"anothers")
REJECTED_ONCE = replace(FIRST, deaths=1)


class AnsweredRows:
    """Slips: what an owner was answered is known for as long as its copies may come."""

    @pytest.mark.parametrize("message", [FIRST, replace(FIRST, nesting=1)])
    def test_a_copy_of_an_ignored_call_runs_nothing(self, store: Store, message: Message) -> None:
        """Ignore, Reject and replace are answers: a leftover copy leaves, other calls run."""
        # Given
        release(store, hold(store, message), message)
        # Then
        assert claim(store, message) == Superseded()
        assert isinstance(claim(store, SECOND), Claimed)
        assert claim(store, message) == Superseded()

    def test_a_call_that_only_gave_up_its_key_runs_again(self, store: Store) -> None:
        """A message that was put back as it is (Reject with requeue) has no answer yet."""
        # Given
        release(store, hold(store, FIRST))
        # Then
        assert isinstance(claim(store, FIRST), Claimed)

    @pytest.mark.parametrize("again", [FIRST.retried(), ANEW, REJECTED_ONCE])
    def test_another_attempt_of_an_ignored_call_runs(self, store: Store, again: Message) -> None:
        """Higher retries, another publication, or one more dead-lettering: no copy."""
        # Given
        release(store, hold(store, FIRST), FIRST)
        # Then
        assert isinstance(claim(store, again), Claimed)
        assert store.slip(FIRST.slip_key) is None

    def test_a_message_without_publication_is_judged_by_the_brokers_word(
        self, store: Store
    ) -> None:
        """What isn't said to be a copy is a new call; what is said to be one is answered."""
        # Given
        message = replace(FIRST, publication=b"")
        release(store, hold(store, message), message)
        # Then
        assert claim(store, message) == Superseded()
        assert isinstance(claim(store, message, is_new=True), Claimed)

    def test_a_failed_call_keeps_its_failure(self, store: Store) -> None:
        """A fails, B takes the key and ends: A's copy is answered with A's failure."""
        # Given
        release_failed(store, hold(store, FIRST), answers=FIRST)
        # Then
        assert claim(store, FIRST) == Replay(_of(store, FIRST), True, False, True)
        # When
        held = hold(store, SECOND)
        # Then
        verdict = claim(store, FIRST)
        assert isinstance(verdict, Replay)
        assert (verdict.record.outcome, verdict.mine) == (FAILURE, True)
        # When
        complete(store, held)
        # Then
        assert claim(store, FIRST) == verdict
        assert isinstance(claim(store, THIRD), Replay)

    def test_the_answer_is_kept_for_the_horizon(self, store: Store) -> None:
        """As long as copies may come; a window that is shorter leaves a slip, too."""
        # Given
        held = hold(store, FIRST)
        settle(store, held, State.SUCCEEDED, 0, 1_000, outcome=RESULT, answers=FIRST)
        # Then
        slip = store.slip(FIRST.slip_key)
        assert slip is not None
        assert (slip.answered, slip.token, slip.outcome) == (True, held.token, RESULT)

    def test_a_duplicate_leaves_no_slip_while_its_record_lives_on(self, store: Store) -> None:
        """The record answers its copies, too: nothing more is written."""
        # Given
        complete(store, hold(store, FIRST))
        # When
        claim(store, SECOND, horizon_ms=HORIZON_MS)
        # Then
        assert store.slip(SECOND.slip_key) is None

    def test_a_failed_call_that_is_published_anew_is_a_duplicate(self, store: Store) -> None:
        """The same task id under another publication: its answer stands, and others may run."""
        # Given
        release_failed(store, hold(store, FIRST), answers=FIRST)
        # Then
        assert claim(store, ANEW) == Replay(stored(store), True, False)
        assert isinstance(claim(store, SECOND), Claimed)

    def test_published_anew_while_another_has_the_key(self, store: Store) -> None:
        """It is a duplicate then, and answered with what its task id was answered."""
        # Given
        release_failed(store, hold(store, FIRST), answers=FIRST)
        hold(store, SECOND)
        # Then
        verdict = claim(store, ANEW)
        assert isinstance(verdict, Replay)
        assert verdict.record.outcome == FAILURE

    def test_after_forget_nothing_is_answered(self, store: Store) -> None:
        """A key that was forgotten is as good as new, for the copies of its owner, too."""
        # Given
        release_failed(store, hold(store, FIRST), answers=FIRST)
        # When
        store.forget(KEY, HORIZON_MS)
        # Then
        assert isinstance(claim(store, FIRST), Claimed)

    def test_what_is_answered_after_forget_stays_answered(self, store: Store) -> None:
        """A run whose key was forgotten has told its caller: no copy runs until it is again."""
        # Given
        hold(store, FIRST)
        store.forget(KEY, HORIZON_MS)
        told = replace(FIRST.slip, answered=True, outcome=RESULT, token=stored(store).token)
        # When
        store.note(KEY, Note(FIRST.slip_key, told, 0, HORIZON_MS))
        # Then
        verdict = claim(store, FIRST)
        assert isinstance(verdict, Replay)
        assert (verdict.mine, verdict.record.outcome) == (True, RESULT)
        # When
        store.forget(KEY, HORIZON_MS)
        # Then
        assert isinstance(claim(store, FIRST), Claimed)

    def test_a_waiter_shares_the_failure_whoever_has_the_key_since(self, store: Store) -> None:
        """It waited for that run; another one's claim in between takes nothing from it."""
        # Given
        release_failed(store, hold(store, FIRST), answers=FIRST)
        hold(store, SECOND)
        # Then
        verdict = claim(store, THIRD, awaited=FIRST)
        assert isinstance(verdict, Replay)
        assert (verdict.record.outcome, verdict.record.owner) == (FAILURE, FIRST.owner)
        assert not verdict.mine
        assert isinstance(claim(store, replace(THIRD, task_id="x"), awaited=SECOND), Busy)

    def test_a_waiter_shares_nothing_of_an_earlier_run(self, store: Store) -> None:
        """What the awaited task id was answered before counts no more once it has claimed anew."""
        # Given
        release(store, hold(store, FIRST), FIRST)
        hold(store, ANEW)
        # Then
        assert isinstance(claim(store, THIRD, awaited=FIRST), Busy)

    def test_a_refused_call_stays_refused(self, store: Store) -> None:
        """A duplicate that was refused, and whose copy comes when the run is done."""
        # Given
        held = hold(store, FIRST)
        note(store, SECOND, succeeded=False, outcome=FAILURE)
        complete(store, held)
        # Then
        verdict = claim(store, SECOND)
        assert isinstance(verdict, Replay)
        assert verdict.record.outcome == FAILURE

    def test_a_dropped_call_stays_dropped(self, store: Store) -> None:
        """Where no outcome is kept, the copy leaves."""
        # Given
        held = hold(store, FIRST)
        note(store, SECOND, succeeded=False)
        complete(store, held)
        # Then
        assert claim(store, SECOND) == Superseded()

    def test_a_noted_duplicate_is_answered_again(self, store: Store) -> None:
        """Its callbacks went out; whoever asks for its state gets the result once more."""
        # Given
        complete(store, hold(store, FIRST))
        note(store, SECOND)
        # Then
        assert claim(store, SECOND, noted=True) == Replay(stored(store), False, True)

    def test_the_lost_answer_of_an_end_is_known_after_a_takeover(self, store: Store) -> None:
        """A failure that was recorded, its answer lost, the key another's since: success again."""
        # Given
        held = hold(store, FIRST)
        answer = release_failed(store, held, answers=FIRST)
        hold(store, SECOND)
        # Then
        assert isinstance(answer, Recorded)
        assert release_failed(store, held, answers=FIRST) == Recorded(answer.token)

    def test_a_zombie_learns_that_its_call_was_answered(self, store: Store) -> None:
        """A copy took over, answered, and another has the key: the zombie may answer nothing."""
        # Given
        held = hold(store, FIRST)
        interrupt(store, held)
        release_failed(store, hold(store, FIRST), answers=FIRST)
        hold(store, SECOND)
        # Then
        lost = complete(store, held)
        assert isinstance(lost, Lost)
        assert lost.answered

    # --- what the worker's parent answers ---

    @pytest.mark.parametrize("outcome", [FAILURE, b""])
    def test_a_call_whose_run_was_ended_runs_no_more(self, store: Store, outcome: bytes) -> None:
        """A hard time limit has failed it, or it was revoked: its copies are told so."""
        # Given
        held = hold(store, FIRST)
        _answer_for(store, FIRST, outcome)
        # Then they wait while the run may still be alive
        assert isinstance(claim(store, FIRST), Busy)
        # When
        interrupt(store, held)
        # Then
        for _ in range(2):
            verdict = claim(store, FIRST)
            if outcome:
                assert isinstance(verdict, Replay)
                assert (verdict.record.outcome, verdict.mine) == (outcome, True)
            else:
                assert verdict == Superseded()
        assert stored(store).token == held.token

    @pytest.mark.parametrize("end", [complete, release_failed, compensate, retry])
    def test_a_run_that_ends_after_its_call_was_answered_answers_nothing(
        self, store: Store, end: Ending
    ) -> None:
        """It was to be ended, and came to its own end first: that is recorded, for others."""
        # Given
        held = hold(store, FIRST)
        _answer_for(store, FIRST, OTHER_RESULT)
        # When
        answer = end(store, held)
        # Then
        assert isinstance(answer, Recorded)
        assert answer.answered
        # When
        store.end_lease(KEY, FIRST.owner, PROCESS)
        if end is not compensate:
            # Then
            again = claim(store, FIRST)
            assert isinstance(again, Replay)
            assert again.record.outcome == OTHER_RESULT

    def test_for_others_a_run_that_was_ended_is_cut_off(self, store: Store) -> None:
        """They take over as from any such run, also who waited for it, and share no failure."""
        # Given
        held = hold(store, FIRST)
        _answer_for(store, FIRST, FAILURE)
        assert isinstance(claim(store, SECOND, awaited=FIRST), Busy)
        interrupt(store, held)
        # When
        verdict = claim(store, SECOND, awaited=FIRST)
        # Then
        assert isinstance(verdict, Claimed)
        assert verdict.interruptions == 1
        assert isinstance(claim(store, THIRD, awaited=FIRST), Busy)
        again = claim(store, FIRST)
        assert isinstance(again, Replay)
        assert again.record.outcome == FAILURE

    def test_a_call_whose_run_was_ended_may_be_published_anew(self, store: Store) -> None:
        """The same task id under another publication: its run was cut off, and it takes over."""
        # Given
        held = hold(store, FIRST)
        _answer_for(store, FIRST, FAILURE)
        interrupt(store, held)
        # When
        verdict = claim(store, ANEW)
        # Then
        assert isinstance(verdict, Claimed)
        assert verdict.interruptions == 1
        assert store.slip(FIRST.slip_key) is None

    def test_a_retry_of_a_call_that_was_answered_meanwhile_runs_no_more(self, store: Store) -> None:
        """Its run had published it, and was ended, whether or not it came to record it."""
        # Given
        held = hold(store, FIRST)
        _answer_for(store, FIRST, FAILURE)
        interrupt(store, held)
        # Then
        verdict = claim(store, FIRST.retried())
        assert isinstance(verdict, Replay)
        assert verdict.record.outcome == FAILURE

    def test_nor_does_a_retry_that_was_recorded_before(self, store: Store) -> None:
        """The record says that the next attempt is due; the call was failed right after that."""
        # Given
        retry(store, hold(store, FIRST))
        _answer_for(store, FIRST, FAILURE)
        # Then
        verdict = claim(store, FIRST.retried())
        assert isinstance(verdict, Replay)
        assert verdict.record.outcome == FAILURE

    def test_a_call_whose_run_was_ended_keeps_its_failure_where_nobody_knows(
        self, store: Store
    ) -> None:
        """Policy "unknown": another call has asked since, and is told that nobody knows."""
        # Given
        held = hold(store, FIRST)
        _answer_for(store, FIRST, FAILURE)
        interrupt(store, held)
        assert isinstance(claim(store, SECOND, max_interruptions=0), Unknown)
        # Then
        verdict = claim(store, FIRST, max_interruptions=0)
        assert isinstance(verdict, Replay)
        assert verdict.record.outcome == FAILURE

    def test_what_a_call_whose_run_was_ended_had_begun_to_undo_is_undone(
        self, store: Store
    ) -> None:
        """Its copy goes on with that, and then tells what was told."""
        # Given
        held = hold(store, FIRST)
        compensate(store, held)
        _answer_for(store, FIRST, OTHER_RESULT)
        store.end_lease(KEY, FIRST.owner, PROCESS)
        # When
        verdict = claim(store, FIRST)
        # Then
        assert isinstance(verdict, Claimed)
        assert verdict.failed is not None
        # When
        answer = release_failed(store, verdict.failed, answers=FIRST)
        # Then
        assert isinstance(answer, Recorded)
        assert answer.answered
        again = claim(store, FIRST)
        assert isinstance(again, Replay)
        assert again.record.outcome == OTHER_RESULT

    def test_callbacks_of_a_call_whose_run_was_ended_are_sent_once(self, store: Store) -> None:
        """By the worker's parent; where it can't send them, by one copy."""
        # Given
        held = hold(store, FIRST, noted=True)
        _answer_for(store, FIRST, FAILURE, sends_ms=LEASE_MS)
        interrupt(store, held)
        # Then
        assert isinstance(claim(store, FIRST, noted=True), Busy)
        # When
        note(store, FIRST, sent=False)
        # Then
        verdict = claim(store, FIRST, noted=True)
        assert isinstance(verdict, Replay)
        assert not verdict.noted
        assert isinstance(claim(store, FIRST, noted=True), Busy)
        # When
        note(store, FIRST, succeeded=False)
        # Then
        verdict = claim(store, FIRST, noted=True)
        assert isinstance(verdict, Replay)
        assert (verdict.noted, verdict.record.outcome) == (True, FAILURE)

    def test_a_call_that_fails_by_being_cut_off_stays_failed(self, store: Store) -> None:
        """A soft time limit: its end and its failure are one write; for others it was cut off."""
        # Given
        held = hold(store, FIRST)
        # When
        assert fail_cut_off(store, held, FIRST) == Recorded(held.token)
        # Then also where the first answer was lost
        assert fail_cut_off(store, held, FIRST) == Recorded(held.token)
        for _ in range(2):
            verdict = claim(store, FIRST)
            assert isinstance(verdict, Replay)
            assert (verdict.record.outcome, verdict.mine) == (FAILURE, True)
        # When another call takes over
        verdict = claim(store, SECOND, awaited=FIRST)
        # Then
        assert isinstance(verdict, Claimed)
        assert verdict.interruptions == 1
        assert isinstance(claim(store, FIRST), Replay)

    def test_its_errbacks_are_sent_once(self, store: Store) -> None:
        """Its copies wait for those as long as they may be on their way; others do not."""
        # Given
        held = hold(store, FIRST, noted=True)
        fail_cut_off(store, held, FIRST, sends_ms=LEASE_MS)
        # Then
        assert isinstance(claim(store, FIRST, noted=True), Busy)
        assert isinstance(claim(store, SECOND), Claimed)
        # When
        note(store, FIRST, succeeded=False)
        # Then
        verdict = claim(store, FIRST, noted=True)
        assert isinstance(verdict, Replay)
        assert (verdict.noted, verdict.record.outcome) == (True, FAILURE)

    @pytest.mark.parametrize("told", [False, True])
    def test_who_is_cut_off_after_its_copy_has_answered_answers_nothing(
        self, store: Store, told: bool
    ) -> None:
        """A stalled run meets its soft limit: its copy tells, or has told, that nobody knows."""
        # Given
        held = unknown(store)
        assert isinstance(claim(store, FIRST, noted=True), Unknown)
        if told:
            note(store, FIRST, succeeded=False, outcome=OTHER_RESULT)
        # When
        answer = fail_cut_off(store, held, FIRST, sends_ms=LEASE_MS)
        # Then
        assert answer == Recorded(held.token, True)
        if not told:
            note(store, FIRST, succeeded=False, outcome=OTHER_RESULT)
        assert claim(store, FIRST, noted=True) == Unknown(stored(store), True)

    def test_who_is_cut_off_where_nobody_knows_answers_its_own_call(self, store: Store) -> None:
        """Another call has been told so since: the run's own has no answer yet."""
        # Given
        held = unknown(store)
        # When
        assert fail_cut_off(store, held, FIRST) == Recorded(held.token)
        # Then
        verdict = claim(store, FIRST)
        assert isinstance(verdict, Replay)
        assert verdict.record.outcome == FAILURE
        assert isinstance(claim(store, SECOND), Unknown)

    def test_who_is_cut_off_after_the_parent_has_answered_answers_nothing(
        self, store: Store
    ) -> None:
        """Its hard limit was told first."""
        # Given
        held = hold(store, FIRST)
        _answer_for(store, FIRST, OTHER_RESULT)
        # Then
        assert fail_cut_off(store, held, FIRST) == Recorded(held.token, True)
        verdict = claim(store, FIRST)
        assert isinstance(verdict, Replay)
        assert verdict.record.outcome == OTHER_RESULT

    def test_who_is_cut_off_after_it_gave_its_key_up_answers_its_own_call(
        self, store: Store
    ) -> None:
        """``self.idempotency.release()``, then a soft limit: another call has the key."""
        # Given
        held = hold(store, FIRST)
        holder = held.nonce + held.process
        given_up = replace(FIRST.slip, digests=b"", holder=holder, released=True)
        free = replace(held, state=State.RELEASED, process=b"", nonce=b"")
        event = Settle(free, LEASE_MS, HORIZON_MS, given_up, KEEP_MS, slip_key=FIRST.slip_key)
        store.settle(KEY, event)
        second = hold(store, SECOND)
        # When
        assert fail_cut_off(store, held, FIRST) == Recorded(held.token)
        # Then
        verdict = claim(store, FIRST)
        assert isinstance(verdict, Replay)
        assert (verdict.record.outcome, verdict.mine) == (FAILURE, True)
        assert isinstance(complete(store, second), Recorded)

    # --- callbacks ---

    def test_copies_of_a_duplicate_send_its_callbacks_alone(self, store: Store) -> None:
        """Two that are due together: the first sends, the other waits, and then sends nothing."""
        # Given
        complete(store, hold(store, FIRST))
        # When
        first = claim(store, SECOND, noted=True)
        # Then
        assert first == Replay(stored(store), False, False)
        busy = claim(store, SECOND, noted=True)
        assert isinstance(busy, Busy)
        assert busy.mine
        # When
        note(store, SECOND)
        # Then
        assert claim(store, SECOND, noted=True) == Replay(stored(store), False, True)

    def test_callbacks_that_were_not_sent_are_sent_by_the_next(self, store: Store) -> None:
        """The broker was away: the lease ends, and nothing is noted."""
        # Given
        complete(store, hold(store, FIRST))
        claim(store, SECOND, noted=True)
        # When
        note(store, SECOND, sent=False)
        # Then
        assert claim(store, SECOND, noted=True) == Replay(stored(store), False, False)

    def test_a_dead_process_sends_no_callbacks(self, store: Store) -> None:
        """The parent ends the lease of its child, and no other's."""
        # Given
        complete(store, hold(store, FIRST))
        claim(store, SECOND, noted=True)
        # Then
        assert not store.end_lease(KEY, SECOND.owner, OTHER_PROCESS, SECOND.slip_key)
        assert store.end_lease(KEY, SECOND.owner, PROCESS, SECOND.slip_key)
        assert isinstance(claim(store, SECOND, noted=True), Replay)

    def test_a_failed_call_sends_its_callbacks_though_another_has_the_key(
        self, store: Store
    ) -> None:
        """Its run died before it sent them: one copy does, once the run's time is over."""
        # Given
        held = hold(store, FIRST, noted=True)
        release_failed(store, held, delivery_ms=LEASE_MS, answers=FIRST)
        hold(store, SECOND)
        # Then
        busy = claim(store, FIRST, noted=True)
        assert isinstance(busy, Busy)
        assert busy.mine
        # When
        note(store, FIRST, succeeded=False)
        # Then
        verdict = claim(store, FIRST, noted=True)
        assert isinstance(verdict, Replay)
        assert verdict.noted
        assert verdict.record.outcome == FAILURE

    def test_other_callbacks_of_the_same_task_id_are_sent_once(self, store: Store) -> None:
        """A signature that is used twice has one id and two sets of callbacks."""
        # Given
        complete(store, hold(store, FIRST, noted=True))
        note(store, FIRST, stored(store).token)
        # Then
        assert claim(store, FIRST, noted=True) == Replay(stored(store), True, True)
        verdict = claim(store, ANEW, noted=True)
        assert isinstance(verdict, Replay)
        assert not verdict.noted
        # When
        note(store, ANEW, stored(store).token)
        # Then
        assert claim(store, ANEW, noted=True) == Replay(stored(store), True, True)
        assert claim(store, FIRST, noted=True) == Replay(stored(store), True, True)

    @pytest.mark.parametrize("noted", [False, True])
    def test_a_run_whose_copy_is_answering_does_not(self, store: Store, noted: bool) -> None:
        """Its copy got Unknown, and tells that: the run's late end is recorded, and no more."""
        # Given
        held = unknown(store)
        assert isinstance(claim(store, FIRST, noted=noted), Unknown)
        delivery_ms = LEASE_MS if noted else 0
        # When
        answer = complete(store, held, OTHER_RESULT, delivery_ms=delivery_ms)
        # Then
        assert isinstance(answer, Recorded)
        assert answer.answered
        assert stored(store).outcome == OTHER_RESULT
        assert stored(store).until_ms == 0
        # When its answer was lost, and it asks again
        assert complete(store, held, OTHER_RESULT, delivery_ms=delivery_ms) == answer
        # Then
        note(store, FIRST, succeeded=False, outcome=FAILURE)
        assert complete(store, held, OTHER_RESULT, delivery_ms=delivery_ms) == answer

    @pytest.mark.parametrize("noted", [False, True])
    def test_a_failed_run_hears_again_that_its_copy_is_answering(
        self, store: Store, noted: bool
    ) -> None:
        """Whether its key is free or another's, when the first answer was lost."""
        # Given
        held = unknown(store)
        claim(store, FIRST, noted=noted)
        delivery_ms = LEASE_MS if noted else 0
        answer = release_failed(store, held, delivery_ms=delivery_ms, answers=FIRST)
        assert isinstance(answer, Recorded)
        # Then
        assert answer.answered
        assert release_failed(store, held, delivery_ms=delivery_ms, answers=FIRST) == answer
        # When
        hold(store, SECOND)
        # Then
        assert release_failed(store, held, delivery_ms=delivery_ms, answers=FIRST) == answer

    @pytest.mark.parametrize("end", [complete, release_failed])
    def test_a_run_that_is_recorded_answers_its_call(self, store: Store, end: Ending) -> None:
        """Its own delivery lease is nobody else's, when the first answer was lost."""
        # Given
        held = hold(store, FIRST, noted=True)
        about = (
            {"delivery_ms": LEASE_MS}
            if end is complete
            else {"delivery_ms": LEASE_MS, "answers": replace(FIRST)}
        )
        answer = end(store, held, **about)
        # Then
        assert isinstance(answer, Recorded)
        assert not answer.answered
        assert end(store, held, **about) == answer

    @pytest.mark.parametrize("message", [FIRST, SECOND])
    def test_copies_that_hear_that_nobody_knows_tell_it_one_by_one(
        self, store: Store, message: Message
    ) -> None:
        """The run ends while the first of them tells it: the next waits, and tells the same."""
        # Given
        held = unknown(store)
        assert isinstance(claim(store, message), Unknown)
        complete(store, held)
        # Then
        busy = claim(store, message)
        assert isinstance(busy, Busy)
        assert busy.mine
        # When
        note(store, message, succeeded=False, outcome=FAILURE)
        # Then
        verdict = claim(store, message)
        assert isinstance(verdict, Replay)
        assert verdict.record.outcome == FAILURE

    def test_what_was_told_of_an_unknown_run_is_told_without_delay(self, store: Store) -> None:
        """The call has its answer: its copies need not wait for one another."""
        # Given
        unknown(store)
        claim(store, FIRST)
        note(store, FIRST, succeeded=False, outcome=FAILURE)
        # Then
        for _ in range(2):
            assert isinstance(claim(store, FIRST), Unknown)

    def test_a_run_that_ends_before_its_copy_answers(self, store: Store) -> None:
        """The copy's word was taken back: the run answers, and sends its callbacks."""
        # Given
        held = unknown(store)
        claim(store, FIRST, noted=True)
        note(store, FIRST, sent=False)
        # When
        answer = complete(store, held, OTHER_RESULT)
        # Then
        assert answer == Recorded(held.token)

    def test_a_run_whose_copy_has_answered_retries_nothing(self, store: Store) -> None:
        """Nobody knows, and that was told: a retry of the run that still lives is none."""
        # Given
        held = unknown(store)
        before = stored(store)
        claim(store, FIRST)
        note(store, FIRST, succeeded=False, outcome=FAILURE)
        # When
        answer = retry(store, held)
        # Then
        assert answer == Recorded(held.token, True)
        assert stored(store) == before

    def test_what_is_undone_of_an_answered_call_changes_no_answer(self, store: Store) -> None:
        """Its run lives, fails, and undoes its steps under a lease: the call keeps its answer."""
        # Given
        held = unknown(store)
        claim(store, FIRST)
        note(store, FIRST, succeeded=False, outcome=OTHER_RESULT)
        # Then
        assert compensate(store, held) == Recorded(held.token, True)
        assert isinstance(claim(store, SECOND), Busy)
        # When
        answer = release_failed(store, held, answers=FIRST)
        # Then
        assert isinstance(answer, Recorded)
        assert answer.answered
        verdict = claim(store, FIRST)
        assert isinstance(verdict, Replay)
        assert verdict.record.outcome == OTHER_RESULT

    def test_what_was_answered_as_unknown_stays_so(self, store: Store) -> None:
        """Resolved since: other calls get the outcome, the call itself keeps its answer."""
        # Given
        held = unknown(store)
        claim(store, FIRST)
        note(store, FIRST, succeeded=False, outcome=FAILURE)
        # When
        answer = complete(store, held)
        # Then
        assert isinstance(answer, Recorded)
        assert answer.answered
        verdict = claim(store, FIRST)
        assert isinstance(verdict, Replay)
        assert verdict.record.outcome == FAILURE
        assert isinstance(claim(store, SECOND), Replay)

    def test_arguments_are_compared_before_a_free_key_is_given(self, store: Store) -> None:
        """A failed run's key, asked for with other arguments where they are checked."""
        # Given
        release_failed(store, hold(store, FIRST), answers=FIRST)
        # Then
        assert isinstance(claim(store, STRANGER, checked=True), Mismatch)

    def test_a_copy_is_not_given_a_key_that_another_gave_up(self, store: Store) -> None:
        """An ignored call, and then another one: the first one's copy runs nothing."""
        # Given
        release(store, hold(store, FIRST), FIRST)
        release(store, hold(store, SECOND), SECOND)
        # Then
        assert claim(store, FIRST) == Superseded()
        assert isinstance(claim(store, THIRD), Claimed)

    def test_the_same_claim_goes_on_sending(self, store: Store) -> None:
        """Its answer was lost: asked for again with the same nonce, it sends the callbacks."""
        # Given
        complete(store, hold(store, FIRST))
        # Then
        for _ in range(2):
            assert claim(store, SECOND, nonce=b"sender", noted=True) == Replay(
                stored(store), False, False
            )

    def test_an_answer_stays_though_its_callbacks_were_not_sent(self, store: Store) -> None:
        """The broker was away when they were to be sent: the next copy sends them."""
        # Given
        held = hold(store, FIRST, noted=True)
        release_failed(store, held, delivery_ms=LEASE_MS, answers=FIRST)
        hold(store, SECOND)
        # When
        note(store, FIRST, sent=False)
        # Then
        verdict = claim(store, FIRST, noted=True)
        assert isinstance(verdict, Replay)
        assert (verdict.noted, verdict.record.outcome) == (False, FAILURE)

    @pytest.mark.parametrize("noted", [False, True])
    def test_a_waiter_gets_the_result_if_another_succeeded_since(
        self, store: Store, noted: bool
    ) -> None:
        """The run that it waited for failed; the next one's result is the answer of all."""
        # Given
        release_failed(store, hold(store, FIRST), answers=FIRST)
        complete(store, hold(store, SECOND))
        # Then
        for message, awaited in ((THIRD, FIRST), (Message("another"), None)):
            verdict = claim(store, message, awaited=awaited, noted=noted)
            assert isinstance(verdict, Replay)
            assert verdict.record.outcome == RESULT

    @pytest.mark.parametrize("noted", [False, True])
    @pytest.mark.parametrize("is_taken", [False, True])
    def test_copies_of_a_waiter_share_one_failure(
        self, store: Store, noted: bool, is_taken: bool
    ) -> None:
        """One was told of the failure; the next, which awaited nothing, hears no newer result."""
        # Given a waiter that shares the failure, and nothing is noted yet
        release_failed(store, hold(store, FIRST), answers=FIRST)
        held = hold(store, SECOND) if is_taken else None
        shared = claim(store, THIRD, awaited=FIRST, noted=noted)
        assert isinstance(shared, Replay)
        # When
        complete(store, held or hold(store, SECOND))
        if noted:
            assert isinstance(claim(store, THIRD, noted=True), Busy)
            note(store, THIRD, succeeded=False, outcome=FAILURE)
        # Then
        verdict = claim(store, THIRD, noted=noted)
        assert isinstance(verdict, Replay)
        assert (verdict.record.outcome, verdict.mine, verdict.noted) == (FAILURE, True, noted)

    def test_the_callbacks_of_a_shared_failure_are_sent_by_the_next_copy(
        self, store: Store
    ) -> None:
        """The broker was away: what it fails with stays, and the errback is sent later."""
        # Given
        release_failed(store, hold(store, FIRST), answers=FIRST)
        claim(store, SECOND, awaited=FIRST, noted=True)
        # When
        note(store, SECOND, sent=False)
        hold(store, THIRD)
        # Then
        verdict = claim(store, SECOND, noted=True)
        assert isinstance(verdict, Replay)
        assert (verdict.record.outcome, verdict.noted) == (FAILURE, False)

    def test_a_shared_failure_sends_no_callbacks_again(self, store: Store) -> None:
        """Those of an earlier attempt went out, and are known beside the failure."""
        # Given
        release(store, hold(store, FIRST), FIRST)
        note(store, FIRST, succeeded=False)
        release_failed(store, hold(store, SECOND), answers=SECOND)
        hold(store, THIRD)
        # When
        shared = claim(store, ANEW, awaited=SECOND, noted=True)
        assert isinstance(shared, Replay)
        assert not shared.noted
        note(store, ANEW, succeeded=False, outcome=FAILURE)
        # Then
        verdict = claim(store, FIRST, noted=True)
        assert isinstance(verdict, Replay)
        assert (verdict.record.outcome, verdict.noted) == (FAILURE, True)

    def test_a_shared_failure_takes_the_place_of_an_earlier_attempts_end(
        self, store: Store
    ) -> None:
        """It was ignored; published anew, it waited for another call, which failed."""
        # Given
        release(store, hold(store, FIRST), FIRST)
        release_failed(store, hold(store, SECOND), answers=SECOND)
        hold(store, THIRD)
        # When
        assert isinstance(claim(store, ANEW, awaited=SECOND), Replay)
        # Then
        verdict = claim(store, ANEW)
        assert isinstance(verdict, Replay)
        assert (verdict.record.outcome, verdict.mine) == (FAILURE, True)

    @pytest.mark.parametrize("noted", [False, True])
    @pytest.mark.parametrize(
        ("options", "refusal"),
        [
            pytest.param({"checked": True}, Mismatch, id="other arguments"),
            pytest.param({"refused_from_ms": 0}, Busy, id="does not wait"),
        ],
    )
    def test_copies_of_a_refused_call_are_refused_one_by_one(
        self, store: Store, noted: bool, options: dict[str, Any], refusal: type
    ) -> None:
        """The first is refused, and not noted yet, when the key becomes free: the next waits."""
        # Given
        held = hold(store, FIRST)
        refused = claim(store, STRANGER, noted=noted, **options)
        assert isinstance(refused, refusal)
        assert isinstance(refused, Mismatch | Busy)
        assert refused.record == stored(store)
        # When
        release(store, held)
        # Then
        busy = claim(store, STRANGER, noted=noted, **options)
        assert isinstance(busy, Busy)
        assert busy.mine
        # When
        note(store, STRANGER, succeeded=False, outcome=FAILURE)
        # Then
        verdict = claim(store, STRANGER, noted=noted, **options)
        assert isinstance(verdict, Replay)
        assert (verdict.record.outcome, verdict.noted) == (FAILURE, noted)

    @pytest.mark.parametrize("busy", ["running", "retrying"])
    def test_who_waits_has_nothing_to_tell(self, store: Store, busy: str) -> None:
        """Neither a call that is put back, nor a copy of the run's own message."""
        # Given
        held = hold(store, FIRST)
        if busy == "retrying":
            retry(store, held)
        # When
        claim(store, SECOND, refused_from_ms=NEVER_MS)
        claim(store, FIRST, refused_from_ms=0)
        # Then
        assert store.slip(SECOND.slip_key) is store.slip(FIRST.slip_key) is None
        # When
        claim(store, SECOND, refused_from_ms=0)
        # Then
        assert store.slip(SECOND.slip_key) is not None

    @pytest.mark.parametrize("noted", [False, True])
    def test_who_finds_that_nobody_knows_tells_it_alone(self, store: Store, noted: bool) -> None:
        """The copy that gives the run up: while it tells that, its run can't tell otherwise."""
        # Given
        held = hold(store, FIRST, noted=noted)
        interrupt(store, held)
        assert isinstance(claim(store, FIRST, noted=noted, max_interruptions=0), Unknown)
        # Then
        assert isinstance(claim(store, FIRST, noted=noted), Busy)
        answer = complete(store, held, delivery_ms=LEASE_MS)
        assert isinstance(answer, Recorded)
        assert answer.answered

    @pytest.mark.parametrize("ending", [complete, fail])
    def test_a_late_note_of_an_earlier_attempt_takes_no_answer_away(
        self, store: Store, ending: Ending
    ) -> None:
        """It is heard when the next attempt runs: that answers its call all the same."""
        # Given
        held = hold(store, FIRST)
        note(store, FIRST)
        # Then
        assert ending(store, held) == Recorded(held.token)

    def test_an_answer_of_an_unknown_run_counts_no_more_after_a_rerun_is_asked_for(
        self, store: Store
    ) -> None:
        """Its owner was told that nobody knows; resolved for a rerun, its copy runs."""
        # Given
        unknown(store)
        claim(store, FIRST)
        note(store, FIRST, succeeded=False, outcome=FAILURE)
        # When
        assert store.resolve(KEY, Resolve(State.RELEASED, b"", HORIZON_MS))
        # Then
        assert isinstance(claim(store, FIRST), Claimed)

    def test_an_older_releases_note_is_of_all_callbacks(self, store: Store) -> None:
        """It did not tell callbacks apart."""
        # Given
        complete(store, hold(store, FIRST))
        note(store, SECOND, all_sent=True)
        # Then
        other = replace(SECOND, digest=b"anothers")
        assert claim(store, other, noted=True) == Replay(stored(store), False, True)


class AnsweredInTimeRows:
    """Slips, and leases that are over."""

    @pytest.mark.parametrize("callbacks", [False, True])
    @pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED])
    def test_a_duplicate_keeps_its_answer_when_the_window_ends(
        self, store: Store, clock: StoreClock, state: State, callbacks: bool
    ) -> None:
        """Its record lives for less time than its copies may come: its slip has the outcome."""
        # Given
        settle(store, hold(store, FIRST), state, 0, 2_000, outcome=RESULT)
        answered = claim(store, SECOND, noted=callbacks, horizon_ms=HORIZON_MS)
        assert isinstance(answered, Replay)
        if callbacks:
            note(store, SECOND)
        # When
        clock.advance(2_000)
        # Then
        again = claim(store, SECOND, noted=callbacks, horizon_ms=HORIZON_MS)
        assert isinstance(again, Replay)
        assert (again.record.outcome, again.noted) == (answered.record.outcome, callbacks)
        assert isinstance(claim(store, THIRD, horizon_ms=HORIZON_MS), Claimed)

    @pytest.mark.parametrize("taken", [False, True])
    @pytest.mark.parametrize(("end", "answer"), [(release, Superseded), (release_failed, Replay)])
    def test_a_copy_may_have_copies_of_its_own(
        self,
        store: Store,
        clock: StoreClock,
        end: Callable[..., Recorded | Lost],
        answer: type,
        taken: bool,
    ) -> None:
        """Who answers a copy may be cut off before that: the slip is kept for a horizon anew."""
        # Given an answer, whoever has the key since
        end(store, hold(store, FIRST), answers=FIRST)
        if taken:
            hold(store, SECOND, keep_ms=9 * HORIZON_MS)
        for _ in range(3):
            # When a copy comes while the slip is there
            clock.advance(HORIZON_MS - 1)
            verdict = claim(store, FIRST, horizon_ms=HORIZON_MS)
            # Then it gets that answer, and so does the next, which comes as late
            assert isinstance(verdict, answer)

    def test_a_copy_that_waits_for_another_keeps_the_slip(
        self, store: Store, clock: StoreClock
    ) -> None:
        """The one that sends the callbacks may be cut off, and the other comes again later."""
        # Given a copy that sends the callbacks of a failure
        release_failed(store, hold(store, FIRST), answers=FIRST)
        clock.advance(HORIZON_MS - 2)
        assert isinstance(claim(store, FIRST, noted=True), Replay)
        # When another one has to wait for it, and the first is cut off
        clock.advance(1)
        assert isinstance(claim(store, FIRST, noted=True, horizon_ms=HORIZON_MS), Busy)
        # Then the other gets that answer when it comes again
        clock.advance(HORIZON_MS - 1)
        again = claim(store, FIRST, noted=True, horizon_ms=HORIZON_MS)
        assert isinstance(again, Replay)
        assert (again.record.outcome, again.noted) == (FAILURE, False)

    @pytest.mark.parametrize("callbacks", [False, True])
    def test_an_owners_copy_keeps_its_answer_when_the_window_ends(
        self, store: Store, clock: StoreClock, callbacks: bool
    ) -> None:
        """The record lives for less time than that copy's copies may come: a slip has it, too."""
        # Given
        settle(store, hold(store, FIRST), State.SUCCEEDED, 0, HORIZON_MS, outcome=RESULT)
        clock.advance(HORIZON_MS - 2 * LEASE_MS)
        # When
        answered = claim(store, FIRST, noted=callbacks, horizon_ms=HORIZON_MS)
        assert isinstance(answered, Replay)
        if callbacks:
            note(store, FIRST, answered.record.token)
        clock.advance(2 * LEASE_MS)
        assert store.get(KEY) is None
        # Then
        again = claim(store, FIRST, noted=callbacks, horizon_ms=HORIZON_MS)
        assert isinstance(again, Replay)
        assert (again.record.outcome, again.mine, again.noted) == (RESULT, True, callbacks)
        assert isinstance(claim(store, SECOND), Claimed)

    def test_a_call_that_is_published_anew_makes_no_slip_live_on(
        self, store: Store, clock: StoreClock
    ) -> None:
        """Else a task id that is used again and again would never run again."""
        # Given an answer, and another call that has taken the key, and was cut off
        release_failed(store, hold(store, FIRST), answers=FIRST)
        hold(store, SECOND, keep_ms=9 * HORIZON_MS)
        clock.advance(HORIZON_MS - LEASE_MS)
        # When
        assert isinstance(claim(store, ANEW, horizon_ms=HORIZON_MS), Replay)
        clock.advance(LEASE_MS)
        # Then
        assert isinstance(claim(store, ANEW, horizon_ms=HORIZON_MS), Claimed)

    def test_a_sender_that_stalled_is_replaced(self, store: Store, clock: StoreClock) -> None:
        """The lease on a duplicate's callbacks is over: the next copy sends them."""
        # Given
        complete(store, hold(store, FIRST))
        claim(store, SECOND, noted=True)
        # When
        clock.advance(LEASE_MS)
        # Then
        assert claim(store, SECOND, noted=True) == Replay(stored(store), False, False)

    def test_a_retry_that_comes_after_an_outcome_is_a_copy(
        self, store: Store, clock: StoreClock
    ) -> None:
        """A run that was cut off had published its retry, and another attempt had its outcome."""
        # Given that outcome, whose window is over
        held = hold(store, FIRST)
        settle(store, held, State.SUCCEEDED, 0, 1_000, outcome=RESULT, answers=FIRST)
        clock.advance(2_000)
        # Then
        verdict = claim(store, FIRST.retried())
        assert isinstance(verdict, Replay)
        assert (verdict.record.outcome, verdict.mine) == (RESULT, True)

    def test_a_late_end_is_refused_though_the_record_is_over(
        self, store: Store, clock: StoreClock
    ) -> None:
        """The run of a copy has ended, and its window is over: the slip knows it."""
        # Given
        held = hold(store, FIRST)
        interrupt(store, held)
        taken = hold(store, FIRST)
        settle(store, taken, State.SUCCEEDED, 0, 1_000, outcome=RESULT, answers=FIRST)
        clock.advance(2_000)
        # When
        lost = complete(store, held, OTHER_RESULT)
        # Then
        assert isinstance(lost, Lost)
        assert lost.answered
        assert store.get(KEY) is None
        assert complete(store, taken) == Recorded(taken.token)

    @pytest.mark.parametrize("write", [renew, step])
    def test_a_late_sign_of_life_is_refused_though_the_record_is_over(
        self, store: Store, clock: StoreClock, write: Ending
    ) -> None:
        """Else its record would be written anew, and its late end be accepted after all."""
        # Given a run whose call was answered, with another's result, and that key's window
        held = hold(store, FIRST)
        interrupt(store, held)
        settle(store, hold(store, SECOND), State.SUCCEEDED, 0, 1_000, outcome=RESULT)
        note(store, FIRST)
        clock.advance(2_000)
        # When
        lost = write(store, held)
        # Then
        assert isinstance(lost, Lost)
        assert lost.answered
        assert store.get(KEY) is None
        answer = complete(store, held, OTHER_RESULT)
        assert isinstance(answer, Lost)
        assert answer.answered

    @pytest.mark.parametrize("write", [renew, step])
    def test_a_late_sign_of_life_is_heard_where_nobody_was_answered(
        self, store: Store, clock: StoreClock, write: Ending
    ) -> None:
        """The record is over, and the call waits for its answer still: the run gives it."""
        # Given
        held = hold(store, FIRST)
        note(store, SECOND)
        clock.advance(KEEP_MS)
        # Then
        assert store.get(KEY) is None
        assert write(store, held) == Recorded(held.token)
        assert complete(store, held) == Recorded(held.token)

    @pytest.mark.parametrize(
        "end",
        [
            pytest.param(lambda store, held: release(store, held, FIRST), id="release"),
            pytest.param(complete, id="complete"),
        ],
    )
    def test_an_answer_is_known_for_the_copy_that_a_late_run_leaves(
        self, store: Store, clock: StoreClock, end: Ending
    ) -> None:
        """It puts its message back where a copy has answered: that one may be late, from then."""
        # Given a run whose copy has told that nobody knows
        held = unknown(store)
        claim(store, FIRST)
        note(store, FIRST, succeeded=False, outcome=OTHER_RESULT)
        clock.advance(HORIZON_MS - 1)
        # When
        answer = end(store, held)
        # Then
        assert isinstance(answer, Recorded)
        assert answer.answered
        clock.advance(KEEP_MS)
        verdict = claim(store, FIRST)
        assert isinstance(verdict, Replay)
        assert verdict.record.outcome == OTHER_RESULT

    def test_an_answer_is_known_for_as_long_as_its_run_lives(
        self, store: Store, clock: StoreClock
    ) -> None:
        """A copy has told that nobody knows: each sign of life of the run keeps that in mind."""
        # Given
        held = unknown(store)
        assert renew(store, held) == Recorded(held.token)
        claim(store, FIRST, noted=True)
        assert renew(store, held) == Recorded(held.token, True)
        note(store, FIRST, succeeded=False, outcome=OTHER_RESULT)
        before = stored(store)
        clock.advance(HORIZON_MS - 1)
        # When
        assert renew(store, held) == Recorded(held.token, True)
        # Then
        clock.advance(KEEP_MS - 1)
        assert stored(store) == before
        answer = complete(store, held)
        assert isinstance(answer, Recorded)
        assert answer.answered

    def test_callbacks_are_known_for_the_copy_that_a_run_leaves_which_retries_nothing(
        self, store: Store, clock: StoreClock
    ) -> None:
        """Its copy told that nobody knows, and sent the errback: the next copy tells it again."""
        # Given
        held = unknown(store)
        claim(store, FIRST, noted=True)
        note(store, FIRST, succeeded=False, outcome=OTHER_RESULT)
        clock.advance(HORIZON_MS - 1)
        # When
        assert retry(store, held) == Recorded(held.token, True)
        # Then
        clock.advance(KEEP_MS)
        assert claim(store, FIRST, noted=True) == Unknown(stored(store), True)

    def test_an_answer_is_known_for_the_copy_that_a_zombie_leaves(
        self, store: Store, clock: StoreClock
    ) -> None:
        """It learns that its call was answered, whoever has its key, and puts its message back."""
        # Given
        held = hold(store, FIRST)
        interrupt(store, held)
        release_failed(store, hold(store, FIRST), answers=FIRST)
        complete(store, hold(store, SECOND))
        clock.advance(HORIZON_MS - 1)
        # When
        answer = complete(store, held)
        # Then
        assert isinstance(answer, Lost)
        assert answer.answered
        clock.advance(KEEP_MS)
        verdict = claim(store, FIRST)
        assert isinstance(verdict, Replay)
        assert verdict.record.outcome == FAILURE

    def test_an_end_is_known_though_the_copy_that_answers_dies(
        self, store: Store, clock: StoreClock
    ) -> None:
        """A call that was ignored never runs again, whoever was about to answer it."""
        # Given a run that ends while its copy tells that nobody knows
        held = unknown(store)
        claim(store, FIRST, noted=True)
        answer = release(store, held, FIRST)
        assert isinstance(answer, Recorded)
        assert answer.answered
        assert isinstance(claim(store, FIRST, noted=True), Busy)
        # When that copy dies
        clock.advance(LEASE_MS)
        # Then
        assert claim(store, FIRST, noted=True) == Superseded()

    def test_a_failure_is_known_though_the_copy_that_answers_dies(
        self, store: Store, clock: StoreClock
    ) -> None:
        """The call gets it from its next copy, whoever has its key since."""
        # Given
        held = unknown(store)
        claim(store, FIRST, noted=True)
        release_failed(store, held, answers=FIRST)
        complete(store, hold(store, SECOND))
        # When
        clock.advance(LEASE_MS)
        # Then
        verdict = claim(store, FIRST, noted=True)
        assert isinstance(verdict, Replay)
        assert (verdict.noted, verdict.record.outcome) == (False, FAILURE)

    def test_what_a_copy_has_told_stands_though_its_run_failed_meanwhile(
        self, store: Store
    ) -> None:
        """The run left its failure for the next copy: nobody has heard of it."""
        # Given
        held = unknown(store)
        claim(store, FIRST, noted=True)
        release_failed(store, held, answers=FIRST)
        # When the copy is heard
        note(store, FIRST, succeeded=False, outcome=OTHER_RESULT)
        # Then
        verdict = claim(store, FIRST, noted=True)
        assert isinstance(verdict, Replay)
        assert (verdict.noted, verdict.record.outcome) == (True, OTHER_RESULT)

    def test_an_answer_is_forgotten(self, store: Store, clock: StoreClock) -> None:
        """After the horizon no copy comes any more, and the slip is gone."""
        # Given
        release_failed(store, hold(store, FIRST), answers=FIRST)
        # When
        clock.advance(HORIZON_MS - 1)
        # Then
        assert isinstance(store.slip(FIRST.slip_key), Slip)
        # When
        clock.advance(1)
        # Then
        assert store.slip(FIRST.slip_key) is None

    def test_after_an_outage_the_runs_renew_first(self, store: Store, clock: StoreClock) -> None:
        """Who met the outage takes over later, and at once where a lease was ended."""
        # Given
        held = hold(store, FIRST)
        clock.advance(10 * LEASE_MS)
        until_ms = clock.now_us() // 1000 + LEASE_MS
        # Then
        assert isinstance(claim(store, SECOND, patient_until_ms=until_ms), Busy)
        clock.advance(LEASE_MS - 1)
        assert isinstance(claim(store, SECOND, patient_until_ms=until_ms), Busy)
        # When
        clock.advance(1)
        # Then
        taken = hold(store, SECOND, patient_until_ms=until_ms)
        assert taken.interruptions == 1
        interrupt(store, taken)
        assert isinstance(claim(store, FIRST, patient_until_ms=NEVER_MS), Claimed)
        assert held.token < taken.token

    def test_errbacks_of_who_was_cut_off_are_sent_by_a_copy_where_its_process_dies(
        self, store: Store, clock: StoreClock
    ) -> None:
        """The failure is known; who has not sent them in its time sends them no more."""
        # Given
        held = hold(store, FIRST, noted=True)
        fail_cut_off(store, held, FIRST, sends_ms=LEASE_MS)
        # When
        clock.advance(LEASE_MS)
        # Then
        verdict = claim(store, FIRST, noted=True)
        assert isinstance(verdict, Replay)
        assert (verdict.noted, verdict.record.outcome) == (False, FAILURE)

    def test_a_run_that_stalled_is_replaced(self, store: Store, clock: StoreClock) -> None:
        """It did not send its callbacks in its time: its copy does, whoever has the key."""
        # Given
        held = hold(store, FIRST, noted=True)
        release_failed(store, held, delivery_ms=LEASE_MS, answers=FIRST)
        hold(store, SECOND)
        # When
        clock.advance(LEASE_MS)
        # Then
        verdict = claim(store, FIRST, noted=True)
        assert isinstance(verdict, Replay)
        assert not verdict.noted


def _answer_for(store: Store, message: Message, outcome: bytes, sends_ms: int = 0) -> None:
    """Answer a call in the place of its run, as a worker's parent does that ends the run."""
    told = replace(message.slip, answered=True, digests=b"", released=True, outcome=outcome)
    store.note(KEY, Note(message.slip_key, told, 0, HORIZON_MS, sends_ms))


def _of(store: Store, message: Message) -> Record:
    slip = store.slip(message.slip_key)
    assert slip is not None
    return slip.as_record(message.owner)
