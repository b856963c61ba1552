"""Claims whose answer never came: they are undone, or get nothing when they come late."""

from __future__ import annotations

import pytest

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import Busy, Claimed, Lost, Recorded, Replay, Superseded
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract.kit import (
    ENDINGS,
    FIRST,
    HORIZON_MS,
    KEY,
    SECOND,
    Ending,
    Message,
    claim,
    complete,
    fail,
    hold,
    interrupt,
    release,
    release_failed,
    replace,
    retry,
    stored,
)


def without_given_up(record: Record) -> Record:
    """The record, less the claims that it keeps out."""
    return replace(record, given_up=b"")


class GivenUpRows:
    """``abandon``: a claim whose answer never came is undone, whichever arrives first."""

    def test_a_claim_that_was_given_up_is_undone(self, store: Store) -> None:
        """Claimed, then given up: the key is free at once, and no interruption is counted."""
        # Given
        held = hold(store, FIRST)
        # When
        store.abandon(KEY, FIRST.candidate(held.nonce), HORIZON_MS)
        # Then
        assert without_given_up(stored(store)) == replace(
            held, state=State.RELEASED, token=held.token + 1, process=b""
        )
        verdict = claim(store, SECOND)
        assert isinstance(verdict, Claimed)
        assert verdict.interruptions == 0
        assert verdict.token > held.token

    def test_a_claim_that_arrives_late_gets_nothing(self, store: Store) -> None:
        """Given up, then claimed: the record is left to others, the late claim must wait."""
        # Given
        store.abandon(KEY, FIRST.candidate(b"given up"), HORIZON_MS)
        before = stored(store)
        # Then
        assert isinstance(claim(store, FIRST, nonce=b"given up"), Busy)
        assert stored(store) == before
        left = replace(FIRST.candidate(b"given up"), state=State.RELEASED, process=b"")
        assert replace(without_given_up(before), token=0) == left
        verdict = claim(store, SECOND)
        assert isinstance(verdict, Claimed)
        assert verdict.interruptions == 0

    def test_a_claim_that_was_undone_stays_so(self, store: Store) -> None:
        """Claimed, given up, and claimed once more by the same call: that is late, and waits."""
        # Given
        held = hold(store, FIRST)
        store.abandon(KEY, FIRST.candidate(held.nonce), HORIZON_MS)
        # Then
        assert isinstance(claim(store, FIRST, nonce=held.nonce), Busy)
        assert isinstance(claim(store, FIRST, nonce=b"the next"), Claimed)

    def test_an_old_copy_is_not_let_in_by_a_claim_that_was_given_up(self, store: Store) -> None:
        """The retry's claim was undone: its own message comes again, copies before it are old."""
        # Given
        retry(store, hold(store, FIRST))
        held = hold(store, FIRST.retried())
        store.abandon(KEY, FIRST.retried().candidate(held.nonce), HORIZON_MS)
        # Then
        assert isinstance(claim(store, FIRST), Superseded)
        assert isinstance(claim(store, FIRST.retried()), Claimed)

    @pytest.mark.parametrize("name", ENDINGS)
    def test_what_was_given_up_is_not_accepted(self, store: Store, name: str) -> None:
        """The token of a claim that was undone writes nothing any more."""
        # Given
        held = hold(store, FIRST)
        store.abandon(KEY, FIRST.candidate(held.nonce), HORIZON_MS)
        before = stored(store)
        # When
        answer = ENDINGS[name](store, held)
        # Then
        if not name.startswith("release"):
            assert answer == Lost(before)
        assert stored(store).state is State.RELEASED
        assert stored(store).token > held.token

    def test_giving_up_may_be_sent_again(self, store: Store) -> None:
        """Given up twice is given up."""
        # Given
        held = hold(store, FIRST)
        store.abandon(KEY, FIRST.candidate(held.nonce), HORIZON_MS)
        before = stored(store)
        # When
        store.abandon(KEY, FIRST.candidate(held.nonce), HORIZON_MS)
        # Then
        assert stored(store) == before

    @pytest.mark.parametrize("message", [FIRST, SECOND], ids=["its own copy", "another call"])
    def test_giving_up_leaves_another_claim_alone(self, store: Store, message: Message) -> None:
        """Only the claim with that nonce is undone: another run of the key goes on."""
        # Given
        held = hold(store, FIRST)
        before = stored(store)
        # When
        store.abandon(KEY, message.candidate(b"another"), HORIZON_MS)
        # Then
        assert without_given_up(stored(store)) == before
        assert complete(store, held) == Recorded(held.token)

    def test_what_was_counted_before_stands(self, store: Store) -> None:
        """A takeover that was given up leaves the interruption of the run before it, once."""
        # Given
        interrupt(store, hold(store, FIRST))
        taken = hold(store, SECOND)
        assert taken.interruptions == 1
        # When
        store.abandon(KEY, SECOND.candidate(taken.nonce), HORIZON_MS)
        # Then
        assert hold(store, SECOND).interruptions == 1

    def test_what_was_counted_stands_after_two(self, store: Store) -> None:
        """Two claims that were given up one after the other leave the count as one does."""
        # Given
        interrupt(store, hold(store, FIRST))
        taken = hold(store, SECOND)
        # When
        store.abandon(KEY, SECOND.candidate(taken.nonce), HORIZON_MS)
        store.abandon(KEY, SECOND.candidate(b"another"), HORIZON_MS)
        # Then
        assert hold(store, SECOND).interruptions == 1

    @pytest.mark.parametrize("ending", [complete, fail, retry, release, release_failed])
    def test_giving_up_changes_no_outcome(self, store: Store, ending: Ending) -> None:
        """Where a run has ended, only the late claim is kept from getting anything."""
        # Given
        interrupt(store, hold(store, FIRST))
        ending(store, hold(store, FIRST))
        before = stored(store)
        # When
        store.abandon(KEY, SECOND.candidate(b"given up"), HORIZON_MS)
        # Then
        assert isinstance(claim(store, SECOND, nonce=b"given up"), Busy)
        if ending in (release, release_failed):
            before = replace(before, interruptions=0)
        # A late claim that finds a retry is busy, and marks it as awaited.
        before = replace(before, is_awaited=ending is retry)
        assert replace(without_given_up(stored(store)), nonce=b"") == before

    def test_a_release_stays_a_fresh_start(self, store: Store) -> None:
        """A claim that was given up after a release brings back nothing that was counted."""
        # Given
        interrupt(store, hold(store, FIRST))
        release(store, hold(store, FIRST))
        # When
        store.abandon(KEY, SECOND.candidate(), HORIZON_MS)
        # Then
        assert hold(store, SECOND).interruptions == 0

    def test_each_claim_that_was_given_up_gets_nothing(self, store: Store) -> None:
        """Several are known at once, and while another run holds the key, and once that is over."""
        # Given
        nonces = [b"given u1", b"given u2", b"given u3"]
        for nonce in nonces[:2]:
            store.abandon(KEY, FIRST.candidate(nonce), HORIZON_MS)
        held = hold(store, SECOND)
        store.abandon(KEY, FIRST.candidate(nonces[2]), HORIZON_MS)
        # Then
        for nonce in nonces:
            assert isinstance(claim(store, FIRST, nonce=nonce), Busy)
        release_failed(store, held)
        for nonce in nonces:
            assert isinstance(claim(store, FIRST, nonce=nonce), Busy)
        assert isinstance(claim(store, FIRST, nonce=b"the next"), Claimed)

    @pytest.mark.parametrize("holds", [True, False], ids=["while it is held", "while it is free"])
    def test_forgetting_lets_no_claim_in_that_was_given_up(self, store: Store, holds: bool) -> None:
        """Given up, then the key is forgotten, then the claim comes: nobody would run its body."""
        # Given
        if holds:
            hold(store, SECOND)
        store.abandon(KEY, FIRST.candidate(b"given up"), HORIZON_MS)
        # When
        store.forget(KEY, HORIZON_MS)
        # Then
        assert isinstance(claim(store, FIRST, nonce=b"given up"), Busy)
        assert stored(store).state is State.RELEASED
        verdict = claim(store, FIRST)
        assert isinstance(verdict, Claimed)
        assert verdict.interruptions == 0

    def test_an_ended_run_is_not_undone(self, store: Store) -> None:
        """The claim was granted, its run has ended, and only then it is given up: it has ended."""
        # Given
        held = hold(store, FIRST)
        complete(store, held)
        # When
        store.abandon(KEY, FIRST.candidate(held.nonce), HORIZON_MS)
        # Then
        assert isinstance(claim(store, SECOND), Replay)

    def test_a_success_lets_no_claim_in_that_was_given_up(self, store: Store) -> None:
        """Given up while another runs, which then succeeds: the late claim gets nothing."""
        # Given
        held = hold(store, FIRST)
        store.abandon(KEY, SECOND.candidate(b"given up"), HORIZON_MS)
        # When
        complete(store, held)
        # Then
        assert isinstance(claim(store, SECOND, nonce=b"given up"), Busy)
        assert isinstance(claim(store, SECOND), Replay)
