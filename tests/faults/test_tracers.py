"""Headers that instrumentation moves, and headers that are no text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
from celery import Celery

from celery_idempotent import (
    IdempotencyInProgress,
    IdempotencyKeyMismatch,
    KeyDerivationError,
)
from tests.conftest import MakeSystem
from tests.support.brokers import RabbitBroker
from tests.support.system import System, answers
from tests.support.tracers import TRACERS


@pytest.fixture(params=sorted(TRACERS))
def make_traced(request: pytest.FixtureRequest, make_system: MakeSystem) -> Iterator[MakeSystem]:
    """Make a system whose producer and workers are instrumented, in each way in turn."""
    undo: Callable[[], None] = TRACERS[request.param]()
    yield partial(make_system, test_tracer=request.param)
    undo()


def stranger(system: System) -> Celery:
    """A producer that has nothing of ours."""
    app = Celery("stranger")
    names = ("broker_url", "broker_transport_options", "result_backend", "task_default_queue")
    app.conf.update({name: system.settings[name] for name in names if name in system.settings})
    return app


def test_a_tracer_nests_the_headers(make_traced: MakeSystem) -> None:
    """Scenario 58: an explicit key is read all the same, from every producer."""
    # Given
    system = make_traced()
    system.start_worker()
    charge = system.task("charge")
    # When
    send = partial(stranger(system).send_task, "shop.charge", (1,))
    calls = [
        charge.apply_async((1,), idempotency_key="req-1"),
        charge.apply_async((1,), idempotency_key="req-1"),
        send(headers={"Idempotency-Key": "req-1"}),
        send(headers={"headers": {"idempotency-key": "req-1"}}),
        charge.apply_async((1,), idempotency_key="req-2"),
    ]
    *same, other = answers(calls)
    # And other arguments, after the run whose key they have
    (mismatch,) = answers([charge.apply_async((2,), idempotency_key="req-1")])
    # Then
    assert len({answer["receipt"] for answer in same}) == 1
    assert other["receipt"] != same[0]["receipt"]
    assert isinstance(mismatch, IdempotencyKeyMismatch)
    assert system.ledger.count("effect") == 2


def test_a_tracer_nests_the_headers_of_a_message_that_comes_again(make_traced: MakeSystem) -> None:
    """Scenario 58: a retry keeps its key, and a message that is put back what it has waited."""
    # Given
    system = make_traced(idempotency_wait_timeout=2)
    system.start_worker()
    flaky, charge = system.task("charge_flaky"), system.task("charge")
    # When
    retried = flaky.apply_async((1, 1), idempotency_key="req-1")
    held = charge.apply_async((2,), {"gate": "go"}, idempotency_key="req-2")
    system.ledger.wait_for("start", id=held.id)
    late = charge.apply_async((2,), {"gate": "go"}, idempotency_key="req-2")
    system.ledger.wait_for("received", id=retried.id, retries=1)
    again = flaky.apply_async((1, 1), idempotency_key="req-1")
    # Then
    assert retried.get(timeout=60) == again.get(timeout=60)
    assert system.ledger.ids("start", key=1) == {retried.id}
    assert isinstance(late.get(timeout=60, propagate=False), IdempotencyInProgress)
    system.ledger.open("go")
    assert held.get(timeout=30)["order"] == 2


def test_a_tracer_nests_the_headers_of_a_message_whose_process_dies(
    make_traced: MakeSystem,
) -> None:
    """Scenario 58: the worker's parent finds the explicit key, and frees it at once."""
    # Given a lease that outlasts the test, and a message that has no header of ours
    system = make_traced(idempotency_lease=600, idempotency_max_interruptions=1)
    system.start_worker(concurrency=1)
    # When
    sent = stranger(system).send_task(
        "shop.kills_its_process", (1,), headers={"idempotency-key": "req-1"}
    )
    # Then
    failure = sent.get(timeout=60, propagate=False)
    assert type(failure).__name__ == "OutcomeUnknown"
    assert system.ledger.count("start") == 2


def test_a_header_that_is_no_text(
    rabbit_broker: RabbitBroker, make_rabbit_system: MakeSystem
) -> None:
    """Scenario 58: two keys whose bytes differ in what can't be read are not made one."""
    # Given
    system = make_rabbit_system()
    system.start_worker()
    send = partial(stranger(system).send_task, "shop.charge")
    # When
    calls = [
        send((number,), headers={"idempotency-key": key})
        for number, key in enumerate((b"caf\xe9", b"caf\xe8", "café".encode()))
    ]
    # Then
    *refused, charged = answers(calls)
    assert [type(answer) for answer in refused] == [KeyDerivationError] * 2
    assert "UTF-8" in str(refused[0])
    assert charged["order"] == 2
    assert system.ledger.count("effect") == 1
