"""After the outcome: delivery leases, the notes of callbacks, and what a dead process held."""

from __future__ import annotations

import pytest

from celery_idempotent.core.record import State
from celery_idempotent.core.verdicts import Busy, Claimed, Recorded, Replay, Superseded
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract.kit import (
    FIRST,
    HORIZON_MS,
    KEY,
    LEASE_MS,
    OTHER_PROCESS,
    OUTCOMES,
    PROCESS,
    SECOND,
    TTL_MS,
    Ending,
    about,
    claim,
    complete,
    fail,
    hold,
    interrupt,
    lives_ms,
    note,
    release,
    release_failed,
    renew,
    replace,
    retry,
    settle,
    stored,
)

#: The endings that an owner with callbacks follows up with a delivery lease.
DELIVERED = {"complete": complete, "fail": fail, "release after a failure": release_failed}


class DeliveryRows:
    """The owner of a message with callbacks holds a delivery lease until their note is set."""

    @pytest.mark.parametrize("name", DELIVERED)
    def test_the_owners_copy_waits_for_a_delivery(self, store: Store, name: str) -> None:
        """While the first delivery may still send the callbacks, the second one waits."""
        # Given
        DELIVERED[name](store, hold(store, FIRST, noted=True), delivery_ms=LEASE_MS)
        before = stored(store)
        # When
        verdict = claim(store, FIRST, noted=True)
        # Then
        assert isinstance(verdict, Busy)
        assert verdict.mine
        assert before.until_ms > verdict.now_ms
        assert stored(store) == replace(before, is_awaited=True)

    @pytest.mark.parametrize("name", OUTCOMES)
    def test_others_do_not_wait_for_a_delivery(self, store: Store, name: str) -> None:
        """A duplicate gets the outcome at once: its callbacks are its own."""
        # Given
        DELIVERED[name](store, hold(store, FIRST, noted=True), delivery_ms=LEASE_MS)
        before = stored(store)
        # Then
        assert claim(store, SECOND, noted=True) == Replay(before, False, False)
        assert stored(store) == before

    def test_the_next_call_does_not_wait_for_a_failures_delivery(self, store: Store) -> None:
        """Released after a failure, its errbacks on their way: another task id begins anew."""
        # Given
        release_failed(store, hold(store, FIRST, noted=True), delivery_ms=LEASE_MS)
        # Then
        assert isinstance(claim(store, SECOND), Claimed)

    @pytest.mark.parametrize("name", DELIVERED)
    def test_the_note_ends_the_delivery(self, store: Store, name: str) -> None:
        """Noted: the lease is over, and the owner's copy learns that nothing is left to send."""
        # Given
        held = hold(store, FIRST, noted=True)
        answer = DELIVERED[name](store, held, delivery_ms=LEASE_MS)
        assert isinstance(answer, Recorded)
        before = stored(store)
        # When
        note(store, FIRST, answer.token)
        # Then
        record = stored(store)
        assert record == replace(before, until_ms=0, process=b"", nonce=b"")
        assert claim(store, FIRST, noted=True) == Replay(record, True, True)
        assert stored(store) == record

    def test_the_note_ends_a_new_delivery(self, store: Store) -> None:
        """What a later delivery held is dropped as well: the record is as it was completed."""
        # Given
        held = hold(store, FIRST, noted=True)
        complete(store, held)
        before = stored(store)
        assert isinstance(claim(store, FIRST, noted=True), Replay)
        # When
        note(store, FIRST, held.token)
        # Then
        assert stored(store) == before

    def test_a_delivery_ends_without_a_note(self, store: Store) -> None:
        """The callbacks could not be sent: the lease ends, and the next delivery sends them."""
        # Given
        held = hold(store, FIRST, noted=True)
        complete(store, held, delivery_ms=LEASE_MS)
        # When
        note(store, FIRST, held.token, sent=False)
        # Then
        assert stored(store).until_ms == 0
        verdict = claim(store, FIRST, noted=True)
        assert isinstance(verdict, Replay)
        assert not verdict.noted

    def test_another_runs_note_ends_no_delivery(self, store: Store) -> None:
        """The note of an older run is set, and leaves the delivery lease of this one."""
        # Given
        held = hold(store, FIRST, noted=True)
        complete(store, held, delivery_ms=LEASE_MS)
        before = stored(store)
        # When
        note(store, FIRST, held.token - 1)
        # Then
        assert stored(store) == before

    @pytest.mark.parametrize("ending", [renew, retry, release])
    def test_a_note_changes_no_record_without_a_delivery(
        self, store: Store, ending: Ending
    ) -> None:
        """Where there is no outcome, or no delivery lease, only the note is set."""
        # Given
        held = hold(store, FIRST, noted=True)
        ending(store, held)
        before = stored(store)
        # When
        note(store, FIRST, held.token)
        # Then
        assert stored(store) == before

    def test_a_noted_copy_is_superseded_once_the_owner_moved(self, store: Store) -> None:
        """All of it is done: where another call owns the key, or none, the copy has no business."""
        # Given
        note(store, FIRST)
        # Then
        assert claim(store, FIRST, noted=True) == Superseded()
        assert store.get(KEY) is None
        hold(store, SECOND, noted=True)
        assert claim(store, FIRST, noted=True) == Superseded()

    def test_a_note_is_its_messages_own(self, store: Store) -> None:
        """Each task id has its note: that of another message says nothing."""
        # Given
        note(store, FIRST)
        # Then
        assert isinstance(claim(store, SECOND, noted=True), Claimed)

    def test_a_noted_owner_still_waits_for_its_run(self, store: Store) -> None:
        """A note changes nothing for the message that owns the key."""
        # Given
        hold(store, FIRST, noted=True)
        note(store, FIRST)
        # When
        verdict = claim(store, FIRST, noted=True)
        # Then
        assert isinstance(verdict, Busy)
        assert verdict.mine

    def test_a_new_delivery_holds_a_lease_of_its_own(self, store: Store) -> None:
        """The owner's copy that finds callbacks unsent sends them alone, under a new lease."""
        # Given
        complete(store, hold(store, FIRST, noted=True))
        before = stored(store)
        # When
        verdict = claim(store, FIRST, nonce=b"second", noted=True)
        # Then
        record = stored(store)
        assert verdict == Replay(record, True, False)
        assert record.until_ms > 0
        nonce = FIRST.candidate(b"second").nonce
        assert record == replace(before, until_ms=record.until_ms, process=PROCESS, nonce=nonce)
        assert isinstance(claim(store, FIRST, noted=True), Busy)
        assert lives_ms(store) == about(TTL_MS)

    def test_a_new_delivery_that_is_repeated_is_the_same(self, store: Store) -> None:
        """The same nonce gets the same delivery lease again: the answer was lost."""
        # Given
        complete(store, hold(store, FIRST, noted=True))
        verdict = claim(store, FIRST, nonce=b"second", noted=True)
        # Then
        assert claim(store, FIRST, nonce=b"second", noted=True) == verdict

    def test_a_new_delivery_that_was_given_up_is_undone(self, store: Store) -> None:
        """Its lease ends, and the next copy sends the callbacks."""
        # Given
        complete(store, hold(store, FIRST, noted=True))
        claim(store, FIRST, nonce=b"second", noted=True)
        # When
        store.abandon(KEY, FIRST.candidate(b"second"), HORIZON_MS)
        # Then
        assert isinstance(claim(store, FIRST, nonce=b"second", noted=True), Busy)
        assert isinstance(claim(store, FIRST, nonce=b"third", noted=True), Replay)
        assert lives_ms(store) == about(TTL_MS)

    def test_giving_up_leaves_another_delivery_alone(self, store: Store) -> None:
        """Only the delivery with that nonce is undone."""
        # Given
        complete(store, hold(store, FIRST, noted=True))
        claim(store, FIRST, nonce=b"second", noted=True)
        before = stored(store)
        # When
        store.abandon(KEY, FIRST.candidate(b"third"), HORIZON_MS)
        # Then
        assert replace(stored(store), given_up=b"") == before

    def test_no_lease_where_there_are_no_callbacks(self, store: Store) -> None:
        """A replay to a message without callbacks leaves the record as it is."""
        # Given
        complete(store, hold(store, FIRST))
        before = stored(store)
        # Then
        assert claim(store, FIRST) == Replay(before, True, False)
        assert stored(store) == before

    def test_a_delivery_is_kept_by_its_heartbeat(self, store: Store) -> None:
        """Renewing prolongs a delivery lease, and leaves the window as it is."""
        # Given
        held = hold(store, FIRST, noted=True)
        complete(store, held, delivery_ms=1_000)
        before = stored(store)
        # When
        answer = renew(store, before)
        # Then
        assert answer == Recorded(held.token)
        assert stored(store).until_ms > before.until_ms
        assert replace(stored(store), until_ms=before.until_ms) == before
        assert lives_ms(store) == about(TTL_MS)


