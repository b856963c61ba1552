"""The store contract: reservations, which stop a call while an equal one is in its queue."""

from __future__ import annotations

from typing import Any

import pytest

from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import Label, State
from celery_idempotent.core.reservation import Reservation, queued_key
from celery_idempotent.core.verdicts import (
    Busy,
    Claimed,
    Mismatch,
    Recorded,
    Replay,
    Reserve,
    Reserved,
    Taken,
)
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract.kit import (
    FAILURE,
    FIRST,
    HORIZON_MS,
    KEEP_MS,
    KEY,
    LEASE_MS,
    RESULT,
    SECOND,
    STRANGER,
    THIRD,
    TTL_MS,
    Ending,
    Message,
    StoreClock,
    claim,
    compensate,
    complete,
    fail,
    hold,
    interrupt,
    note,
    release,
    release_failed,
    replace,
    retry,
    settle,
    stored,
    unknown,
)

HOLD_MS = 10_000
QUEUED_MS = 3_600_000
QUEUED_KEY = queued_key(KEY)


def reserve(
    store: Store,
    message: Message,
    *,
    attaches: bool = True,
    checked: bool = False,
    over: tuple[Message, ...] = (),
    **reservation: Any,
) -> Reserved | Taken:
    """Ask for a reservation for a message that is about to be published."""
    asked = Reservation(message.owner, fingerprint=message.fingerprint, **reservation)
    owners = tuple(one.owner for one in over)
    return store.reserve(KEY, Reserve(asked, HOLD_MS, attaches, checked, owners))


def queue(store: Store, message: Message = FIRST, **reservation: Any) -> None:
    """Reserve the key for a message, whatever has it, and confirm that it was published."""
    assert reserve(store, message, attaches=False, **reservation) == Reserved()
    store.confirm(KEY, message.owner, QUEUED_MS)


def reserved_for(store: Store) -> str | None:
    """The task id that the key is reserved for."""
    found = store.reservation(KEY)
    return None if found is None else found.task_id


