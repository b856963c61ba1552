"""What only time decides: leases, back-offs, notes, records; at the instant and just before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_idempotent.core.record import State
from celery_idempotent.core.transitions import (
    Busy,
    Claimed,
    Recorded,
    Replay,
    Superseded,
    Unknown,
)
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
    Message,
    StoreClock,
    claim,
    complete,
    fail,
    hold,
    lives_ms,
    release,
    release_failed,
    renew,
    retry,
    stored,
)

HOUR_MS = 3_600_000


class InstantRows:
    """A lease that ends at ``t`` is live at ``t - 1 ms`` and over at ``t``; so is all else."""

    def test_a_token_is_the_stores_clock(self, store: Store, clock: StoreClock) -> None:
        """The first token is the store's microseconds, and the lease runs from the same instant."""
        # Given
        now_us = clock.now_us()
        # When
        held = hold(store, FIRST)
        # Then
        assert held.token == now_us
        assert stored(store) == replace(held, until_ms=now_us // 1000 + LEASE_MS)

    @pytest.mark.parametrize("message", [FIRST, SECOND], ids=["its own copy", "another call"])
    def test_a_lease_ends(self, store: Store, clock: StoreClock, message: Message) -> None:
        """A millisecond before its end a lease is live; at its end the next one takes over."""
        # Given
        held = hold(store, FIRST)
        # When
        clock.advance(LEASE_MS - 1)
        # Then
        assert isinstance(claim(store, message), Busy)
        # When
        clock.advance(1)
        # Then
        verdict = claim(store, message)
        assert isinstance(verdict, Claimed)
        assert verdict.interruptions == 1
        assert verdict.token > held.token

    def test_its_own_retry_waits_for_the_lease(self, store: Store, clock: StoreClock) -> None:
        """More retries steal no live lease, and count no interruption once it is over."""
        # Given
        hold(store, FIRST)
        # When
        clock.advance(LEASE_MS - 1)
        # Then
        assert isinstance(claim(store, FIRST.retried()), Busy)
        # When
        clock.advance(1)
        # Then
        verdict = claim(store, FIRST.retried())
        assert isinstance(verdict, Claimed)
        assert verdict.interruptions == 0

    def test_an_old_copy_never_runs(self, store: Store, clock: StoreClock) -> None:
        """Fewer retries are superseded before the lease's end and after it."""
        # Given
        hold(store, FIRST.retried())
        # Then
        clock.advance(LEASE_MS - 1)
        assert claim(store, FIRST) == Superseded()
        clock.advance(1)
        assert claim(store, FIRST) == Superseded()

    def test_a_renewed_lease_runs_from_then(self, store: Store, clock: StoreClock) -> None:
        """A heartbeat prolongs the lease from the instant at which it arrives."""
        # Given
        held = hold(store, FIRST)
        clock.advance(LEASE_MS - 1)
        # When
        renew(store, held)
        # Then
        clock.advance(LEASE_MS - 1)
        assert isinstance(claim(store, SECOND), Busy)
        clock.advance(1)
        assert isinstance(claim(store, SECOND), Claimed)

    def test_a_lease_that_is_over_can_be_renewed(self, store: Store, clock: StoreClock) -> None:
        """A heartbeat that comes too late counts, where nobody took over."""
        # Given
        held = hold(store, FIRST)
        clock.advance(LEASE_MS + 1)
        # Then
        assert renew(store, held) == Recorded(held.token)
        assert isinstance(claim(store, SECOND), Busy)

    @pytest.mark.parametrize("ending", [complete, fail, retry, release, release_failed])
    def test_a_run_may_outlive_its_lease(
        self, store: Store, clock: StoreClock, ending: Ending
    ) -> None:
        """An end that comes after the lease's is accepted, where nobody took over."""
        # Given
        held = hold(store, FIRST)
        clock.advance(LEASE_MS + 1)
        # Then
        assert isinstance(ending(store, held), Recorded)

    def test_a_poison_task_stops_killing_workers(self, store: Store, clock: StoreClock) -> None:
        """Three takeovers at most by default, then the outcome is unknown."""
        # Given
        held = hold(store, FIRST)
        for number in (1, 2, 3):
            clock.advance(LEASE_MS)
            held = hold(store, FIRST)
            assert held.interruptions == number
        # When
        clock.advance(LEASE_MS)
        # Then
        assert isinstance(claim(store, SECOND), Unknown)
        assert stored(store) == replace(
            held, state=State.UNKNOWN, until_ms=0, interruptions=4, nonce=b""
        )

    def test_a_mismatch_outlasts_the_lease(self, store: Store, clock: StoreClock) -> None:
        """A checked call with other arguments is refused whether the lease is live or over."""
        # Given
        hold(store, FIRST)
        # When
        clock.advance(LEASE_MS)
        # Then
        assert not isinstance(claim(store, STRANGER, checked=True), Claimed | Busy)

    # --- the clock itself ---

    def test_tokens_rise_where_the_clock_goes_back(self, store: Store, clock: StoreClock) -> None:
        """While a record is left, its next token is higher, whatever the clock says."""
        # Given
        held = hold(store, FIRST)
        release(store, held)
        # When
        clock.advance(-HOUR_MS)
        # Then
        second = hold(store, SECOND)
        assert second.token > held.token + 1 > clock.now_us()
        store.forget(KEY, HORIZON_MS)
        assert hold(store, FIRST).token > second.token + 1

    def test_a_clock_that_jumps_ahead_only_takes_over_early(
        self, store: Store, clock: StoreClock
    ) -> None:
        """An early takeover: the first run is refused, and the tokens are in order."""
        # Given
        zombie = hold(store, FIRST)
        # When
        clock.advance(HOUR_MS // 2)
        winner = hold(store, SECOND)
        # Then
        assert winner.token > zombie.token
        assert not isinstance(complete(store, zombie), Recorded)
        assert isinstance(complete(store, winner), Recorded)

    def test_the_same_claim_is_still_its_own_later(self, store: Store, clock: StoreClock) -> None:
        """A repeated claim gets its token as long as nobody took over, and then no more."""
        # Given
        held = hold(store, FIRST, nonce=b"nonce")
        # When
        clock.advance(LEASE_MS)
        # Then
        assert claim(store, FIRST, nonce=b"nonce") == Claimed(held.token, 0)
        hold(store, SECOND)
        assert isinstance(claim(store, FIRST, nonce=b"nonce"), Busy)

    # --- retrying ---

    def test_a_lost_retry_frees_the_key(self, store: Store, clock: StoreClock) -> None:
        """Another call waits until the retry is due, and a lease longer; then it begins anew."""
        # Given
        held = hold(store, FIRST)
        retry(store, held, delay_ms=60_000)
        # When
        clock.advance(60_000 + LEASE_MS - 1)
        # Then
        assert isinstance(claim(store, SECOND), Busy)
        # When
        clock.advance(1)
        # Then
        verdict = claim(store, SECOND)
        assert isinstance(verdict, Claimed)
        assert verdict.interruptions == 0
        assert verdict.token > held.token

    @pytest.mark.parametrize("passed_ms", [0, 60_000, 60_000 + LEASE_MS])
    def test_the_owners_retry_runs_whenever_it_comes(
        self, store: Store, clock: StoreClock, passed_ms: int
    ) -> None:
        """Early, due or late: the owner's retry gets the key, and its old copy never."""
        # Given
        retry(store, hold(store, FIRST), delay_ms=60_000)
        # When
        clock.advance(passed_ms)
        # Then
        assert claim(store, FIRST) == Superseded()
        assert isinstance(claim(store, FIRST.retried()), Claimed)

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
        store.note(KEY, held.token - 1, FIRST.note, HORIZON_MS)
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
        store.note(KEY, 0, FIRST.note, HORIZON_MS)
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
