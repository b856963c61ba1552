"""Each signal is sent with what its event says, and only for what it is about."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.exceptions import Retry

from celery_idempotent import IdempotentTask, OutcomeUnknown, signals
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.settings import environment_of
from celery_idempotent.signals import (
    ClaimLostEvent,
    Event,
    InterruptedEvent,
    StoreUnavailableEvent,
    WaitingEvent,
)
from celery_idempotent.testing import deliver

NAMES = (
    "task_deduplicated",
    "task_waiting",
    "task_interrupted",
    "claim_lost",
    "key_mismatch",
    "store_unavailable",
)
WHAT_TO_DO = (
    "look in the log of its worker and at the service that it called, find out whether the effect "
    "happened, then settle the key order:42 with `celery idempotency resolve` (--rerun runs it "
    "again): docs/unknown-outcomes.rst"
)


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Celery:
    app = Celery(f"signals-{id(request)}", broker="memory://", backend="cache+memory://")
    app.conf.idempotency_store_url = f"memory://{uuid4().hex}"
    app.task = partial(app.task, shared=False)
    return app


@pytest.fixture
def heard() -> Iterator[list[tuple[str, Any, Any]]]:
    """What is sent: the signal's name, its sender, and the event."""
    events: list[tuple[str, Any, Any]] = []
    receivers = []
    for name in NAMES:

        def receive(sender: Any, event: Any, name: str = name, **_: Any) -> None:
            events.append((name, sender, event))

        getattr(signals, name).connect(receive)
        receivers.append((getattr(signals, name), receive))
    yield events
    for signal, receive in receivers:
        signal.disconnect(receive)


def charge_of(app: Celery, **options: Any) -> Any:
    @app.task(
        base=IdempotentTask, name="signals.charge", idempotency_key="order:{order}", **options
    )
    def charge(order: int, fails: Any = None) -> int:
        if fails is not None:
            raise fails
        return order

    return charge


def test_a_duplicate(app: Celery, heard: list[Any]) -> None:
    """It names the call whose outcome it got; the first call sends nothing."""
    # Given
    charge = charge_of(app)
    # When
    first, second = charge.apply((42,)), charge.apply((42,))
    # Then
    event = Event("signals.charge", "order:42", second.id, first.id)
    assert heard == [("task_deduplicated", charge, event)]


def test_other_arguments(app: Celery, heard: list[Any]) -> None:
    """It names the call that had the key."""
    # Given
    charge = charge_of(app)
    first = charge.apply((1,), idempotency_key="k")
    # When
    second = charge.apply((2,), idempotency_key="k")
    # Then
    assert heard == [("key_mismatch", charge, Event("signals.charge", "k", second.id, first.id))]


def test_a_run_after_one_that_was_cut_off(app: Celery, heard: list[Any]) -> None:
    """It says how many were, and names the call that runs."""
    # Given
    charge = charge_of(app)
    with pytest.raises(SystemExit):
        charge.apply((42, SystemExit()))
    assert heard == []
    # When
    second = charge.apply((42,))
    # Then
    event = InterruptedEvent("signals.charge", "order:42", second.id, second.id, 1, False)
    assert heard == [("task_interrupted", charge, event)]


def test_an_outcome_that_is_unknown(app: Celery, heard: list[Any]) -> None:
    """The call that finds it so names the one that was cut off."""
    # Given
    charge = charge_of(app, idempotency_on_interrupted="unknown")
    with pytest.raises(SystemExit):
        charge.apply((42, SystemExit()), task_id="first")
    # When
    second = charge.apply((42,))
    # Then
    assert isinstance(second.result, OutcomeUnknown)
    assert "(task first) was cut off, and nobody knows what it did: " in str(second.result)
    assert WHAT_TO_DO in str(second.result)
    event = InterruptedEvent("signals.charge", "order:42", second.id, "first", 1, True)
    assert heard == [("task_interrupted", charge, event)]


def test_an_outcome_that_reconcile_leaves_unknown(app: Celery, heard: list[Any]) -> None:
    """The run says that it follows one that was cut off, and then that nobody knows."""
    # Given
    charge = charge_of(app, idempotency_reconcile=lambda order, fails=None: 1 / 0)
    with pytest.raises(SystemExit):
        charge.apply((42, SystemExit()))
    # When
    second = charge.apply((42,))
    # Then
    assert isinstance(second.result, OutcomeUnknown)
    assert WHAT_TO_DO in str(second.result)
    events = [
        InterruptedEvent("signals.charge", "order:42", second.id, second.id, 1, is_unknown)
        for is_unknown in (False, True)
    ]
    assert heard == [("task_interrupted", charge, event) for event in events]


def test_a_store_that_does_not_answer_a_claim(
    app: Celery, heard: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says why, and what was done."""
    # Given
    charge = charge_of(app)

    def away(*_: Any) -> None:
        raise StoreUnavailable("nobody is there")

    monkeypatch.setattr(environment_of(app).store, "claim", away)
    # When
    call = charge.apply((42,))
    # Then
    event = StoreUnavailableEvent(
        "signals.charge", "order:42", call.id, None, "nobody is there", "raise"
    )
    assert heard == [("store_unavailable", charge, event)]


@pytest.mark.parametrize(
    ("fails", "state"), [(None, "succeeded"), (ValueError(), "released"), (Retry(), "retrying")]
)
def test_a_store_that_does_not_take_an_end(
    app: Celery, heard: list[Any], monkeypatch: pytest.MonkeyPatch, fails: Any, state: str
) -> None:
    """The end is recorded later."""
    # Given
    charge = charge_of(app)

    def away(*_: Any) -> None:
        raise StoreUnavailable("nobody is there")

    monkeypatch.setattr(environment_of(app).store, "settle", away)
    # When
    call = charge.apply((42, fails))
    # Then
    error = f"could not record that it is {state}"
    event = StoreUnavailableEvent(
        "signals.charge", "order:42", call.id, None, error, "record later"
    )
    assert heard == [("store_unavailable", charge, event)]


def test_a_key_that_is_lost(app: Celery, heard: list[Any]) -> None:
    """It names who has it now, and the token that was held."""
    # Given
    tokens = []

    @app.task(base=IdempotentTask, bind=True, name="signals.lose")
    def lose(self: Any, order: int) -> None:
        tokens.append(self.idempotency.token)
        lose.forget(order)
        with pytest.raises(Exception, match="no longer"):
            self.idempotency.check()

    # When
    call = lose.apply((42,))
    # Then
    (name, sender, event), *rest = heard
    assert (name, sender, rest) == ("claim_lost", lose, [])
    assert event == ClaimLostEvent("signals.lose", event.key, call.id, None, tokens[0])


@pytest.mark.parametrize("same", [False, True], ids=["another call", "a copy of its own"])
def test_a_key_that_is_busy(app: Celery, heard: list[Any], same: bool) -> None:
    """It names whom the delivery waits for, and says how long, and whether that is itself."""
    # Given
    charges: list[Any] = []

    @app.task(base=IdempotentTask, bind=True, name="signals.busy", idempotency_key="order:{order}")
    def busy(self: Any, order: int) -> None:
        if not charges:
            charges.append(self.request.id)
            deliver(busy, (order,), task_id=self.request.id if same else "second")

    # When
    deliver(busy, (42,), task_id="first")
    # Then
    (name, sender, event), *rest = heard
    assert (name, sender, rest) == ("task_waiting", busy, [])
    expected = WaitingEvent(
        "signals.busy", "order:42", "first" if same else "second", "first", event.delay, same
    )
    assert event == expected
    assert event.delay > 0