class ReservedRows:
    """A call is reserved before it is published, and stops others once that is confirmed."""

    def test_a_key_is_reserved_by_who_asks_first_or_last(self, store: Store) -> None:
        """What is not confirmed stops nobody: its producer may have died before it published."""
        for message in (FIRST, SECOND):
            assert reserve(store, message) == Reserved()
            found = store.reservation(KEY)
            assert found is not None
            assert found.owner == message.owner
            assert not found.is_confirmed
        assert store.get(KEY) is None

    def test_what_is_confirmed_stops_another_call(self, store: Store) -> None:
        """It is told which call is in the queue."""
        # Given
        assert reserve(store, FIRST) == Reserved()
        store.confirm(KEY, FIRST.owner, QUEUED_MS)
        # Then
        for _ in range(2):
            assert reserve(store, SECOND) == Taken(FIRST.owner, None)
        assert reserved_for(store) == FIRST.task_id

    def test_only_ones_own_is_confirmed_and_undone(self, store: Store) -> None:
        """Another call has reserved since, or the message was delivered already."""
        # Given
        reserve(store, FIRST)
        reserve(store, SECOND)
        # When
        store.confirm(KEY, FIRST.owner, QUEUED_MS)
        store.unreserve(KEY, FIRST.owner)
        # Then
        found = store.reservation(KEY)
        assert found is not None
        assert found.owner == SECOND.owner
        assert not found.is_confirmed
        # When
        store.unreserve(KEY, SECOND.owner)
        # Then
        assert store.reservation(KEY) is None
        store.confirm(KEY, SECOND.owner, QUEUED_MS)
        assert store.reservation(KEY) is None

    def test_a_call_that_is_to_be_published_reserves_whatever_is_there(self, store: Store) -> None:
        """A member of a group, for instance: others can attach to it all the same."""
        queue(store, FIRST)
        assert reserve(store, SECOND, attaches=False) == Reserved()
        assert reserved_for(store) == SECOND.task_id

    @pytest.mark.parametrize(
        ("first", "second", "stops"),
        [
            ({"due_ms": 60_000}, {}, False),
            ({"due_ms": 60_000}, {"due_ms": 60_000}, True),
            ({}, {"due_ms": 60_000}, True),
            ({"expires_ms": 60_000}, {}, False),
            ({"expires_ms": 60_000}, {"expires_ms": 90_000}, False),
            ({"expires_ms": 60_000}, {"expires_ms": 30_000}, True),
            ({}, {"expires_ms": 30_000}, True),
            ({"keeps_result": False}, {}, False),
            ({}, {"keeps_result": False}, True),
        ],
    )
    def test_a_queued_call_stops_what_it_serves_as_well(
        self, store: Store, first: dict[str, Any], second: dict[str, Any], stops: bool
    ) -> None:
        """It comes no later, expires no sooner, and its result is kept."""
        queue(store, FIRST, **first)
        answer = reserve(store, SECOND, **second)
        assert answer == (Taken(FIRST.owner, None) if stops else Reserved())

    @pytest.mark.parametrize("checked", [True, False])
    def test_other_arguments_keep_calls_apart_where_they_are_checked(
        self, store: Store, checked: bool
    ) -> None:
        """For a queued call and for one that runs: the worker refuses such a call."""
        queue(store, FIRST)
        answer = reserve(store, STRANGER, checked=checked)
        assert answer == (Reserved() if checked else Taken(FIRST.owner, None))
        # When
        hold(store, FIRST)
        # Then
        answer = reserve(store, STRANGER, checked=checked)
        assert answer == (Reserved() if checked else Taken(FIRST.owner, State.RUNNING))
        assert reserve(store, SECOND, checked=True) == Taken(FIRST.owner, State.RUNNING)

    @pytest.mark.parametrize(
        "state", [State.RUNNING, State.RETRYING, State.SUCCEEDED, State.FAILED]
    )
    def test_the_records_call_stops_another_one(self, store: Store, state: State) -> None:
        """It runs, waits for its retry, or has an outcome; nothing is reserved."""
        # Given
        held = hold(store, FIRST)
        endings: dict[State, Ending] = {
            State.RETRYING: retry,
            State.SUCCEEDED: complete,
            State.FAILED: fail,
        }
        if state is not State.RUNNING:
            endings[state](store, held)
        before = stored(store)
        # Then
        assert reserve(store, SECOND) == Taken(FIRST.owner, state)
        assert store.reservation(KEY) is None
        assert stored(store) == before

    @pytest.mark.parametrize("how", ["released", "unknown", "compensating", "forgotten"])
    def test_a_record_without_an_outcome_to_come_stops_nobody(self, store: Store, how: str) -> None:
        """The key is free, or a worker has to say what becomes of the call."""
        # Given
        if how == "unknown":
            unknown(store)
        else:
            endings: dict[str, Ending] = {"released": release_failed, "compensating": compensate}
            endings.get(how, complete)(store, hold(store, FIRST))
        if how == "forgotten":
            store.forget(KEY, HORIZON_MS)
        # Then
        assert reserve(store, SECOND) == Reserved()

    def test_a_run_that_may_end_without_a_result_stops_nobody(self, store: Store) -> None:
        """Its label says so: its message expires, or its result is ignored."""
        alone = Label("shop.charge", "42", is_alone=True).text()
        held = hold(store, replace(FIRST, label=alone))
        assert reserve(store, SECOND) == Reserved()
        retry(store, held)
        assert reserve(store, SECOND) == Reserved()

    def test_a_call_that_is_over_is_passed_over(self, store: Store) -> None:
        """The result backend knows it: it was revoked, for instance."""
        # Given
        queue(store, FIRST)
        # Then
        assert reserve(store, THIRD, over=(SECOND,)) == Taken(FIRST.owner, None)
        # When
        hold(store, SECOND)
        # Then
        assert reserve(store, THIRD) == Taken(SECOND.owner, State.RUNNING)
        assert reserve(store, THIRD, over=(SECOND,)) == Taken(FIRST.owner, None)
        assert reserve(store, THIRD, over=(FIRST, SECOND)) == Reserved()
        assert reserved_for(store) == THIRD.task_id

    @pytest.mark.parametrize("who", [FIRST, SECOND], ids=["its own message", "another's"])
    def test_a_claim_takes_a_queued_key_like_a_free_one(self, store: Store, who: Message) -> None:
        """Whoever's message comes first; the reservation ends with it."""
        queue(store, FIRST)
        assert isinstance(claim(store, who, queued_key=QUEUED_KEY), Claimed)
        assert store.reservation(KEY) is None
        # The producer was slower than the worker:
        store.confirm(KEY, FIRST.owner, QUEUED_MS)
        assert store.reservation(KEY) is None

    def test_a_claim_ends_it_whatever_the_key_was(self, store: Store) -> None:
        """A retry, a takeover, a released key: each grant ends it."""
        endings: tuple[Ending, ...] = (retry, interrupt, release)
        for prepare in endings:
            held = hold(store, FIRST)
            prepare(store, held)
            queue(store, SECOND)
            verdict = claim(
                store, replace(FIRST, retries=1, publication=b"anew"), queued_key=QUEUED_KEY
            )
            assert isinstance(verdict, Claimed), verdict
            assert store.reservation(KEY) is None
            store.forget(KEY, HORIZON_MS)

    def test_a_delivery_ends_its_own_reservation(self, store: Store) -> None:
        """Whatever it is answered: it is in the queue no longer. Another's stays."""
        # Given
        held = hold(store, FIRST)
        # Then
        for message, stays in ((SECOND, False), (THIRD, True)):
            queue(store, SECOND)
            assert isinstance(claim(store, message, queued_key=QUEUED_KEY), Busy)
            assert (reserved_for(store) is not None) is stays
        other = replace(STRANGER, task_id="another stranger")
        queue(store, other)
        refused = claim(store, other, checked=True, queued_key=QUEUED_KEY)
        assert isinstance(refused, Mismatch)
        assert store.reservation(KEY) is None
        # When
        complete(store, held)
        # Then
        for message, stays in ((SECOND, False), (THIRD, True)):
            queue(store, SECOND)
            assert isinstance(claim(store, message, queued_key=QUEUED_KEY), Replay)
            assert (reserved_for(store) is not None) is stays

    def test_a_message_without_a_slip_ends_it_too(self, store: Store) -> None:
        """An eager call, of which no copy can come."""
        for _ in range(2):
            queue(store, FIRST)
            ask_for = replace(FIRST, publication=b"")
            verdict = claim(store, ask_for, slip_key="", queued_key=QUEUED_KEY)
            assert isinstance(verdict, Claimed)
            assert store.reservation(KEY) is None
            store.forget(KEY, HORIZON_MS)

    def test_other_tasks_claims_know_nothing_of_it(self, store: Store) -> None:
        """Without its key in the claim, nothing is looked up or deleted."""
        queue(store, FIRST)
        hold(store, FIRST)
        assert reserved_for(store) == FIRST.task_id

    @pytest.mark.parametrize("outcome", [RESULT, FAILURE, b""])
    def test_a_release_ends_it(self, store: Store, outcome: bytes) -> None:
        """The end of a run that frees its key; the end of one that keeps it does not."""
        # Given
        held = hold(store, FIRST)
        queue(store, SECOND)
        # When
        answer = settle(
            store, held, State.RELEASED, 0, HORIZON_MS, outcome=outcome, queued_key=QUEUED_KEY
        )
        # Then
        assert isinstance(answer, Recorded)
        assert store.reservation(KEY) is None
        # When
        held = hold(store, SECOND)
        queue(store, THIRD)
        settle(store, held, State.SUCCEEDED, 0, TTL_MS, outcome=RESULT, queued_key=QUEUED_KEY)
        # Then
        assert reserved_for(store) == THIRD.task_id

    def test_to_forget_a_key_ends_it(self, store: Store) -> None:
        """With its record, or where there is none yet."""
        queue(store, FIRST)
        assert store.forget(KEY, HORIZON_MS)
        assert store.reservation(KEY) is None
        assert store.get(KEY) is None
        assert not store.forget(KEY, HORIZON_MS)
        # When
        hold(store, FIRST)
        queue(store, SECOND)
        # Then
        assert store.forget(KEY, HORIZON_MS)
        assert store.reservation(KEY) is None

    def test_a_reservation_is_no_record(self, store: Store) -> None:
        """Nothing lists it among the records."""
        queue(store, FIRST)
        assert list(store.scan("*")) == []

    def test_reservations_are_listed(self, store: Store) -> None:
        """Those of a prefix, by going through all keys; slips and records are none."""
        # Given
        keys = [f"idempotent:{{shop.charge:order:{number}}}" for number in range(3)]
        for key, message in zip(keys, (FIRST, SECOND, THIRD), strict=True):
            reservation = Reservation(message.owner, fingerprint=message.fingerprint)
            assert store.reserve(key, Reserve(reservation, HOLD_MS)) == Reserved()
        store.confirm(keys[1], SECOND.owner, QUEUED_MS)
        elsewhere = Reservation(FIRST.owner)
        assert store.reserve("other:{shop.charge:order:0}", Reserve(elsewhere, HOLD_MS))
        # Given a slip, with a record, whose key ends as a reservation's does
        odd = replace(THIRD, task_id="{x}:queued")
        complete(store, hold(store, odd, noted=True), delivery_ms=LEASE_MS)
        note(store, odd)
        assert store.slip(odd.slip_key) is not None
        # When
        pages = list(store.reserved("idempotent"))
        # Then
        found = {key: it.task_id for page in pages for key, it in page.found}
        assert found == dict(zip(keys, (FIRST.task_id, SECOND.task_id, THIRD.task_id), strict=True))
        assert sum(page.of for page in pages) >= len(found)
        confirmed = [key for page in pages for key, it in page.found if it.is_confirmed]
        assert confirmed == [keys[1]]
        assert [it for page in store.reserved("idem") for it in page.found] == []

    @pytest.mark.parametrize("task_id", ["x" * 300, "quoted {x}:sent:\n", "café"])
    def test_a_task_id_may_be_any_text(self, store: Store, task_id: str) -> None:
        """Its reservation is found again by it."""
        message = Message(task_id)
        queue(store, message)
        assert reserve(store, SECOND) == Taken(Owner(task_id).pack(), None)
        assert isinstance(claim(store, message, queued_key=QUEUED_KEY), Claimed)
        assert store.reservation(KEY) is None


