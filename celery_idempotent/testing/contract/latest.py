"""Of those that wait, only the call that came last runs next; it answers those before it."""

from __future__ import annotations

from typing import Any

import pytest

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.reservation import queued_key
from celery_idempotent.core.verdicts import Busy, Claimed, ClaimVerdict, Replay, Resolve
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract.given_back import give_back
from celery_idempotent.testing.contract.kit import (
    FAILURE,
    FIRST,
    HORIZON_MS,
    KEEP_MS,
    KEY,
    LEASE_MS,
    RESULT,
    SECOND,
    THIRD,
    Message,
    StoreClock,
    claim,
    interrupt,
    leave_unknown,
    release,
    renew,
    replace,
    retry,
    settle,
    stored,
)

FOURTH = Message("0b9f5c3e-5d0f-4f5e-9d53-0d5a36a3a004")


def ask(store: Store, message: Message, since_ms: int = 0, **options: Any) -> ClaimVerdict:
    """Let a delivery of a task ask whose newest call is never lost."""
    return claim(
        store,
        message,
        frees=True,
        in_turn=True,
        latest=True,
        queued_key=queued_key(KEY),
        came_ms=since_ms,
        horizon_ms=HORIZON_MS,
        **options,
    )


def run(store: Store, message: Message, since_ms: int = 0) -> Record:
    """Let a call get the key; gives the record as its run knows it."""
    verdict = ask(store, message, since_ms, nonce=b"its run")
    assert isinstance(verdict, Claimed), verdict
    return replace(stored(store), token=verdict.token)


def wait(store: Store, message: Message, since_ms: int = 0) -> int:
    """Let a call find the key busy; gives since when it waits, as its message says from then on."""
    verdict = ask(store, message, since_ms)
    assert isinstance(verdict, Busy), verdict
    return since_ms or verdict.now_ms


def end(store: Store, held: Record, outcome: bytes = RESULT, message: Message = FIRST) -> None:
    """End a run: the key is free, and its outcome is for those that came before it."""
    settle(store, held, State.RELEASED, 0, HORIZON_MS, outcome=outcome, answers=message)


def next_up(store: Store) -> bytes:
    """Who runs next; empty: nobody waits."""
    found = store.reservation(KEY)
    return b"" if found is None else found.owner


