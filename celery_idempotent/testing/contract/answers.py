"""The contract's table, the rows of a key whose run has ended: who is answered, who begins anew."""

from __future__ import annotations

import pytest

from celery_idempotent.core.verdicts import Busy, Claimed, Mismatch, Replay
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract.kit import (
    FAILURE,
    FIRST,
    OUTCOMES,
    RESULT,
    SECOND,
    STRANGER,
    THIRD,
    Ending,
    Message,
    claim,
    complete,
    hold,
    interrupt,
    release,
    release_failed,
    renew,
    replace,
    retry,
    stored,
)


class AnswerRows:
    """Released, failed, succeeded; and calls whose arguments differ."""

    # --- released ---

    @pytest.mark.parametrize("message", [FIRST, SECOND, STRANGER], ids=["owner", "call", "other"])
    def test_a_released_key_is_free(self, store: Store, message: Message) -> None:
        """Released without a failure: whoever asks next runs, whatever its arguments are."""
        # Given
        held = hold(store, FIRST)
        release(store, held)
        # When
        verdict = claim(store, message, checked=True)
        # Then
        assert isinstance(verdict, Claimed)
        assert verdict.token > held.token
        assert verdict.interruptions == 0

    def test_a_failed_run_is_not_run_again_by_its_leftover_copy(self, store: Store) -> None:
        """Released after a failure: the owner's copies are answered with that failure."""
        # Given
        release_failed(store, hold(store, FIRST))
        # When
        verdict = claim(store, FIRST)
        # Then
        assert isinstance(verdict, Replay)
        assert verdict.mine
        assert verdict.record.outcome == FAILURE

    def test_the_next_call_runs_after_a_failure(self, store: Store) -> None:
        """Released after a failure: another task id begins anew, and nothing counts against it."""
        # Given
        interrupt(store, hold(store, FIRST))
        held = hold(store, FIRST)
        release_failed(store, held)
        # When
        verdict = claim(store, SECOND)
        # Then
        assert isinstance(verdict, Claimed)
        assert verdict.token > held.token
        assert verdict.interruptions == 0
        assert stored(store).outcome == b""

    def test_who_waited_for_a_run_shares_its_failure(self, store: Store) -> None:
        """A caller whose last Busy named the failed run is answered with its failure."""
        # Given
        held = hold(store, FIRST)
        busy = claim(store, SECOND)
        assert isinstance(busy, Busy)
        release_failed(store, held)
        # When
        assert busy.record.owner == FIRST.owner
        verdict = claim(store, SECOND, awaited=FIRST)
        # Then
        assert isinstance(verdict, Replay)
        assert not verdict.mine
        assert verdict.record.outcome == FAILURE

    def test_who_waited_for_another_run_begins_anew(self, store: Store) -> None:
        """Having waited for some other run is no reason to share this one's failure."""
        # Given
        release_failed(store, hold(store, FIRST))
        # Then
        assert isinstance(claim(store, SECOND, awaited=THIRD), Claimed)

    # --- succeeded, failed ---

    @pytest.mark.parametrize("name", OUTCOMES)
    def test_an_outcome_answers_everybody(self, store: Store, name: str) -> None:
        """Succeeded or failed: owner and others get the recorded outcome, and nothing changes."""
        # Given
        OUTCOMES[name](store, hold(store, FIRST))
        before = stored(store)
        # Then
        for message, mine in ((FIRST, True), (FIRST.retried(), True), (SECOND, False)):
            assert claim(store, message) == Replay(before, mine, False)
        assert stored(store) == before

    # --- fingerprints ---

    @pytest.mark.parametrize(
        "become",
        [renew, retry, complete, release_failed],
        ids=["running", "retrying", "succeeded", "released after a failure"],
    )
    def test_other_arguments_are_refused_where_they_are_checked(
        self, store: Store, become: Ending
    ) -> None:
        """A checked call with another fingerprint is a mismatch, before completion and after."""
        # Given
        become(store, hold(store, FIRST))
        before = stored(store)
        # Then
        assert claim(store, STRANGER, checked=True) == Mismatch(before)
        assert not isinstance(claim(store, SECOND, checked=True), Mismatch)

    def test_other_arguments_may_differ_where_nobody_checks(self, store: Store) -> None:
        """An unchecked call with another fingerprint is a duplicate like any other."""
        # Given
        complete(store, hold(store, FIRST))
        # When
        verdict = claim(store, STRANGER)
        # Then
        assert isinstance(verdict, Replay)
        assert verdict.record.outcome == RESULT

    def test_other_arguments_do_not_take_over(self, store: Store) -> None:
        """A checked call with other arguments is refused too where the lease is over."""
        # Given
        interrupt(store, hold(store, FIRST))
        # Then
        assert isinstance(claim(store, STRANGER, checked=True), Mismatch)

    def test_the_owners_own_message_is_never_checked(self, store: Store) -> None:
        """A deploy may have added a defaulted parameter while the message was in flight."""
        # Given
        complete(store, hold(store, FIRST))
        # When
        verdict = claim(store, replace(FIRST, fingerprint=b"of a newer code"), checked=True)
        # Then
        assert isinstance(verdict, Replay)
