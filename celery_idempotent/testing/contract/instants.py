"""What only time decides while a key is held: leases and back-offs, at the instant and before."""

from __future__ import annotations

import pytest

from celery_idempotent.core.record import State
from celery_idempotent.core.verdicts import Busy, Claimed, Recorded, Resolve, Superseded, Unknown
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract.kit import (
    FIRST,
    HORIZON_MS,
    KEY,
    LEASE_MS,
    RESULT,
    SECOND,
    STRANGER,
    Ending,
    Message,
    StoreClock,
    claim,
    compensate,
    complete,
    fail,
    hold,
    release,
    release_failed,
    renew,
    replace,
    retry,
    stored,
    unknown,
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

    def test_a_compensation_has_a_lease(self, store: Store, clock: StoreClock) -> None:
        """A millisecond before its end others wait; at its end the next one goes on with it."""
        # Given
        compensate(store, hold(store, FIRST))
        # When
        clock.advance(LEASE_MS - 1)
        # Then
        assert isinstance(claim(store, SECOND), Busy)
        # When
        clock.advance(1)
        # Then
        verdict = claim(store, SECOND)
        assert isinstance(verdict, Claimed)
        assert verdict.failed == stored(store)
        assert verdict.token == clock.now_us()
        assert stored(store).until_ms == clock.now_us() // 1000 + LEASE_MS

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

    @pytest.mark.parametrize("ending", [release, release_failed, renew])
    def test_tokens_are_the_clock_where_it_is_ahead(
        self, store: Store, clock: StoreClock, ending: Ending
    ) -> None:
        """A token tells when its claim was made, also where there was one before."""
        # Given
        ending(store, hold(store, FIRST))
        # When
        clock.advance(LEASE_MS)
        # Then
        assert hold(store, SECOND).token == clock.now_us()
        clock.advance(1)
        store.forget(KEY, HORIZON_MS)
        assert stored(store).token == clock.now_us()

    def test_a_persons_word_has_a_token_of_its_time(self, store: Store, clock: StoreClock) -> None:
        """An unknown outcome that is resolved gets a token as a claim does."""
        # Given
        unknown(store)
        # When
        clock.advance(HOUR_MS)
        store.resolve(KEY, Resolve(State.SUCCEEDED, RESULT, HORIZON_MS))
        # Then
        assert stored(store).token == clock.now_us()

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