class LatestRows:
    """One runs and one waits; a newer call takes the place of the one that waits."""

    def test_a_newer_call_takes_the_place(self, store: Store) -> None:
        """The first one to wait is displaced, whichever of them asks again."""
        # Given
        run(store, FIRST)
        second = wait(store, SECOND)
        assert next_up(store) == SECOND.owner
        # When
        third = wait(store, THIRD)
        # Then
        assert second < third
        assert next_up(store) == THIRD.owner
        wait(store, SECOND, second)
        wait(store, THIRD, third)
        assert next_up(store) == THIRD.owner

    @pytest.mark.parametrize("outcome", [RESULT, FAILURE])
    def test_who_waits_runs_after_the_run_that_it_found(self, store: Store, outcome: bytes) -> None:
        """It is not answered with that outcome: the run began before the call was made."""
        # Given
        held = run(store, FIRST)
        second = wait(store, SECOND)
        end(store, held, outcome)
        # Then
        run(store, SECOND, second)
        assert next_up(store) == b""

    def test_a_displaced_call_lets_the_newer_one_go_first(self, store: Store) -> None:
        """Though the key is free; then it gets the outcome of the newer one."""
        # Given
        held = run(store, FIRST)
        second, third = wait(store, SECOND), wait(store, THIRD)
        end(store, held)
        # When
        verdict = ask(store, SECOND, second)
        # Then
        assert isinstance(verdict, Busy)
        assert verdict.record.owner == THIRD.owner
        assert verdict.record.came_ms >= second
        # When
        held = run(store, THIRD, third)
        assert isinstance(ask(store, SECOND, second, awaited=THIRD), Busy)
        end(store, held, FAILURE, THIRD)
        # Then
        answer = ask(store, SECOND, second, awaited=THIRD)
        assert isinstance(answer, Replay)
        assert answer.record.outcome == FAILURE

    def test_a_displaced_call_is_answered_by_a_run_that_it_never_saw(self, store: Store) -> None:
        """It was late, and the newer one has run and ended meanwhile."""
        # Given
        held = run(store, FIRST)
        second, third = wait(store, SECOND), wait(store, THIRD)
        end(store, held)
        end(store, run(store, THIRD, third), message=THIRD)
        # Then
        answer = ask(store, SECOND, second)
        assert isinstance(answer, Replay)
        assert answer.record.owner == THIRD.owner

    def test_who_comes_while_the_key_is_free_displaces_who_waits(self, store: Store) -> None:
        """It came later, so it runs at once, and answers the one that waited."""
        # Given
        held = run(store, FIRST)
        second = wait(store, SECOND)
        end(store, held)
        # When
        held = run(store, THIRD)
        # Then
        assert next_up(store) == b""
        assert stored(store).came_ms > second
        verdict = ask(store, SECOND, second)
        assert isinstance(verdict, Busy)
        assert verdict.record.owner == THIRD.owner
        end(store, held, message=THIRD)
        assert isinstance(ask(store, SECOND, second), Replay)

    def test_when_a_call_came_stays_said(self, store: Store) -> None:
        """Where its message could not be put back, and comes as it was."""
        # Given
        run(store, FIRST)
        second, third = wait(store, SECOND), wait(store, THIRD)
        # Then
        assert wait(store, SECOND) == second
        assert wait(store, THIRD) == third
        assert next_up(store) == THIRD.owner

    def test_a_run_that_takes_over_its_own_does_not_get_newer(self, store: Store) -> None:
        """Who waits behind it runs after it, and is not answered."""
        # Given
        held = run(store, FIRST)
        second = wait(store, SECOND)
        interrupt(store, held)
        # When
        held = run(store, FIRST)
        # Then
        assert next_up(store) == SECOND.owner
        assert held.came_ms < second
        end(store, held)
        run(store, SECOND, second)

    def test_a_newer_call_takes_over(self, store: Store) -> None:
        """The one that was cut off is older, and gets the outcome when its message comes."""
        # Given
        held = run(store, FIRST)
        second = wait(store, SECOND)
        interrupt(store, held)
        # When
        held = run(store, SECOND, second)
        # Then
        waits = ask(store, FIRST)
        assert isinstance(waits, Busy)
        assert waits.now_ms < held.came_ms
        end(store, held, message=SECOND)
        assert isinstance(ask(store, FIRST), Replay)

    def test_an_older_call_that_takes_over_answers_nobody_newer(self, store: Store) -> None:
        """The newer one was cut off: it runs when its message comes."""
        # Given
        held = run(store, FIRST)
        second = wait(store, SECOND)
        end(store, held)
        interrupt(store, run(store, THIRD))
        # When
        held = run(store, SECOND, second)
        # Then
        wait(store, THIRD)
        end(store, held, message=SECOND)
        run(store, THIRD)

    def test_a_retry_keeps_the_place(self, store: Store) -> None:
        """Who waits goes on waiting until the retry has ended."""
        # Given
        held = run(store, FIRST)
        second = wait(store, SECOND)
        retry(store, held, 0)
        # Then
        wait(store, SECOND, second)
        held = run(store, FIRST.retried())
        assert next_up(store) == SECOND.owner
        end(store, held)
        run(store, SECOND, second)

    def test_a_run_without_an_outcome_lets_the_displaced_run(self, store: Store) -> None:
        """There is nothing to answer it with: the newer one was ignored, or replaced."""
        # Given
        held = run(store, FIRST)
        second, third = wait(store, SECOND), wait(store, THIRD)
        end(store, held)
        release(store, run(store, THIRD, third), THIRD)
        # Then
        run(store, SECOND, second)

    def test_who_is_refused_does_not_wait(self, store: Store) -> None:
        """It takes nobody's place."""
        # Given
        run(store, FIRST)
        wait(store, SECOND)
        # When
        assert isinstance(ask(store, THIRD, refused_from_ms=0), Busy)
        # Then
        assert next_up(store) == SECOND.owner

    def test_who_may_wait_no_longer_has_the_free_key(self, store: Store) -> None:
        """It lets nobody go first; who came later runs after it."""
        # Given
        held = run(store, FIRST)
        second, third = wait(store, SECOND), wait(store, THIRD)
        end(store, held)
        # When
        assert isinstance(ask(store, SECOND, second, refused_from_ms=0), Claimed)
        # Then
        wait(store, THIRD, third)
        assert next_up(store) == THIRD.owner

    def test_a_run_that_gave_its_key_up_and_was_cut_off_is_no_newer(self, store: Store) -> None:
        """Its message comes again: who came meanwhile goes on waiting, and runs after that."""
        # Given
        held = run(store, FIRST)
        give_back(store, held)
        second = run(store, SECOND)
        third = wait(store, THIRD)
        interrupt(store, held)
        # When
        first = wait(store, FIRST)
        # Then
        assert first < third
        assert next_up(store) == THIRD.owner
        end(store, second, message=SECOND)
        run(store, THIRD, third)

    def test_a_failure_that_a_person_states_is_of_its_own_call(self, store: Store) -> None:
        """Who came after the call whose outcome was unknown is not answered with it."""
        # Given
        held = run(store, FIRST)
        second = wait(store, SECOND)
        leave_unknown(store, held)
        # When
        assert store.resolve(KEY, Resolve(State.FAILED, FAILURE, HORIZON_MS))
        # Then
        run(store, SECOND, second)

    def test_the_end_is_published_for_who_waits_for_a_run_to_begin(self, store: Store) -> None:
        """They were told of a run that nobody could mark yet."""
        # Given
        held = run(store, FIRST)
        second, third = wait(store, SECOND), wait(store, THIRD)
        end(store, held)
        assert isinstance(ask(store, SECOND, second), Busy)
        # When
        run(store, THIRD, third)
        # Then
        assert stored(store).is_awaited


