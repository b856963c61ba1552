"""The store contract: a call that has its answer keeps it, whoever has its key since."""

from __future__ import annotations

import pytest

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.transitions import (
    Busy,
    Claimed,
    Lost,
    Mismatch,
    Recorded,
    Replay,
    Superseded,
    Unknown,
)
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract.kit import (
    FAILURE,
    FIRST,
    HORIZON_MS,
    KEY,
    LEASE_MS,
    OTHER_PROCESS,
    OTHER_RESULT,
    PROCESS,
    RESULT,
    SECOND,
    STRANGER,
    THIRD,
    Message,
    StoreClock,
    claim,
    complete,
    hold,
    interrupt,
    note,
    release,
    release_failed,
    replace,
    settle,
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
        assert isinstance(claim(store, THIRD, awaited=SECOND), Busy)

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

    def test_a_run_whose_copy_is_answering_does_not(self, store: Store) -> None:
        """Its copy got Unknown, and tells that: the run's late end is recorded, and no more."""
        # Given
        held = unknown(store)
        assert isinstance(claim(store, FIRST, noted=True), Unknown)
        # When
        answer = complete(store, held, OTHER_RESULT, delivery_ms=LEASE_MS)
        # Then
        assert isinstance(answer, Recorded)
        assert answer.answered
        assert stored(store).outcome == OTHER_RESULT
        assert stored(store).until_ms == 0

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


class AnsweredInTimeRows:
    """Slips, and leases that are over."""

    def test_a_sender_that_stalled_is_replaced(self, store: Store, clock: StoreClock) -> None:
        """The lease on a duplicate's callbacks is over: the next copy sends them."""
        # Given
        complete(store, hold(store, FIRST))
        claim(store, SECOND, noted=True)
        # When
        clock.advance(LEASE_MS)
        # Then
        assert claim(store, SECOND, noted=True) == Replay(stored(store), False, False)

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
        """Who met the outage takes over one lease later, and at once where a lease was ended."""
        # Given
        held = hold(store, FIRST)
        clock.advance(LEASE_MS)
        # Then
        assert isinstance(claim(store, SECOND, met_outage=True), Busy)
        clock.advance(LEASE_MS - 1)
        assert isinstance(claim(store, SECOND, met_outage=True), Busy)
        # When
        clock.advance(1)
        # Then
        taken = hold(store, SECOND, met_outage=True)
        assert taken.interruptions == 1
        interrupt(store, taken)
        assert isinstance(claim(store, FIRST, met_outage=True), Claimed)
        assert held.token < taken.token


def _of(store: Store, message: Message) -> Record:
    slip = store.slip(message.slip_key)
    assert slip is not None
    return slip.as_record(message.owner)
