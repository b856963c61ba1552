"""Outcomes that nobody knows, settled by a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import Busy, Claim, Claimed, Lost, Replay, Resolve
from celery_idempotent.stores.base import Store
from celery_idempotent.stores.journal import ListedRuns, journal_key
from celery_idempotent.testing.contract.kit import (
    FAILURE,
    FIRST,
    HORIZON_MS,
    KEEP_MS,
    KEY,
    LEASE_MS,
    RESULT,
    SECOND,
    Ending,
    about,
    claim,
    compensate,
    complete,
    hold,
    interrupt,
    leave_unknown,
    lives_ms,
    release,
    replace,
    retry,
    stored,
    unknown,
)

OTHER = "idempotent:{shop.charge:order:7}"
PREFIX = "idempotent"
TOKEN = 1_700_000_000_000_000

Becomes = Callable[[Store], object]
Settled = Callable[[Store, Record], object]


def given_up_as_unknown(store: Store) -> None:
    """A run says itself that nobody can know."""
    leave_unknown(store, hold(store, FIRST))


def resolved(store: Store, held: Record) -> None:
    """A person says that it may run again."""
    store.resolve(KEY, Resolve(State.RELEASED, b"", HORIZON_MS))


def forgotten(store: Store, held: Record) -> None:
    """A person frees the key."""
    store.forget(KEY, HORIZON_MS)


def completed_late(store: Store, held: Record) -> None:
    """The run that was thought to be lost tells its result."""
    complete(store, held)


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

    @pytest.mark.parametrize("becomes", [unknown, given_up_as_unknown])
    def test_what_is_unknown_is_found(self, store: Store, becomes: Becomes) -> None:
        """A claim made it so, or the run itself; whoever looks for it needs no other key."""
        # Given
        store.claim(OTHER, Claim(SECOND.candidate(), LEASE_MS, KEEP_MS))
        # When
        becomes(store)
        # Then
        assert store.unknown(PREFIX) == [KEY]
        assert store.unknown(f"{PREFIX}2") == []

    @pytest.mark.parametrize("settled", [resolved, forgotten, completed_late])
    def test_what_was_settled_is_found_no_more(self, store: Store, settled: Settled) -> None:
        """By a person, or by the run that was thought to be lost."""
        # Given
        held = unknown(store)
        # When
        settled(store, held)
        # Then
        assert store.unknown(PREFIX) == []

    def test_what_is_unknown_again_is_found_again(self, store: Store) -> None:
        """Also where nobody looked between the first time and the second."""
        # Given
        resolved(store, unknown(store))
        # When
        unknown(store)
        # Then
        assert store.unknown(PREFIX) == [KEY]
        assert store.unknown(PREFIX) == [KEY]


def listed(store: Store, begun: Sequence[Record], ended: Sequence[Record] = ()) -> None:
    """As the journal of a process has it done, where the store lists the runs."""
    if store.run_lists is not None:
        pairs = [[(KEY, record.token) for record in records] for records in (begun, ended)]
        store.run_lists.append_with_runs(journal_key(PREFIX), [], 100, ListedRuns(*pairs))


def held_for_compensation(store: Store) -> Record:
    """A run whose steps are being undone."""
    held = hold(store, FIRST)
    compensate(store, held)
    return held


class HeldRows:
    """What runs hold is found, also where nobody is alive any more that could tell of it."""

    @pytest.mark.parametrize("becomes", [lambda store: hold(store, FIRST), held_for_compensation])
    def test_what_a_run_holds_is_found(
        self, store: Store, becomes: Callable[[Store], Record]
    ) -> None:
        """Its body runs, or its steps are being undone."""
        # When
        listed(store, [becomes(store)])
        # Then
        assert store.held(PREFIX) == [KEY]
        assert store.held(f"{PREFIX}2") == []

    @pytest.mark.parametrize("ending", [complete, release, retry, leave_unknown])
    def test_what_has_ended_is_not_found(self, store: Store, ending: Ending) -> None:
        """Though its process did not live to say so to the list."""
        # Given
        held = hold(store, FIRST)
        listed(store, [held])
        # When
        ending(store, held)
        # Then
        assert store.held(PREFIX) == []

    def test_a_lease_that_is_over_is_found(self, store: Store) -> None:
        """Until its key is forgotten, say."""
        # Given
        held = hold(store, FIRST)
        listed(store, [held])
        # When
        interrupt(store, held)
        # Then
        assert store.held(PREFIX) == [KEY]
        assert store.held(PREFIX) == [KEY]
        store.forget(KEY, HORIZON_MS)
        assert store.held(PREFIX) == []

    def test_a_run_whose_end_was_told_hides_no_other(self, store: Store) -> None:
        """Another run has the key since, and is found."""
        # Given
        lost = hold(store, FIRST)
        listed(store, [lost])
        interrupt(store, lost)
        held = hold(store, SECOND)
        # When
        listed(store, [held], [lost])
        # Then
        assert store.held(PREFIX) == [KEY]
        complete(store, held)
        listed(store, [], [held])
        assert store.held(PREFIX) == []


class MovedRows:
    """A record of another store is written as it was there, unless it is known newer here."""

    def test_a_record_is_put(self, store: Store) -> None:
        """With its steps, and what is left of its life; it answers as it did there."""
        # Given
        done = replace(FIRST.candidate(b""), state=State.SUCCEEDED, token=TOKEN, outcome=RESULT)
        done = replace(done, process=b"", has_steps=True)
        # When
        assert store.put(KEY, done, 0, HORIZON_MS, {"reserve": b"packed"})
        # Then
        assert stored(store) == done
        assert store.steps(KEY) == {"reserve": b"packed"}
        assert lives_ms(store) == about(HORIZON_MS)
        verdict = claim(store, SECOND)
        assert isinstance(verdict, Replay)
        assert verdict.record.outcome == RESULT

    @pytest.mark.parametrize("left_ms", [0, LEASE_MS])
    def test_what_is_left_of_a_lease_is_put(self, store: Store, left_ms: int) -> None:
        """By this store's clock; a lease that is over is over."""
        store.put(KEY, replace(FIRST.candidate(), token=TOKEN), left_ms, HORIZON_MS, {})
        assert isinstance(claim(store, SECOND), Busy if left_ms else Claimed)

    def test_what_is_newer_here_stays(self, store: Store) -> None:
        """A key that was claimed here since, with a higher token, or that ended here."""
        # Given
        old = replace(FIRST.candidate(), token=TOKEN)
        held = hold(store, SECOND)
        # Then
        assert not store.put(KEY, old, LEASE_MS, HORIZON_MS, {})
        assert stored(store).token == held.token
        complete(store, held)
        before = stored(store)
        assert not store.put(KEY, held, LEASE_MS, HORIZON_MS, {})
        assert stored(store) == before

    def test_the_end_of_a_run_is_put_over_it(self, store: Store) -> None:
        """A second export has what ended since the first; steps that are gone there go."""
        # Given
        held = replace(FIRST.candidate(), token=TOKEN, has_steps=True)
        store.put(KEY, held, LEASE_MS, HORIZON_MS, {"reserve": b"packed"})
        done = replace(held, state=State.SUCCEEDED, outcome=RESULT, has_steps=False)
        # When
        assert store.put(KEY, done, 0, HORIZON_MS, {})
        # Then
        assert stored(store).state is State.SUCCEEDED
        assert store.steps(KEY) == {}

    def test_what_is_put_as_unknown_is_found(self, store: Store) -> None:
        """It needs a person there, too."""
        left = replace(FIRST.candidate(b""), state=State.UNKNOWN, token=TOKEN)
        store.put(KEY, left, 0, HORIZON_MS, {})
        assert store.unknown(PREFIX) == [KEY]
