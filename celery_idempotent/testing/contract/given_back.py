"""The store contract: a run that gives its key back before its end (``release()``)."""

from __future__ import annotations

import pytest

from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import (
    Busy,
    Claimed,
    Lost,
    Recorded,
    Replay,
    Settle,
    Superseded,
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
    PROCESS,
    RESULT,
    SECOND,
    THIRD,
    Ending,
    Message,
    StoreClock,
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


def give_back(store: Store, held: Record, message: Message = FIRST) -> Recorded | Lost:
    """Free the key of a run that goes on."""
    owner = Owner.unpack(held.owner)
    assert owner is not None
    count = bytes((held.interruptions,)) if held.interruptions else b""
    left = replace(
        message.slip, digests=b"", holder=held.nonce + held.process, released=True, outcome=count
    )
    free = replace(held, state=State.RELEASED, process=b"", nonce=b"")
    event = Settle(free, LEASE_MS, HORIZON_MS, left, KEEP_MS, owner.slip_key(KEY))
    return store.settle(KEY, event)


class GivenBackRows:
    """The key is free, and the run's lease is in its slip."""

    def test_the_key_is_free_at_once_and_its_own_copy_waits(self, store: Store) -> None:
        """Another call runs beside it."""
        # Given
        held = hold(store, FIRST)
        # When
        assert give_back(store, held) == Recorded(held.token + 1)
        # Then
        assert stored(store).state is State.RELEASED
        copy = claim(store, FIRST)
        assert isinstance(copy, Busy)
        assert copy.mine
        verdict = claim(store, SECOND)
        assert isinstance(verdict, Claimed)
        assert verdict.token > held.token
        assert verdict.interruptions == 0
        copy = claim(store, FIRST)
        assert isinstance(copy, Busy)
        assert copy.mine

    @pytest.mark.parametrize("taken", [True, False], ids=["taken since", "free"])
    @pytest.mark.parametrize("how", ["complete", "fail"])
    def test_its_end_answers_its_own_call_and_nobody_else(
        self, store: Store, how: str, taken: bool
    ) -> None:
        """Whoever has the key since keeps it."""
        # Given
        held = hold(store, FIRST)
        give_back(store, held)
        other = hold(store, SECOND) if taken else None
        before = stored(store)
        # When
        end: Ending = complete if how == "complete" else release_failed
        for _ in range(2):
            assert end(store, held) == Recorded(held.token)
        # Then
        copy = claim(store, FIRST)
        assert isinstance(copy, Replay)
        assert copy.mine
        assert copy.record.outcome == (RESULT if how == "complete" else FAILURE)
        assert stored(store) == before
        if other is not None:
            assert isinstance(complete(store, other), Recorded)
        else:
            assert isinstance(claim(store, SECOND), Claimed)

    def test_its_outcome_is_not_shared(self, store: Store) -> None:
        """A call that waited for it runs: the key was free before it ended."""
        held = hold(store, FIRST)
        give_back(store, held)
        complete(store, held)
        assert isinstance(claim(store, SECOND, awaited=FIRST), Claimed)

    def test_nor_while_another_runs(self, store: Store) -> None:
        """Who waited for it waits for the run that has the key since."""
        held = hold(store, FIRST)
        give_back(store, held)
        hold(store, SECOND)
        complete(store, held)
        assert isinstance(claim(store, THIRD, awaited=FIRST), Busy)

    def test_to_give_it_back_again_changes_nothing(self, store: Store) -> None:
        """The first answer was lost; also where another call has the key by then."""
        held = hold(store, FIRST)
        first = give_back(store, held)
        hold(store, SECOND)
        before = stored(store)
        assert give_back(store, held) == first
        assert stored(store) == before

    def test_it_is_renewed_and_lost_by_its_slip(self, store: Store) -> None:
        """``check()`` asks for that; the record is left to whoever has it."""
        # Given
        held = hold(store, FIRST)
        give_back(store, held)
        before = stored(store)
        assert renew(store, held) == Recorded(held.token)
        assert stored(store) == before
        # When its copy takes over, since its process died
        assert store.end_lease(KEY, FIRST.owner, PROCESS, FIRST.slip_key)
        copy = claim(store, FIRST)
        assert isinstance(copy, Claimed)
        assert copy.interruptions == 1
        # Then
        assert isinstance(renew(store, held), Lost)
        assert isinstance(complete(store, held), Lost)

    def test_one_that_was_cut_off_is_run_again_when_the_key_is_free(self, store: Store) -> None:
        """At least once: another call's run is not harmed."""
        # Given
        held = hold(store, FIRST)
        give_back(store, held)
        other = hold(store, SECOND)
        # When
        assert interrupt(store, held) == Recorded(held.token)
        # Then
        copy = claim(store, FIRST)
        assert isinstance(copy, Busy)
        assert not copy.mine
        release(store, other)
        copy = claim(store, FIRST)
        assert isinstance(copy, Claimed)
        assert copy.interruptions == 1

    def test_one_that_is_cut_off_each_time_becomes_unknown(self, store: Store) -> None:
        """It stops killing workers."""
        for count in range(3):
            held = hold(store, FIRST, max_interruptions=2)
            assert held.interruptions == count
            give_back(store, held)
            interrupt(store, held)
        verdict = claim(store, FIRST, max_interruptions=2)
        assert isinstance(verdict, Unknown)
        assert stored(store).state is State.UNKNOWN
        assert stored(store).owner == FIRST.owner

    def test_its_retry_claims_the_key_and_old_copies_do_not(self, store: Store) -> None:
        """The next attempt waits for its turn; what is left of this one is superseded."""
        # Given
        held = hold(store, FIRST)
        give_back(store, held)
        # When
        assert retry(store, held) == Recorded(held.token)
        # Then
        assert isinstance(claim(store, FIRST), Superseded)
        assert isinstance(claim(store, FIRST.retried()), Claimed)

    def test_a_message_that_is_requeued_comes_again(self, store: Store) -> None:
        """Nothing of its run is kept."""
        held = hold(store, FIRST)
        give_back(store, held)
        release(store, held)
        verdict = claim(store, FIRST)
        assert isinstance(verdict, Claimed)
        assert verdict.interruptions == 0

    def test_one_that_ignored_its_call_is_answered(self, store: Store) -> None:
        """A copy runs nothing."""
        held = hold(store, FIRST)
        give_back(store, held)
        release(store, held, answers=FIRST)
        assert isinstance(claim(store, FIRST), Superseded)

    def test_its_callbacks_are_sent_under_its_slip(self, store: Store) -> None:
        """A copy waits until they are."""
        held = hold(store, FIRST, noted=True)
        give_back(store, held)
        complete(store, held, delivery_ms=LEASE_MS)
        assert isinstance(claim(store, FIRST, noted=True), Busy)
        assert renew(store, held) == Recorded(held.token)
        assert isinstance(claim(store, THIRD), Claimed)


class GivenBackInTimeRows:
    """The instants of the lease in the slip."""

    @pytest.mark.parametrize("callbacks", [False, True])
    def test_who_lost_its_lease_finds_its_call_answered(
        self, store: Store, clock: StoreClock, callbacks: bool
    ) -> None:
        """A copy got another call's outcome meanwhile: the late end changes nothing."""
        # Given a run without its key whose lease is over, and another call that has succeeded
        held = hold(store, FIRST)
        give_back(store, held)
        clock.advance(LEASE_MS)
        complete(store, hold(store, SECOND))
        # When a copy is answered, and then the run ends
        answered = claim(store, FIRST, noted=callbacks)
        assert isinstance(answered, Replay)
        assert answered.record.outcome == RESULT
        assert isinstance(renew(store, held), Lost)
        assert release_failed(store, held) == Lost(stored(store), True)
        # Then the answer is as it was
        clock.advance(LEASE_MS)
        again = claim(store, FIRST, noted=callbacks)
        assert isinstance(again, Replay)
        assert again.record.outcome == RESULT

    def test_who_lost_its_lease_tells_nothing_beside_an_error(
        self, store: Store, clock: StoreClock
    ) -> None:
        """A copy tells that nobody knows how another run ended: it alone answers the call."""
        # Given a run without its key whose lease is over, and another that was cut off
        held = hold(store, FIRST)
        give_back(store, held)
        hold(store, SECOND)
        clock.advance(LEASE_MS)
        # When a copy tells that
        assert isinstance(claim(store, FIRST, max_interruptions=0), Unknown)
        # Then the run's end is refused
        assert complete(store, held) == Lost(stored(store))

    def test_its_retry_is_no_interruption(self, store: Store, clock: StoreClock) -> None:
        """It published its next attempt, and did not come to record that."""
        # Given
        give_back(store, hold(store, FIRST))
        clock.advance(LEASE_MS)
        # Then
        verdict = claim(store, FIRST.retried(), max_interruptions=0)
        assert isinstance(verdict, Claimed)
        assert verdict.interruptions == 0

    def test_its_lease_ends_as_any_other(self, store: Store, clock: StoreClock) -> None:
        """Renewed, it goes on; over, a copy runs."""
        held = hold(store, FIRST)
        give_back(store, held)
        clock.advance(LEASE_MS - 1)
        assert isinstance(claim(store, FIRST), Busy)
        renew(store, held)
        clock.advance(LEASE_MS - 1)
        assert isinstance(claim(store, FIRST), Busy)
        clock.advance(1)
        assert isinstance(claim(store, FIRST), Claimed)

    def test_a_late_end_is_accepted_if_no_copy_took_over(
        self, store: Store, clock: StoreClock
    ) -> None:
        """As with the key."""
        held = hold(store, FIRST)
        give_back(store, held)
        clock.advance(LEASE_MS + 1)
        assert complete(store, held) == Recorded(held.token)
        assert isinstance(claim(store, FIRST), Replay)
