"""The contract's table, the rows of a key that is held or free: who gets it, who must wait."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from celery_idempotent.core.record import State
from celery_idempotent.core.verdicts import Busy, Claimed, Superseded, Unknown
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract.kit import (
    FAILURE,
    FIRST,
    KEY,
    SECOND,
    STRANGER,
    Ending,
    Message,
    claim,
    hold,
    interrupt,
    note,
    release,
    replace,
    retry,
    stored,
)


class ClaimRows:
    """Absent, running, retrying, unknown: asked by the owner and by others."""

    def test_an_absent_key_is_claimed(self, store: Store) -> None:
        """The first to ask gets the key, and the record says who that is."""
        # When
        verdict = claim(store, FIRST, nonce=b"nonce")
        # Then
        assert isinstance(verdict, Claimed)
        assert verdict.interruptions == 0
        record = stored(store)
        assert replace(record, until_ms=0) == replace(
            FIRST.candidate(b"nonce"), token=verdict.token
        )
        assert record.until_ms > verdict.token // 1000

    def test_a_claim_that_is_repeated_is_the_same_claim(self, store: Store) -> None:
        """The same nonce gets the same token again: the first answer was lost on the wire."""
        # Given
        verdict = claim(store, FIRST, nonce=b"nonce")
        before = stored(store)
        # When
        again = claim(store, FIRST, nonce=b"nonce")
        # Then
        assert again == verdict
        assert stored(store) == before

    def test_an_empty_nonce_repeats_nothing(self, store: Store) -> None:
        """A record that keeps no nonce any more is not the claim of a caller without one."""
        # Given
        release(store, hold(store, FIRST))
        # When
        verdict = claim(store, FIRST, nonce=b"")
        # Then
        assert isinstance(verdict, Claimed)

    def test_of_many_at_once_one_gets_the_key(self, store: Store) -> None:
        """Claims that arrive at the same time: one is granted, the others are told who holds it."""
        # Given
        messages = [replace(FIRST, task_id=f"task-{number}") for number in range(16)]
        # When
        with ThreadPoolExecutor(8) as pool:
            verdicts = list(pool.map(lambda message: claim(store, message), messages))
        # Then
        winners = [verdict for verdict in verdicts if isinstance(verdict, Claimed)]
        others = [verdict for verdict in verdicts if isinstance(verdict, Busy)]
        assert len(winners) == 1
        assert len(others) == 15
        assert {verdict.record.token for verdict in others} == {winners[0].token}

    # --- running, lease live ---

    def test_another_call_waits_for_a_live_lease(self, store: Store) -> None:
        """While the key is held, another task id is told so, and by whom."""
        # Given
        held = hold(store, FIRST)
        # When
        verdict = claim(store, SECOND)
        # Then
        assert isinstance(verdict, Busy)
        assert not verdict.mine
        assert verdict.record.owner_id == FIRST.task_id
        assert verdict.record.token == held.token
        assert verdict.now_ms < verdict.record.until_ms

    @pytest.mark.parametrize("later", [0, 1], ids=["same copy", "its retry"])
    def test_the_owners_copy_steals_no_live_lease(self, store: Store, later: int) -> None:
        """The same message, delivered again or retried, waits for its own run as well."""
        # Given
        hold(store, FIRST)
        before = stored(store)
        # When
        verdict = claim(store, FIRST.retried(later))
        # Then
        assert isinstance(verdict, Busy)
        assert verdict.mine
        assert stored(store) == replace(before, is_awaited=True)

    def test_an_old_copy_is_superseded_while_its_retry_runs(self, store: Store) -> None:
        """A copy with fewer retries than the run that holds the key is out of date."""
        # Given
        hold(store, FIRST.retried(2))
        # Then
        assert claim(store, FIRST.retried(1)) == Superseded()
        assert isinstance(claim(store, FIRST.retried(2)), Busy)

    def test_fewer_retries_of_another_call_mean_nothing(self, store: Store) -> None:
        """Retries are counted for each message by itself."""
        # Given
        hold(store, FIRST.retried(2))
        # Then
        assert isinstance(claim(store, SECOND), Busy)

    def test_what_replaced_a_task_is_another_owner(self, store: Store) -> None:
        """The nesting of a replaced task is a part of who owns the key."""
        # Given
        hold(store, FIRST)
        # When
        verdict = claim(store, replace(FIRST, nesting=1))
        # Then
        assert isinstance(verdict, Busy)
        assert not verdict.mine

    # --- running, lease over ---

    @pytest.mark.parametrize("other", [FIRST, SECOND], ids=["its own copy", "another call"])
    def test_a_run_that_was_cut_off_is_taken_over(self, store: Store, other: Message) -> None:
        """Once the lease is over the next one runs, with a higher token, and knows of the first."""
        # Given
        held = hold(store, FIRST)
        interrupt(store, held)
        # When
        verdict = claim(store, other)
        # Then
        assert isinstance(verdict, Claimed)
        assert verdict.token > held.token
        assert verdict.interruptions == 1
        assert stored(store).owner == other.owner

    def test_a_takeover_leaves_nothing_of_the_first_run(self, store: Store) -> None:
        """Owner, retries, process, nonce and fingerprint are those of the one who took over."""
        # Given
        interrupt(store, hold(store, FIRST.retried(3)))
        # When
        taken = hold(store, STRANGER)
        # Then
        assert taken.interruptions == 1
        assert replace(stored(store), until_ms=0) == taken

    def test_the_next_attempt_is_no_takeover(self, store: Store) -> None:
        """With the lease over and more retries it is the run's own retry: nothing is counted."""
        # Given
        held = hold(store, FIRST)
        interrupt(store, held)
        # When
        verdict = claim(store, FIRST.retried())
        # Then
        assert isinstance(verdict, Claimed)
        assert verdict.interruptions == 0
        assert verdict.token > held.token

    def test_an_old_copy_does_not_take_over(self, store: Store) -> None:
        """With the lease over, too, a copy with fewer retries is out of date."""
        # Given
        interrupt(store, hold(store, FIRST.retried(2)))
        # Then
        assert claim(store, FIRST.retried(1)) == Superseded()
        assert isinstance(claim(store, FIRST.retried(2)), Claimed)

    @pytest.mark.parametrize("most", [0, 1, 2])
    def test_a_poison_task_stops_being_run(self, store: Store, most: int) -> None:
        """After ``max_interruptions`` takeovers the outcome is unknown, to everybody, for good."""
        # Given
        held = hold(store, FIRST, max_interruptions=most)
        for number in range(most):
            interrupt(store, held)
            held = hold(store, FIRST, max_interruptions=most)
            assert held.interruptions == number + 1
        interrupt(store, held)
        # When
        verdict = claim(store, FIRST, max_interruptions=most)
        # Then
        assert isinstance(verdict, Unknown)
        record = stored(store)
        assert verdict.record == record
        assert record.state is State.UNKNOWN
        assert record.token == held.token
        assert record.owner == held.owner
        assert record.interruptions == most + 1
        note(store, FIRST, succeeded=False, outcome=FAILURE)
        for message in (FIRST, FIRST.retried(), SECOND):
            assert claim(store, message, max_interruptions=99) == Unknown(record)

    @pytest.mark.parametrize("recover", [retry, release], ids=["after a retry", "after a release"])
    def test_interruptions_count_from_the_last_progress(
        self, store: Store, recover: Ending
    ) -> None:
        """A retry or a release starts the count of interruptions anew."""
        # Given
        interrupt(store, hold(store, FIRST))
        held = hold(store, FIRST)
        assert held.interruptions == 1
        # When
        recover(store, held)
        # Then
        assert hold(store, FIRST.retried()).interruptions == 0

    # --- retrying ---

    @pytest.mark.parametrize("later", [1, 2], ids=["the retry", "a later one"])
    def test_the_owner_gets_its_retry(self, store: Store, later: int) -> None:
        """A key in back-off is its owner's, for the retry that was recorded or one after it."""
        # Given
        held = hold(store, FIRST)
        retry(store, held)
        # When
        verdict = claim(store, FIRST.retried(later))
        # Then
        assert isinstance(verdict, Claimed)
        assert verdict.token > held.token
        assert verdict.interruptions == 0
        assert stored(store).retries == later

    def test_an_old_copy_is_superseded_in_the_back_off(self, store: Store) -> None:
        """The copy that was retried must not run again: Celery published its successor."""
        # Given
        retry(store, hold(store, FIRST))
        before = stored(store)
        # Then
        assert claim(store, FIRST) == Superseded()
        assert stored(store) == before

    def test_another_call_waits_out_the_back_off(self, store: Store) -> None:
        """While a retry is pending the key stays its owner's."""
        # Given
        retry(store, hold(store, FIRST))
        # When
        verdict = claim(store, SECOND)
        # Then
        assert isinstance(verdict, Busy)
        assert not verdict.mine
        assert verdict.record.state is State.RETRYING

    # --- nothing else changes ---

    def test_keys_are_apart(self, store: Store) -> None:
        """What holds one key holds no other."""
        # Given
        hold(store, FIRST)
        # Then
        assert store.get(KEY.replace("42", "43")) is None
        assert [*store.scan("idempotent:*")] == [KEY]
