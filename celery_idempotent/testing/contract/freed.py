"""The store contract: a window of 0, with which a key is free when its run ends."""

from __future__ import annotations

from typing import Any

import pytest

from celery_idempotent.core.record import Label, Record, State
from celery_idempotent.core.verdicts import (
    Busy,
    Claimed,
    Lost,
    Mismatch,
    Recorded,
    Replay,
    Resolve,
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
    PROCESS,
    RESULT,
    SECOND,
    STRANGER,
    THIRD,
    Message,
    StoreClock,
    claim,
    hold,
    interrupt,
    lives_ms,
    release,
    replace,
    retry,
    settle,
    step,
    stored,
    unknown,
)


class FreedRows:
    """The record is released with its outcome, for its own call and those that waited for it."""

    @pytest.mark.parametrize("outcome", [RESULT, FAILURE])
    def test_only_its_own_call_and_who_waited_are_answered(
        self, store: Store, outcome: bytes
    ) -> None:
        """A leftover copy and a call that waited share the outcome; the next call runs."""
        # Given
        _end(store, hold(store, FIRST, frees=True), outcome)
        # Then
        for verdict in (
            claim(store, FIRST, frees=True),
            claim(store, SECOND, awaited=FIRST, frees=True),
        ):
            assert isinstance(verdict, Replay)
            assert verdict.record.outcome == outcome
        assert isinstance(claim(store, THIRD, frees=True), Claimed)
        # Whoever has the key since:
        fourth, fifth = replace(THIRD, task_id="fourth"), replace(THIRD, task_id="fifth")
        assert isinstance(claim(store, FIRST, frees=True), Replay)
        assert isinstance(claim(store, fourth, awaited=FIRST, frees=True), Replay)
        assert isinstance(claim(store, fifth, frees=True), Busy)

    def test_an_end_that_is_told_again_is_accepted_again(self, store: Store) -> None:
        """Its answer was lost; also if the next call has the key by then."""
        # Given
        held = hold(store, FIRST, frees=True)
        first = _end(store, held)
        # Then
        assert _end(store, held) == first == Recorded(held.token + 1)
        # When
        hold(store, SECOND, frees=True)
        # Then
        assert isinstance(_end(store, held), Recorded)

    def test_the_next_call_runs_while_callbacks_are_sent(self, store: Store) -> None:
        """The delivery lease keeps out the owner's own copies only."""
        # Given
        held = hold(store, FIRST, noted=True, frees=True)
        _end(store, held, delivery_ms=LEASE_MS)
        # Then
        assert isinstance(claim(store, FIRST, noted=True, frees=True), Busy)
        assert isinstance(claim(store, SECOND, frees=True), Claimed)
        assert isinstance(claim(store, FIRST, noted=True, frees=True), Busy)

    def test_the_next_call_begins_without_steps(self, store: Store) -> None:
        """What a run has finished belongs to it, once it has ended."""
        # Given
        held = hold(store, FIRST, frees=True)
        step(store, held)
        _end(store, held)
        # Then
        assert store.steps(KEY) == {}
        assert not stored(store).has_steps
        verdict = claim(store, SECOND, frees=True)
        assert isinstance(verdict, Claimed)
        assert verdict.steps == {}

    def test_a_run_can_leave_the_steps_of_others(self, store: Store) -> None:
        """Each call's steps are its own where calls run in turn: an end deletes only those."""
        # Given
        held = hold(store, FIRST, frees=True, in_turn=True)
        step(store, held, "first/charge")
        interrupt(store, held)
        second = hold(store, SECOND, frees=True, in_turn=True)
        step(store, second, "second/charge")
        step(store, second, "second/mail")
        # When
        settle(
            store,
            second,
            State.RELEASED,
            0,
            HORIZON_MS,
            answers=SECOND,
            outcome=RESULT,
            drops_steps_of="second/",
        )
        # Then
        assert store.steps(KEY) == {"first/charge": b"42"}
        verdict = claim(store, FIRST, frees=True, in_turn=True)
        assert isinstance(verdict, Claimed)
        assert verdict.steps == {"first/charge": b"42"}

    def test_in_turn_nobody_goes_on_with_anothers_work(self, store: Store) -> None:
        """A takeover begins its own; whose run was cut off is named all the same."""
        # Given
        interrupt(store, hold(store, FIRST, frees=True, in_turn=True))
        # When
        verdict = claim(store, SECOND, frees=True, in_turn=True)
        # Then
        assert isinstance(verdict, Claimed)
        assert (verdict.origin, verdict.cut_off) == ("", f"{FIRST.owner.hex()}:1")

    @pytest.mark.parametrize("in_turn", [False, True])
    def test_a_call_that_was_cut_off_is_told_so_after_the_runs_of_others(
        self, store: Store, in_turn: bool
    ) -> None:
        """When its own message comes again: its effect may have happened. The others are not."""
        # Given
        options: dict[str, Any] = {"frees": True, "in_turn": in_turn}
        interrupt(store, hold(store, FIRST, **options))
        _end(store, hold(store, SECOND, **options), answers=SECOND)
        _end(store, hold(store, THIRD, **options), answers=THIRD)
        # When
        again = claim(store, FIRST, nonce=b"again", **options)
        # Then
        assert isinstance(again, Claimed)
        assert (again.interruptions, again.cut_off) == (1, "")
        # ... also where the answer to that was lost on the wire, and not twice
        _end(store, hold(store, FIRST, nonce=b"again", **options))
        fourth = claim(store, replace(THIRD, task_id="fourth"), **options)
        assert isinstance(fourth, Claimed)
        assert (fourth.interruptions, fourth.cut_off) == (0, "")

    @pytest.mark.parametrize("in_turn", [False, True])
    def test_each_call_that_was_cut_off_is_told_so(self, store: Store, in_turn: bool) -> None:
        """Also where several were, one after the other, and those that failed since."""
        # Given
        options: dict[str, Any] = {"frees": True, "in_turn": in_turn}
        interrupt(store, hold(store, FIRST, **options))
        interrupt(store, hold(store, SECOND, **options))
        third = claim(store, THIRD, nonce=b"third", **options)
        assert isinstance(third, Claimed)
        named = [call.partition(":")[0] for call in third.cut_off.split(",")]
        assert named == [FIRST.owner.hex(), SECOND.owner.hex()]
        # ... also where the answer to that was lost on the wire
        assert claim(store, THIRD, nonce=b"third", **options) == third
        _end(store, hold(store, THIRD, nonce=b"third", **options), FAILURE, answers=THIRD)
        # Then
        for message in (SECOND, FIRST):
            held = hold(store, message, **options)
            assert held.interruptions >= 1
            _end(store, held, answers=message)

    def test_with_a_window_a_call_that_was_cut_off_is_told_so_after_a_failure(
        self, store: Store
    ) -> None:
        """Another call took over, and failed: the key is free, and the first message comes."""
        # Given
        interrupt(store, hold(store, FIRST))
        _end(store, hold(store, SECOND), FAILURE, answers=SECOND)
        # When
        again = claim(store, FIRST)
        # Then
        assert isinstance(again, Claimed)
        assert again.interruptions == 1

    def test_a_call_that_is_cut_off_each_time_becomes_unknown(self, store: Store) -> None:
        """The runs of others in between do not begin its count anew."""
        # Given
        options: dict[str, Any] = {"frees": True, "max_interruptions": 1}
        for other in (SECOND, THIRD):
            interrupt(store, hold(store, FIRST, **options))
            others: dict[str, Any] = {**options, "max_interruptions": 3}
            _end(store, hold(store, other, **others), answers=other)
        # When
        verdict = claim(store, FIRST, **options)
        # Then
        assert isinstance(verdict, Unknown)
        assert (verdict.record.owner, verdict.record.interruptions) == (FIRST.owner, 2)
        assert stored(store).state is State.UNKNOWN

    def test_what_was_cut_off_is_forgotten_with_the_key(self, store: Store) -> None:
        """A key that was forgotten is as new."""
        # Given
        interrupt(store, hold(store, FIRST, frees=True))
        _end(store, hold(store, SECOND, frees=True), answers=SECOND)
        store.forget(KEY, HORIZON_MS)
        # Then
        again = claim(store, FIRST, frees=True)
        assert isinstance(again, Claimed)
        assert again.interruptions == 0

    def test_a_record_names_the_last_calls_that_were_cut_off(self, store: Store) -> None:
        """It does not grow without end where messages never come again."""
        # Given
        calls = [Message(f"call {number}") for number in range(20)]
        options: dict[str, Any] = {"frees": True, "in_turn": True}
        for one in calls:
            interrupt(store, hold(store, one, **options))
        # When
        verdict = claim(store, FIRST, **options)
        # Then
        assert isinstance(verdict, Claimed)
        expected = [f"{one.owner.hex()}:1" for one in calls[-16:]]
        assert verdict.cut_off.split(",") == expected

    def test_in_turn_each_call_has_interruptions_of_its_own(self, store: Store) -> None:
        """As many calls as like may be cut off one after the other; one of them may not be."""
        # Given
        calls = [Message(f"call {number}") for number in range(5)]
        # Then
        for one in calls:
            verdict = claim(store, one, frees=True, in_turn=True, max_interruptions=2)
            assert isinstance(verdict, Claimed)
            assert verdict.interruptions == 0
            store.end_lease(KEY, one.owner, PROCESS)
        for count in (1, 2):
            verdict = claim(store, calls[-1], frees=True, in_turn=True, max_interruptions=2)
            assert isinstance(verdict, Claimed)
            assert verdict.interruptions == count
            store.end_lease(KEY, calls[-1].owner, PROCESS)
        last = claim(store, calls[-1], frees=True, in_turn=True, max_interruptions=2)
        assert isinstance(last, Unknown)

    def test_in_turn_a_claim_that_was_given_up_passes_on_no_interruptions(
        self, store: Store
    ) -> None:
        """They are those of the call whose claim that was."""
        # Given
        interrupt(store, hold(store, FIRST, frees=True, in_turn=True))
        held = hold(store, FIRST, frees=True, in_turn=True)
        assert held.interruptions == 1
        store.abandon(KEY, FIRST.candidate(held.nonce), HORIZON_MS)
        # When
        verdict = claim(store, SECOND, frees=True, in_turn=True)
        # Then
        assert isinstance(verdict, Claimed)
        assert (verdict.interruptions, verdict.cut_off) == (0, f"{FIRST.owner.hex()}:1")

    def test_in_turn_a_cut_off_run_is_left_unknown_where_that_is_asked(self, store: Store) -> None:
        """By whoever comes next: nobody knows what it did."""
        interrupt(store, hold(store, FIRST, frees=True, in_turn=True))
        verdict = claim(store, SECOND, frees=True, in_turn=True, max_interruptions=0)
        assert isinstance(verdict, Unknown)

    def test_a_resolved_key_can_be_freed_without_steps(self, store: Store) -> None:
        """An operator's word ends a run as its own end would have."""
        # Given
        held = hold(store, FIRST, frees=True)
        step(store, held)
        interrupt(store, held)
        assert isinstance(claim(store, THIRD, max_interruptions=0, frees=True), Unknown)
        # When
        store.resolve(KEY, Resolve(State.FAILED, RESULT, HORIZON_MS, clears_steps=True))
        # Then
        assert store.steps(KEY) == {}
        assert isinstance(claim(store, FIRST, frees=True), Replay)
        verdict = claim(store, SECOND, frees=True)
        assert isinstance(verdict, Claimed)
        assert verdict.steps == {}

    # --- fingerprints ---

    def test_other_arguments_are_refused_while_it_runs_or_retries(self, store: Store) -> None:
        """They are another call, which must not share the outcome."""
        # Given
        held = hold(store, FIRST, frees=True)
        # Then
        assert isinstance(claim(store, STRANGER, checked=True, frees=True), Mismatch)
        # When
        retry(store, held)
        # Then
        another = replace(STRANGER, task_id="another stranger")
        assert isinstance(claim(store, another, checked=True, frees=True), Mismatch)

    def test_other_arguments_run_once_the_key_is_free(self, store: Store) -> None:
        """The end of the run ends what its key stood for; with a window it does not."""
        # Given
        _end(store, hold(store, FIRST, frees=True))
        # Then
        another = replace(STRANGER, task_id="another stranger")
        assert isinstance(claim(store, another, checked=True), Mismatch)
        assert isinstance(claim(store, STRANGER, checked=True, frees=True), Claimed)

    def test_an_outcome_is_not_shared_by_other_arguments(self, store: Store) -> None:
        """Whoever says that it waited for the run is still checked."""
        # Given: the run's slip is gone, and its record is left
        _end(store, hold(store, FIRST, frees=True), answers=None)
        # Then
        verdict = claim(store, STRANGER, checked=True, frees=True, awaited=FIRST)
        assert isinstance(verdict, Mismatch)

    def test_an_unknown_outcome_is_told_whatever_the_arguments(self, store: Store) -> None:
        """Nothing runs until it is resolved, and every call is told so."""
        # Given
        unknown(store)
        # Then
        assert isinstance(claim(store, STRANGER, checked=True, frees=True), Unknown)

    # --- who began ---

    def test_a_takeover_is_told_who_began(self, store: Store) -> None:
        """The first call since the last end stays known over every takeover, until the end."""
        # Given
        first = FIRST.owner.hex()
        interrupt(store, hold(store, FIRST, frees=True))
        # When
        second = claim(store, SECOND, nonce=b"second", frees=True)
        # Then
        assert isinstance(second, Claimed)
        assert (second.origin, second.interruptions) == (first, 1)
        assert claim(store, SECOND, nonce=b"second", frees=True) == second
        # When
        held = replace(SECOND.candidate(b"second"), token=second.token, label=stored(store).label)
        retry(store, held)
        again = claim(store, SECOND.retried(), nonce=b"again", frees=True)
        # Then
        assert isinstance(again, Claimed)
        assert again.origin == first
        # When: the call that began takes over, and then another one
        store.end_lease(KEY, SECOND.owner, PROCESS)
        mine = claim(store, FIRST, frees=True, nonce=b"mine")
        store.end_lease(KEY, FIRST.owner, PROCESS)
        third = claim(store, THIRD, frees=True)
        # Then
        assert isinstance(mine, Claimed)
        assert isinstance(third, Claimed)
        assert (mine.origin, third.origin) == ("", first)

    def test_an_end_lets_the_next_call_begin(self, store: Store) -> None:
        """After each end, also without an outcome, the next call is the first."""
        # Given
        _end(store, hold(store, FIRST, frees=True))
        # Then
        second = claim(store, SECOND, frees=True, nonce=b"second")
        assert isinstance(second, Claimed)
        assert second.origin == ""
        # When
        release(store, replace(SECOND.candidate(b"second"), token=second.token), SECOND)
        third = claim(store, THIRD, frees=True)
        # Then
        assert isinstance(third, Claimed)
        assert third.origin == ""

    def test_a_claim_that_was_given_up_does_not_hide_who_began(self, store: Store) -> None:
        """Its body never ran: the run before it was cut off all the same."""
        # Given
        interrupt(store, hold(store, FIRST, frees=True))
        given_up = FIRST.candidate(b"given up")
        assert isinstance(claim(store, FIRST, nonce=b"given up", frees=True), Claimed)
        # When
        store.abandon(KEY, given_up, HORIZON_MS)
        verdict = claim(store, SECOND, frees=True)
        # Then
        assert isinstance(verdict, Claimed)
        assert verdict.origin == FIRST.owner.hex()

    def test_a_forgotten_key_is_begun_anew(self, store: Store) -> None:
        """Nothing is known of who had it."""
        # Given
        hold(store, FIRST, frees=True)
        store.forget(KEY, HORIZON_MS)
        # When
        verdict = claim(store, SECOND, frees=True)
        # Then
        assert isinstance(verdict, Claimed)
        assert verdict.origin == ""

    def test_with_a_window_nobody_asks_who_began(self, store: Store) -> None:
        """The key itself says which call it is."""
        # Given
        interrupt(store, hold(store, FIRST))
        # When
        verdict = claim(store, SECOND)
        # Then
        assert isinstance(verdict, Claimed)
        assert verdict.origin == ""
        assert Label.of(stored(store)).origin == ""

    def test_the_outcome_lives_for_the_horizon(self, store: Store, clock: StoreClock) -> None:
        """Copies may come for that long; then nothing is left."""
        # Given
        _end(store, hold(store, FIRST, frees=True))
        assert lives_ms(store) <= HORIZON_MS < KEEP_MS + HORIZON_MS
        # When
        clock.advance(HORIZON_MS)
        # Then
        assert isinstance(claim(store, FIRST, frees=True), Claimed)


def _end(
    store: Store,
    held: Record,
    outcome: bytes = RESULT,
    *,
    delivery_ms: int = 0,
    answers: Message | None = FIRST,
) -> Recorded | Lost:
    """Let a run end as with a window of 0; ``answers``: whose message it was."""
    return settle(
        store,
        held,
        State.RELEASED,
        delivery_ms,
        HORIZON_MS,
        answers=answers,
        clears_steps=True,
        outcome=outcome,
        process=PROCESS if delivery_ms else b"",
    )