class DeadProcessRows:
    """``end_lease``: what a process held that is known to be dead ends at once."""

    def test_a_dead_process_holds_nothing(self, store: Store) -> None:
        """Its lease ends, and the next one takes over without waiting: an interruption."""
        # Given
        held = hold(store, FIRST)
        # When
        ended = store.end_lease(KEY, FIRST.owner, PROCESS)
        # Then
        assert ended
        record = stored(store)
        assert replace(record, until_ms=0) == replace(held, nonce=b"")
        verdict = claim(store, SECOND)
        assert isinstance(verdict, Claimed)
        assert verdict.interruptions == 1

    def test_only_what_that_process_held_for_that_message(self, store: Store) -> None:
        """Another message, or another process with the same host name and pid: nothing ends."""
        # Given
        hold(store, FIRST)
        before = stored(store)
        # Then
        assert not store.end_lease(KEY, SECOND.owner, PROCESS)
        assert not store.end_lease(KEY, replace(FIRST, nesting=1).owner, PROCESS)
        assert not store.end_lease(KEY, FIRST.owner, OTHER_PROCESS)
        assert stored(store) == before

    def test_what_is_over_does_not_end_again(self, store: Store) -> None:
        """There is nothing to end of a lease that has ended."""
        # Given
        interrupt(store, hold(store, FIRST))
        before = stored(store)
        # Then
        assert not store.end_lease(KEY, FIRST.owner, PROCESS)
        assert stored(store) == before

    @pytest.mark.parametrize("state", [State.RETRYING, State.UNKNOWN], ids=["retrying", "unknown"])
    def test_what_no_process_holds_does_not_end(self, store: Store, state: State) -> None:
        """A back-off goes on, and an unknown outcome stays so, whoever dies."""
        # Given
        settle(store, hold(store, FIRST), state, 60_000, TTL_MS, process=PROCESS)
        before = stored(store)
        # Then
        assert not store.end_lease(KEY, FIRST.owner, PROCESS)
        assert stored(store) == before

    def test_an_absent_record_has_nothing_to_end(self, store: Store) -> None:
        """Without a record nothing ends, and none comes into being."""
        # Then
        assert not store.end_lease(KEY, FIRST.owner, PROCESS)
        assert store.get(KEY) is None

    def test_a_dead_process_delivers_nothing(self, store: Store) -> None:
        """Its delivery lease ends: the next copy sends the callbacks; the outcome stays."""
        # Given
        complete(store, hold(store, FIRST, noted=True), delivery_ms=LEASE_MS)
        # When
        ended = store.end_lease(KEY, FIRST.owner, PROCESS)
        # Then
        assert ended
        verdict = claim(store, FIRST, noted=True)
        assert isinstance(verdict, Replay)
        assert not verdict.noted
        assert lives_ms(store) == about(TTL_MS)

    def test_a_delivery_that_was_given_up_leaves_no_process(self, store: Store) -> None:
        """What it held is dropped from the record, but for the nonce that keeps it out."""
        # Given
        complete(store, hold(store, FIRST, noted=True))
        before = stored(store)
        claim(store, FIRST, nonce=b"second", noted=True)
        # When
        store.abandon(KEY, FIRST.candidate(b"second"), HORIZON_MS)
        # Then
        left = replace(stored(store), given_up=b"")
        assert left == replace(before, nonce=FIRST.candidate(b"second").nonce)
