"""Outcomes that nobody knows, settled by a person."""

from __future__ import annotations

import pytest

from celery_idempotent.core.record import State
from celery_idempotent.core.verdicts import Claimed, Lost, Replay, Resolve
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract.kit import (
    FAILURE,
    FIRST,
    HORIZON_MS,
    KEY,
    RESULT,
    SECOND,
    Ending,
    about,
    claim,
    complete,
    hold,
    interrupt,
    lives_ms,
    release,
    retry,
    stored,
    unknown,
)


class ResolveRows:
    """An unknown outcome is settled by a person, with a token that refuses the late run."""

    @pytest.mark.parametrize(
        ("event", "state"),
        [
            (Resolve(State.SUCCEEDED, RESULT, HORIZON_MS), State.SUCCEEDED),
            (Resolve(State.FAILED, FAILURE, HORIZON_MS), State.RELEASED),
            (Resolve(State.FAILED, FAILURE, HORIZON_MS, compensate=True), State.COMPENSATING),
            (Resolve(State.RELEASED, b"", HORIZON_MS), State.RELEASED),
        ],
        ids=["succeeded", "failed", "failed, to be undone", "rerun"],
    )
    def test_a_person_resolves(self, store: Store, event: Resolve, state: State) -> None:
        """It becomes what the person says, and a late completion is refused."""
        # Given
        held = unknown(store)
        store.abandon(KEY, SECOND.candidate(b"given up"), HORIZON_MS)
        # When
        resolved = store.resolve(KEY, event)
        # Then
        assert resolved
        record = stored(store)
        assert (record.state, record.outcome) == (state, event.outcome)
        assert record.token > held.token
        assert record.interruptions == 0
        assert (record.process, record.nonce) == (b"", b"")
        assert bool(record.until_ms) is (state is State.COMPENSATING)
        assert complete(store, held) == Lost(record)
        assert lives_ms(store) == about(HORIZON_MS)

    def test_resolved_as_succeeded_answers_everybody(self, store: Store) -> None:
        """The person's result is the key's outcome."""
        # Given
        unknown(store)
        store.resolve(KEY, Resolve(State.SUCCEEDED, RESULT, HORIZON_MS))
        # Then
        for message in (FIRST, SECOND):
            verdict = claim(store, message)
            assert isinstance(verdict, Replay)
            assert verdict.record.outcome == RESULT

    def test_resolved_for_a_rerun_runs_again(self, store: Store) -> None:
        """The key is free, and nothing counts against it."""
        # Given
        unknown(store)
        store.resolve(KEY, Resolve(State.RELEASED, b"", HORIZON_MS))
        # Then
        assert hold(store, FIRST).interruptions == 0

    def test_resolved_as_failed_is_undone_first(self, store: Store) -> None:
        """The next to come compensates at once; that it was asked for is no interruption."""
        # Given
        unknown(store)
        store.resolve(KEY, Resolve(State.FAILED, FAILURE, HORIZON_MS, compensate=True))
        # When
        verdict = claim(store, SECOND, max_compensations=0)
        # Then
        assert isinstance(verdict, Claimed)
        assert verdict.failed is not None
        assert verdict.interruptions == 0

    @pytest.mark.parametrize("ending", [interrupt, retry, complete, release])
    def test_only_what_is_unknown_is_resolved(self, store: Store, ending: Ending) -> None:
        """Absent, running or ended: there is nothing to resolve."""
        # Given
        event = Resolve(State.SUCCEEDED, RESULT, HORIZON_MS)
        assert not store.resolve(KEY, event)
        assert store.get(KEY) is None
        ending(store, hold(store, FIRST))
        before = stored(store)
        # Then
        assert not store.resolve(KEY, event)
        assert stored(store) == before