class LatestInTimeRows:
    """What is lost is not waited for."""

    def test_who_runs_next_is_waited_for_one_lease(self, store: Store, clock: StoreClock) -> None:
        """Its message was lost, or its call revoked: the one before it runs."""
        # Given
        held = run(store, FIRST)
        second = wait(store, SECOND)
        third = wait(store, THIRD)
        clock.advance(LEASE_MS)
        end(store, held)
        assert isinstance(ask(store, SECOND, second), Busy)
        clock.advance(LEASE_MS - 1)
        verdict = ask(store, SECOND, second)
        assert isinstance(verdict, Busy)
        assert verdict.record.until_ms == verdict.now_ms + 1
        # When
        clock.advance(1)
        held = run(store, SECOND, second)
        # Then it is not answered where it comes after all
        assert isinstance(ask(store, THIRD, third), Busy)
        end(store, held, message=SECOND)
        run(store, THIRD, third)

    def test_a_run_that_takes_over_its_own_has_its_place_in_the_record(
        self, store: Store, clock: StoreClock
    ) -> None:
        """Where it ran for longer than its slip is kept, and was cut off then."""
        # Given
        held = run(store, FIRST)
        for _ in range(2):
            clock.advance(KEEP_MS - 1)
            renew(store, held)
        second = wait(store, SECOND)
        interrupt(store, held)
        # When
        held = run(store, FIRST)
        # Then
        assert held.came_ms < second
        end(store, held)
        run(store, SECOND, second)

    @pytest.mark.parametrize("us", [0, 998, 999])
    def test_a_run_answers_nobody_who_came_right_after_it(
        self, store: Store, clock: StoreClock, us: int
    ) -> None:
        """However close to the next millisecond: the token of its end is higher than its own."""
        # Given
        token = (clock.now_us() // 1000 + 60_000) * 1000 + us
        store.put(KEY, Record(State.RELEASED, token - 1), 0, HORIZON_MS, {})
        held = run(store, FIRST)
        assert held.token == token
        second = wait(store, SECOND)
        end(store, held)
        # Then
        run(store, SECOND, second)

    def test_the_order_is_one_within_a_millisecond(self, store: Store, clock: StoreClock) -> None:
        """However many come, and where the clock goes back."""
        # Given
        held = run(store, FIRST)
        came = [held.came_ms, wait(store, SECOND), wait(store, THIRD)]
        clock.advance(-5_000)
        came.append(wait(store, FOURTH))
        # Then
        assert came == sorted(set(came))
        # And for one that finds the key free
        clock.advance(5_000)
        end(store, held)
        last = Message("0b9f5c3e-5d0f-4f5e-9d53-0d5a36a3a005")
        assert run(store, last).came_ms > came[-1]
