"""Steps beside a record, and the compensations that undo them."""

from __future__ import annotations

import pytest

from celery_idempotent.core.record import Label, State
from celery_idempotent.core.verdicts import (
    UNKNOWN_TTL_MS,
    Busy,
    Claimed,
    Lost,
    Recorded,
    Replay,
    Unknown,
)
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract.kit import (
    FAILURE,
    FIRST,
    HORIZON_MS,
    KEEP_MS,
    KEY,
    LEASE_MS,
    OTHER_PROCESS,
    PROCESS,
    SECOND,
    THIRD,
    Ending,
    Message,
    about,
    claim,
    compensate,
    complete,
    fail,
    hold,
    interrupt,
    lives_ms,
    release,
    release_failed,
    replace,
    retry,
    step,
    stored,
    unknown,
)

TOKEN = 1_700_000_000_000_000


class StepRows:
    """What a run has finished is kept beside its record, and comes with the next claim."""

    def test_steps_are_kept(self, store: Store) -> None:
        """A step is written by the run's token, is a sign of life, and may be written again."""
        # Given
        held = hold(store, FIRST, lease_ms=1_000)
        before = stored(store)
        # When
        answers = [step(store, held), step(store, held, "mail"), step(store, held, packed=b"43")]
        # Then
        assert answers == [Recorded(held.token)] * 3
        assert store.steps(KEY) == {"charge": b"43", "mail": b"42"}
        record = stored(store)
        assert record.until_ms > before.until_ms
        assert replace(record, until_ms=before.until_ms) == replace(before, has_steps=True)
        assert [*store.scan("*")] == [KEY]

    def test_a_record_without_steps_has_none(self, store: Store) -> None:
        """Nothing is kept beside an absent record, nor beside one whose run wrote no step."""
        # Then
        assert store.steps(KEY) == {}
        hold(store, FIRST)
        assert store.steps(KEY) == {}

    @pytest.mark.parametrize("ending", [interrupt, retry, release, release_failed])
    def test_steps_come_with_the_next_claim(self, store: Store, ending: Ending) -> None:
        """After a takeover, a retry or a release the next run is told what is done."""
        # Given
        held = hold(store, FIRST)
        step(store, held)
        ending(store, held)
        # When
        verdict = claim(store, FIRST.retried() if ending is retry else SECOND, nonce=b"next")
        # Then
        assert isinstance(verdict, Claimed)
        assert verdict.steps == {"charge": b"42"}
        assert verdict.failed is None
        if ending is not retry:
            assert claim(store, SECOND, nonce=b"next") == verdict

    @pytest.mark.parametrize("ending", [complete, fail])
    def test_steps_stay_beside_an_outcome(self, store: Store, ending: Ending) -> None:
        """Whether there are steps is what the record says, whatever the run says at its end."""
        # Given
        held = hold(store, FIRST)
        step(store, held)
        # When
        ending(store, replace(held, has_steps=False))
        # Then
        assert stored(store).has_steps
        assert store.steps(KEY) == {"charge": b"42"}

    def test_a_run_that_was_taken_over_writes_no_step(self, store: Store) -> None:
        """The steps of the one who took over are not mixed with a zombie's."""
        # Given
        zombie = hold(store, FIRST)
        interrupt(store, zombie)
        hold(store, SECOND)
        before = stored(store)
        # Then
        assert step(store, zombie) == Lost(before)
        assert store.steps(KEY) == {}
        assert stored(store) == before

    @pytest.mark.parametrize("ending", [complete, fail, retry, release, release_failed])
    def test_a_run_that_ended_writes_no_step(self, store: Store, ending: Ending) -> None:
        """What has ended has no step to come."""
        # Given
        held = hold(store, FIRST)
        ending(store, held)
        before = stored(store)
        # Then
        assert step(store, held) == Lost(before)
        assert stored(store) == before

    def test_a_step_writes_an_absent_record_anew(self, store: Store) -> None:
        """The store came back empty: the step is kept, and nobody took over."""
        # Given
        held = replace(FIRST.candidate(), token=TOKEN)
        # Then
        assert step(store, held) == Recorded(held.token)
        assert replace(stored(store), until_ms=0) == replace(held, has_steps=True)
        assert store.steps(KEY) == {"charge": b"42"}

    def test_a_late_step_leaves_an_unknown_outcome(self, store: Store) -> None:
        """The run goes on: its step is kept, and the record waits to be resolved as before."""
        # Given
        held = unknown(store)
        before = stored(store)
        # Then
        assert step(store, held) == Recorded(held.token)
        assert stored(store) == replace(before, has_steps=True)
        assert store.steps(KEY) == {"charge": b"42"}
        assert lives_ms(store) == about(UNKNOWN_TTL_MS)

    def test_forgetting_forgets_the_steps(self, store: Store) -> None:
        """A forgotten key begins anew."""
        # Given
        step(store, hold(store, FIRST))
        # When
        store.forget(KEY, HORIZON_MS)
        # Then
        assert store.steps(KEY) == {}
        assert claim(store, SECOND) == Claimed(stored(store).token)