class ReservedInTimeRows:
    """The instants at which a reservation, or what stops a call, runs out."""

    def test_one_that_is_over_is_not_listed(self, store: Store, clock: StoreClock) -> None:
        """From the instant on at which it ends."""
        reserve(store, FIRST)
        clock.advance(HOLD_MS - 1)
        assert [key for page in store.reserved("idempotent") for key, _ in page.found] == [KEY]
        clock.advance(1)
        assert [it for page in store.reserved("idempotent") for it in page.found] == []

    def test_an_unconfirmed_one_is_held_for_a_moment(self, store: Store, clock: StoreClock) -> None:
        """A producer that is slower than that confirms nothing any more."""
        reserve(store, FIRST)
        clock.advance(HOLD_MS - 1)
        assert reserved_for(store) == FIRST.task_id
        clock.advance(1)
        assert store.reservation(KEY) is None
        store.confirm(KEY, FIRST.owner, QUEUED_MS)
        assert store.reservation(KEY) is None

    @pytest.mark.parametrize(
        ("reservation", "lives_ms"),
        [
            ({}, QUEUED_MS),
            ({"due_ms": 60_000}, 60_000 + QUEUED_MS),
            ({"expires_ms": 90_000}, 90_000),
            ({"due_ms": 60_000, "expires_ms": 90_000}, 90_000),
        ],
    )
    def test_a_confirmed_one_lives_until_its_message_must_have_come(
        self, store: Store, clock: StoreClock, reservation: dict[str, Any], lives_ms: int
    ) -> None:
        """Until the message expires; else until it is due, and for so long after that."""
        # Given
        assert reserve(store, FIRST, **reservation) == Reserved()
        clock.advance(5_000)
        store.confirm(KEY, FIRST.owner, QUEUED_MS)
        # Then
        clock.advance(lives_ms - 5_000 - 1)
        assert reserve(store, SECOND, due_ms=90_000, expires_ms=1) == Taken(FIRST.owner, None)
        clock.advance(1)
        assert reserve(store, SECOND) == Reserved()

    @pytest.mark.parametrize(
        ("reservation", "lives_ms"), [({"due_ms": 60_000}, 60_000 + QUEUED_MS), ({}, QUEUED_MS)]
    )
    def test_it_says_since_when_and_until_when_the_key_is_reserved(
        self, store: Store, clock: StoreClock, reservation: dict[str, Any], lives_ms: int
    ) -> None:
        """Until it is confirmed for a moment, and then until its message must have come."""
        # Given
        began_ms = store.now_ms()
        reserve(store, FIRST, **reservation)
        first = store.reservation(KEY)
        # When
        clock.advance(5_000)
        store.confirm(KEY, FIRST.owner, QUEUED_MS)
        confirmed = store.reservation(KEY)
        # Then
        assert first is not None
        assert confirmed is not None
        assert (first.since_ms, first.until_ms) == (began_ms, began_ms + HOLD_MS)
        assert (confirmed.since_ms, confirmed.until_ms) == (began_ms, began_ms + lives_ms)

    def test_one_that_has_expired_is_not_confirmed(self, store: Store, clock: StoreClock) -> None:
        """Its message is not carried out any more."""
        reserve(store, FIRST, expires_ms=1_000)
        clock.advance(1_000)
        store.confirm(KEY, FIRST.owner, QUEUED_MS)
        assert store.reservation(KEY) is None

    def test_a_call_is_due_and_expires_by_the_stores_clock(
        self, store: Store, clock: StoreClock
    ) -> None:
        """Two calls with the same delay are due in the order in which they were made."""
        queue(store, FIRST, due_ms=60_000)
        clock.advance(1)
        assert reserve(store, SECOND, due_ms=59_998) == Reserved()
        queue(store, FIRST, due_ms=60_000)
        clock.advance(1)
        assert reserve(store, SECOND, due_ms=59_999) == Taken(FIRST.owner, None)

    def test_a_lease_and_a_retry_stop_others_until_they_are_over(
        self, store: Store, clock: StoreClock
    ) -> None:
        """Nobody may be there to answer."""
        # Given
        held = hold(store, FIRST)
        clock.advance(LEASE_MS - 1)
        assert reserve(store, SECOND) == Taken(FIRST.owner, State.RUNNING)
        clock.advance(1)
        assert reserve(store, SECOND) == Reserved()
        # When
        retry(store, held, 60_000)
        # Then
        clock.advance(59_999)
        assert reserve(store, SECOND) == Taken(FIRST.owner, State.RETRYING)
        clock.advance(1)
        assert reserve(store, SECOND) == Reserved()

    def test_a_window_that_is_over_stops_nobody(self, store: Store, clock: StoreClock) -> None:
        """The record is gone."""
        complete(store, hold(store, FIRST))
        clock.advance(TTL_MS - 1)
        assert reserve(store, SECOND) == Taken(FIRST.owner, State.SUCCEEDED)
        clock.advance(1)
        assert reserve(store, SECOND) == Reserved()

    def test_a_claim_lives_on_without_it(self, store: Store, clock: StoreClock) -> None:
        """What ends a reservation changes no record's time."""
        queue(store, FIRST)
        assert isinstance(claim(store, FIRST, queued_key=QUEUED_KEY), Claimed)
        clock.advance(KEEP_MS - 1)
        assert store.get(KEY) is not None
        clock.advance(1)
        assert store.get(KEY) is None
