"""The mark that somebody waits for a run: who sets it, and what ends with the run."""

from __future__ import annotations

import time

import pytest

from celery_idempotent.core.record import State
from celery_idempotent.core.verdicts import Busy, Resolve
from celery_idempotent.stores.base import Store, Subscription
from celery_idempotent.testing.contract.kit import (
    FIRST,
    HORIZON_MS,
    KEY,
    LEASE_MS,
    OUTCOMES,
    PROCESS,
    SECOND,
    THIRD,
    Ending,
    claim,
    compensate,
    complete,
    fail,
    hold,
    interrupt,
    note,
    release,
    release_failed,
    renew,
    retry,
    step,
    stored,
)

#: What keeps those who wait waiting.
GOING_ON: dict[str, Ending] = {
    "renew": renew,
    "retry": retry,
    "step": step,
    "compensate": compensate,
}
#: What lets them go on.
OVER: dict[str, Ending] = {
    "complete": complete,
    "fail": fail,
    "release": release,
    "release after a failure": release_failed,
    "interrupt": interrupt,
}


def _each(endings: dict[str, Ending]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("ending", endings.values(), ids=endings.keys())


class AwaitedRows:
    """A busy claim marks the record; the mark goes when nobody has to wait any more."""

    def test_a_claim_marks_nothing(self, store: Store) -> None:
        """A run that nobody waits for has nobody to tell."""
        hold(store, FIRST)
        assert not stored(store).is_awaited

    @pytest.mark.parametrize("message", [FIRST, SECOND], ids=["a copy", "another call"])
    def test_a_busy_claim_marks_the_record_and_says_so(self, store: Store, message: object) -> None:
        """Nothing else of the record changes."""
        # Given
        hold(store, FIRST)
        before = stored(store)
        # When
        verdict = claim(store, message)  # type: ignore[arg-type]
        # Then
        assert isinstance(verdict, Busy)
        assert verdict.record == stored(store) == before._replace(is_awaited=True)

    def test_a_second_busy_claim_changes_nothing(self, store: Store) -> None:
        """The record stays as the first one marked it."""
        # Given
        hold(store, FIRST)
        claim(store, SECOND)
        before = stored(store)
        # When
        verdict = claim(store, THIRD)
        # Then
        assert isinstance(verdict, Busy)
        assert verdict.record == stored(store) == before

    @_each(GOING_ON)
    def test_the_mark_stays_as_long_as_the_run_goes_on(self, store: Store, ending: Ending) -> None:
        """Whoever waits waits on: a renewal, a step, a retry and a compensation tell nothing."""
        # Given
        held = hold(store, FIRST)
        claim(store, SECOND)
        # When
        ending(store, held)
        # Then
        assert stored(store).is_awaited

    def test_the_mark_stays_when_a_retry_begins(self, store: Store) -> None:
        """Nobody was told anything in between."""
        # Given
        held = hold(store, FIRST)
        claim(store, SECOND)
        retry(store, held)
        # When
        hold(store, FIRST.retried())
        # Then
        assert stored(store).is_awaited

    @_each(OVER)
    def test_the_mark_goes_with_the_end_of_the_run(self, store: Store, ending: Ending) -> None:
        """They were told, and the next run has nobody waiting."""
        # Given
        held = hold(store, FIRST)
        claim(store, SECOND)
        # When
        ending(store, held)
        # Then
        assert not stored(store).is_awaited

    def test_the_mark_goes_with_the_lease_of_a_dead_process(self, store: Store) -> None:
        """The worker's parent frees the key, and those who wait are told."""
        # Given
        held = hold(store, FIRST)
        claim(store, SECOND)
        # When
        store.end_lease(KEY, held.owner, PROCESS)
        # Then
        assert not stored(store).is_awaited

    def test_the_mark_goes_with_a_claim_that_is_given_up(self, store: Store) -> None:
        """Its body never ran, and the key is free."""
        # Given
        candidate = FIRST.candidate(b"the nonce")
        hold(store, FIRST, nonce=b"the nonc")
        claim(store, SECOND)
        # When
        store.abandon(KEY, candidate._replace(nonce=b"the nonc"), HORIZON_MS)
        # Then
        assert stored(store).state is State.RELEASED
        assert not stored(store).is_awaited

    def test_the_mark_goes_with_a_key_that_is_forgotten(self, store: Store) -> None:
        """Whoever waits gets the key."""
        # Given
        hold(store, FIRST)
        claim(store, SECOND)
        # When
        store.forget(KEY, HORIZON_MS)
        # Then
        assert not stored(store).is_awaited

    def test_the_mark_goes_when_the_outcome_becomes_unknown(self, store: Store) -> None:
        """Whoever waits is told that nobody knows."""
        # Given
        held = hold(store, FIRST)
        claim(store, SECOND)
        interrupt(store, held)
        hold(store, THIRD)
        claim(store, SECOND)
        interrupt(store, stored(store))
        # When
        claim(store, SECOND, max_interruptions=0)
        # Then
        assert stored(store).state is State.UNKNOWN
        assert not stored(store).is_awaited
        # And a resolution has nobody to tell.
        assert store.resolve(KEY, Resolve(State.RELEASED, b"", HORIZON_MS))
        assert not stored(store).is_awaited

    @_each(OUTCOMES)
    def test_a_copy_waits_for_a_delivery_lease(self, store: Store, ending: Ending) -> None:
        """The note ends it, and with it the mark."""
        # Given
        held = hold(store, FIRST)
        ending(store, held, delivery_ms=LEASE_MS)  # type: ignore[call-arg]
        assert isinstance(claim(store, FIRST), Busy)
        assert stored(store).is_awaited
        # When
        renew(store, held)
        # Then
        assert stored(store).is_awaited
        # When
        note(store, FIRST, held.token)
        # Then
        assert not stored(store).is_awaited

    def test_nobody_else_waits_for_a_delivery_lease(self, store: Store) -> None:
        """The outcome is there: the others are told at once, and its own copies after the note."""
        # Given
        held = hold(store, FIRST)
        claim(store, SECOND)
        # When
        complete(store, held, delivery_ms=LEASE_MS)
        # Then
        assert not stored(store).is_awaited

    def test_the_end_is_told_to_those_who_listen(self, store: Store) -> None:
        """Where the store tells it at all; a run that nobody waits for is not told of."""
        # Given
        subscription = store.subscribe()
        if subscription is None:
            return
        subscription.follow([KEY])
        _heard(subscription, until=False)
        complete(store, hold(store, FIRST))
        store.forget(KEY, HORIZON_MS)
        assert not _heard(subscription, until=False)
        # When
        held = hold(store, FIRST)
        claim(store, SECOND)
        renew(store, held)
        assert not _heard(subscription, until=False)
        complete(store, held)
        # Then
        assert _heard(subscription, until=True)
        # When nobody listens for it any more
        subscription.check()
        subscription.unfollow([KEY])
        store.forget(KEY, HORIZON_MS)
        hold(store, FIRST)
        claim(store, SECOND)
        store.forget(KEY, HORIZON_MS)
        # Then
        assert not _heard(subscription, until=False)
        subscription.close()


def _heard(subscription: Subscription, *, until: bool) -> bool:
    """Whether something is heard: at once, or in the end."""
    deadline = time.monotonic() + (10.0 if until else 0.05)
    while time.monotonic() < deadline:
        if subscription.read():
            return True
        time.sleep(0.01)
    return False


class AwaitedInTimeRows:
    """A lease that runs out tells nobody anything."""

    def test_the_mark_stays_when_a_lease_is_over(self, store: Store, clock: object) -> None:
        """Who takes over runs for those who wait, too."""
        # Given
        hold(store, FIRST)
        claim(store, SECOND)
        clock.advance(LEASE_MS)  # type: ignore[attr-defined]
        # When
        hold(store, THIRD)
        # Then
        assert stored(store).is_awaited

    def test_a_late_end_tells_those_who_wait(self, store: Store, clock: object) -> None:
        """Nobody had taken over."""
        # Given
        held = hold(store, FIRST)
        claim(store, SECOND)
        clock.advance(LEASE_MS)  # type: ignore[attr-defined]
        # When
        complete(store, held)
        # Then
        assert not stored(store).is_awaited
