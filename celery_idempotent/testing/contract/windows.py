"""How long deliveries, notes and records last: at the instant, and just before it."""

from __future__ import annotations

import pytest

from celery_idempotent.core.verdicts import Busy, Claimed, Recorded, Replay, Superseded
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract.kit import (
    FIRST,
    HORIZON_MS,
    KEEP_MS,
    KEY,
    LEASE_MS,
    RESULT,
    SECOND,
    STRANGER,
    TTL_MS,
    Ending,
    StoreClock,
    claim,
    complete,
    fail,
    hold,
    lives_ms,
    note,
    release,
    release_failed,
    renew,
    retry,
    stored,
)

HOUR_MS = 3_600_000


class WindowRows:
    """What is over at ``t`` is there at ``t - 1 ms``."""

    # --- deliveries and notes ---

    def test_a_delivery_lease_ends(self, store: Store, clock: StoreClock) -> None:
        """Live: the owner's copy waits. Over: it sends the callbacks, under a lease of its own."""
        # Given
        complete(store, hold(store, FIRST, noted=True), delivery_ms=LEASE_MS)
        # When
        clock.advance(LEASE_MS - 1)
        # Then
        assert isinstance(claim(store, FIRST, noted=True), Busy)
        # When
        clock.advance(1)
        verdict = claim(store, FIRST, noted=True)
        # Then
        assert isinstance(verdict, Replay)
        assert not verdict.noted
        assert verdict.record.outcome == RESULT
        assert stored(store).until_ms == clock.now_us() // 1000 + LEASE_MS
        assert isinstance(claim(store, FIRST, noted=True), Busy)

    def test_no_delivery_lease_where_it_is_noted(self, store: Store, clock: StoreClock) -> None:
        """Nothing is left to send: the copy is answered, and holds nothing."""
        # Given
        held = hold(store, FIRST, noted=True)
        complete(store, held, delivery_ms=LEASE_MS)
        note(store, FIRST, held.token - 1)
        clock.advance(LEASE_MS)
        before = stored(store)
        # Then
        assert claim(store, FIRST, noted=True) == Replay(before, True, True)
        assert stored(store) == before

    def test_a_delivery_lease_without_callbacks_just_ends(
        self, store: Store, clock: StoreClock
    ) -> None:
        """A copy that carries no callbacks waits too, and then takes no lease."""
        # Given
        complete(store, hold(store, FIRST, noted=True), delivery_ms=LEASE_MS)
        # When
        clock.advance(LEASE_MS)
        # Then
        before = stored(store)
        assert claim(store, FIRST) == Replay(before, True, False)
        assert stored(store) == before

    def test_a_note_is_forgotten(self, store: Store, clock: StoreClock) -> None:
        """A note lives as long as copies of its message may come, and not longer."""
        # Given
        hold(store, SECOND, keep_ms=TTL_MS, lease_ms=TTL_MS)
        note(store, FIRST)
        # When
        clock.advance(HORIZON_MS - 1)
        # Then
        assert claim(store, FIRST, noted=True) == Superseded()
        # When
        clock.advance(1)
        # Then
        assert isinstance(claim(store, FIRST, noted=True), Busy)

    # --- records ---

    @pytest.mark.parametrize(
        ("ending", "lives"),
        [
            (renew, KEEP_MS),
            (retry, 60_000 + KEEP_MS),
            (complete, TTL_MS),
            (fail, TTL_MS),
            (release, HORIZON_MS),
            (release_failed, HORIZON_MS),
        ],
    )
    def test_a_record_ends(
        self, store: Store, clock: StoreClock, ending: Ending, lives: int
    ) -> None:
        """A record is there a millisecond before its end, and gone at it: the key is new."""
        # Given
        ending(store, hold(store, FIRST))
        assert lives_ms(store) == lives
        # When
        clock.advance(lives - 1)
        # Then
        assert stored(store).owner == FIRST.owner
        assert lives_ms(store) == 1
        # When
        clock.advance(1)
        # Then
        assert store.get(KEY) is None
        assert store.ttl(KEY) is None
        assert [*store.scan("*")] == []
        verdict = claim(store, STRANGER, checked=True)
        assert verdict == Claimed(clock.now_us(), 0)

    def test_the_window_runs_from_completion(self, store: Store, clock: StoreClock) -> None:
        """Duplicates in the window get the result, and prolong nothing."""
        # Given
        held = hold(store, FIRST)
        clock.advance(LEASE_MS - 1)
        complete(store, held)
        # When
        clock.advance(TTL_MS - 1)
        # Then
        assert isinstance(claim(store, SECOND), Replay)
        clock.advance(1)
        assert isinstance(claim(store, SECOND), Claimed)

    def test_a_heartbeat_keeps_an_unfinished_record(self, store: Store, clock: StoreClock) -> None:
        """An unfinished record lives from its last sign of life, however long the run takes."""
        # Given
        held = hold(store, FIRST)
        # When
        for _ in range(5):
            clock.advance(KEEP_MS - 1)
            renew(store, held)
        # Then
        assert lives_ms(store) == KEEP_MS
        assert stored(store).token == held.token

    def test_a_run_outlives_its_record(self, store: Store, clock: StoreClock) -> None:
        """The record ended before its run: nobody took over, and the completion is accepted."""
        # Given
        held = hold(store, FIRST)
        clock.advance(KEEP_MS)
        assert store.get(KEY) is None
        # Then
        assert complete(store, held) == Recorded(held.token)
        assert isinstance(claim(store, SECOND), Replay)