class RewoundRows:
    """A person has a call run again from a step on: what is earlier stays, what is later goes."""

    @pytest.mark.parametrize("ending", [complete, fail, interrupt, release, release_failed])
    def test_a_key_is_rewound(self, store: Store, ending: Ending) -> None:
        """However its run ended: the next knows the earlier steps, and a late one is refused."""
        # Given
        held = hold(store, FIRST)
        for name in ("reserve", "charge", "mail"):
            step(store, held, name)
        ending(store, held)
        store.abandon(KEY, THIRD.candidate(b"given up"), HORIZON_MS)
        before = stored(store)
        # When
        assert store.rewind(KEY, before.token, ["reserve"], HORIZON_MS)
        # Then
        left = stored(store)
        assert left.state is State.RELEASED
        assert left.token > before.token
        assert (left.owner, left.process, left.nonce, left.outcome) == (b"", b"", b"", b"")
        assert (left.fingerprint, left.given_up) == (before.fingerprint, before.given_up)
        assert Label.of(left) == Label.of(before)._replace(origin=FIRST.owner.hex())
        assert store.steps(KEY) == {"reserve": b"42"}
        assert lives_ms(store) == about(HORIZON_MS)
        for late in (step, complete, fail):
            assert late(store, held) == Lost(left)
        verdict = claim(store, SECOND)
        assert isinstance(verdict, Claimed)
        assert verdict.steps == {"reserve": b"42"}
        assert verdict.interruptions == 0

    def test_what_is_unknown_is_rewound(self, store: Store) -> None:
        """The person has looked; the run that was thought to be lost is refused from now on."""
        # Given
        held = unknown(store)
        step(store, held, "reserve")
        # When
        assert store.rewind(KEY, stored(store).token, [], HORIZON_MS)
        # Then
        left = stored(store)
        assert (left.state, left.has_steps) == (State.RELEASED, False)
        assert store.steps(KEY) == {}
        assert complete(store, held) == Lost(left)
        assert claim(store, SECOND) == Claimed(stored(store).token)

    def test_a_key_is_rewound_twice(self, store: Store) -> None:
        """Who began it stays said; what the second person does not keep goes, too."""
        # Given
        held = hold(store, FIRST)
        for name in ("reserve", "charge", "mail"):
            step(store, held, name)
        complete(store, held)
        store.rewind(KEY, stored(store).token, ["reserve", "charge"], HORIZON_MS)
        # When
        assert store.rewind(KEY, stored(store).token, ["reserve"], HORIZON_MS)
        # Then
        assert Label.of(stored(store)).origin == FIRST.owner.hex()
        assert store.steps(KEY) == {"reserve": b"42"}

    def test_what_was_rewound_is_claimed_by_its_own_copies_too(self, store: Store) -> None:
        """As after a forget: whoever comes first runs, the others get its outcome."""
        # Given
        held = hold(store, FIRST)
        step(store, held, "reserve")
        release_failed(store, held, answers=FIRST)
        store.rewind(KEY, stored(store).token, ["reserve"], HORIZON_MS)
        # Then
        verdict = claim(store, FIRST)
        assert isinstance(verdict, Claimed)
        assert verdict.steps == {"reserve": b"42"}

    @pytest.mark.parametrize("state", ["absent", "running", "retrying", "sending", "compensating"])
    def test_what_is_held_is_not_rewound(self, store: Store, state: str) -> None:
        """By a run, a retry that is not due, or callbacks that are sent; or it is being undone."""
        # Given
        token = TOKEN
        if state != "absent":
            held = hold(store, FIRST)
            step(store, held)
            if state == "retrying":
                retry(store, held)
            elif state == "sending":
                complete(store, held, delivery_ms=LEASE_MS)
            elif state == "compensating":
                compensate(store, held, lease_ms=0)
            token = stored(store).token
        before, steps = store.get(KEY), store.steps(KEY)
        # Then
        assert not store.rewind(KEY, token, [], HORIZON_MS)
        assert (store.get(KEY), store.steps(KEY)) == (before, steps)

    def test_what_has_changed_since_is_not_rewound(self, store: Store) -> None:
        """A call ran after the person had looked."""
        # Given
        first = hold(store, FIRST)
        step(store, first)
        release_failed(store, first)
        seen = stored(store)
        complete(store, hold(store, SECOND))
        before = stored(store)
        # Then
        assert not store.rewind(KEY, seen.token, [], HORIZON_MS)
        assert stored(store) == before
        assert store.steps(KEY) == {"charge": b"42"}


class CompensationRows:
    """The body failed for good, and a run undoes its steps: under a lease, as a body runs."""

    def test_everybody_waits_for_a_compensation(self, store: Store) -> None:
        """While it runs under a live lease, the key is busy."""
        # Given
        held = hold(store, FIRST)
        step(store, held)
        # Then
        assert compensate(store, held) == Recorded(held.token)
        assert stored(store).outcome == FAILURE
        assert isinstance(claim(store, FIRST), Busy)
        assert isinstance(claim(store, SECOND), Busy)

    @pytest.mark.parametrize("message", [FIRST, SECOND], ids=["its own copy", "another call"])
    def test_a_compensation_is_taken_over(self, store: Store, message: Message) -> None:
        """Its lease over, whoever comes goes on with it, for its owner, and never with the body."""
        # Given
        held = hold(store, FIRST)
        step(store, held)
        compensate(store, held, lease_ms=0)
        # When
        verdict = claim(store, message, nonce=b"next")
        # Then
        assert isinstance(verdict, Claimed)
        assert verdict.failed == stored(store)
        assert verdict.failed.owner == FIRST.owner
        assert verdict.failed.outcome == FAILURE
        assert verdict.token > held.token
        assert verdict.interruptions == 1
        assert verdict.steps == {"charge": b"42"}
        assert claim(store, message, nonce=b"next") == verdict
        assert step(store, held) == Lost(verdict.failed)

    def test_a_compensation_is_not_tried_for_ever(self, store: Store) -> None:
        """Cut off too often, its outcome is unknown."""
        # Given
        held = hold(store, FIRST)
        compensate(store, held, lease_ms=0)
        # Then
        assert isinstance(claim(store, FIRST, max_compensations=0), Unknown)

    def test_the_interruptions_of_the_body_do_not_count(self, store: Store) -> None:
        """A compensation begins its own count."""
        # Given
        interrupt(store, hold(store, FIRST))
        held = hold(store, FIRST)
        assert held.interruptions == 1
        # When
        compensate(store, held)
        # Then
        assert stored(store).interruptions == 0

    def test_the_interruptions_of_a_compensation_do_count(self, store: Store) -> None:
        """Cut off and taken over, again and again: it is one count."""
        # Given
        compensate(store, hold(store, FIRST), lease_ms=0)
        for number in (1, 2, 3):
            verdict = claim(store, SECOND)
            assert isinstance(verdict, Claimed)
            assert verdict.failed is not None
            assert verdict.interruptions == number
            # When
            compensate(store, verdict.failed, lease_ms=0)
        # Then
        assert isinstance(claim(store, SECOND), Unknown)

    def test_an_absent_compensation_is_written_anew(self, store: Store) -> None:
        """The store came back empty: the compensation goes on, by its ending or its heartbeat."""
        # Given
        held = replace(FIRST.candidate(), token=TOKEN)
        # Then
        assert compensate(store, held) == Recorded(held.token)
        compensating = stored(store)
        assert compensating.state is State.COMPENSATING
        assert compensating.interruptions == 0

    def test_a_compensation_ends_with_the_failure(self, store: Store) -> None:
        """All undone: the key is released, and its owner's copies get the failure."""
        # Given
        held = hold(store, FIRST)
        compensate(store, held)
        # When
        release_failed(store, held)
        # Then
        verdict = claim(store, FIRST)
        assert isinstance(verdict, Replay)
        assert verdict.record.outcome == FAILURE

    def test_a_dead_process_compensates_nothing(self, store: Store) -> None:
        """Its lease ends at once, only for its own message and process."""
        # Given
        compensate(store, hold(store, FIRST))
        # Then
        assert not store.end_lease(KEY, FIRST.owner, OTHER_PROCESS)
        assert isinstance(claim(store, SECOND), Busy)
        assert store.end_lease(KEY, FIRST.owner, PROCESS)
        assert isinstance(claim(store, SECOND), Claimed)

    def test_a_takeover_that_was_given_up_is_undone(self, store: Store) -> None:
        """Its lease ends, it counts for nothing, and the late claim gets nothing."""
        # Given
        held = hold(store, FIRST)
        compensate(store, held, lease_ms=0)
        given_up = claim(store, SECOND, nonce=b"given up")
        assert isinstance(given_up, Claimed)
        assert given_up.failed is not None
        # When
        store.abandon(KEY, SECOND.candidate(b"given up"), HORIZON_MS)
        # Then
        assert lives_ms(store) == about(KEEP_MS)
        assert release_failed(store, given_up.failed) == Lost(stored(store))
        assert isinstance(claim(store, SECOND, nonce=b"given up"), Busy)
        verdict = claim(store, SECOND)
        assert isinstance(verdict, Claimed)
        assert verdict.interruptions == given_up.interruptions
        assert verdict.token > given_up.token

    def test_giving_up_leaves_another_compensation_alone(self, store: Store) -> None:
        """A claim that was given up is not granted what another one holds."""
        # Given
        held = hold(store, FIRST)
        compensate(store, held)
        before = stored(store)
        # When
        store.abandon(KEY, SECOND.candidate(b"given up"), HORIZON_MS)
        # Then
        assert replace(stored(store), given_up=b"") == before
        assert isinstance(claim(store, SECOND, nonce=b"given up"), Busy)

    def test_only_a_compensation(self, store: Store) -> None:
        """A message that was made to compensate runs no body, whatever it finds."""
        # Then
        for find in (None, release, interrupt, complete):
            if find is not None:
                find(store, hold(store, FIRST))
            before = store.get(KEY)
            assert not isinstance(claim(store, SECOND, compensates_only=True), Claimed)
            assert store.get(KEY) == before
            store.forget(KEY, HORIZON_MS)
        # Given
        compensate(store, hold(store, FIRST), lease_ms=0)
        # Then
        assert isinstance(claim(store, SECOND, compensates_only=True), Claimed)
