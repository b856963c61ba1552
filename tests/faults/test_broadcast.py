"""A fanout exchange, Celery's ``Broadcast``: every worker gets a copy of each message."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery.result import AsyncResult
from kombu import Connection, Exchange

from tests.conftest import MakeSystem
from tests.support.brokers import Broker
from tests.support.system import System, answers
from tests.support.waiting import eventually
from tests.support.workers import Worker

WORKERS = 3
#: Short: a copy that waits comes again when the lease would end.
LEASE = 4


@pytest.fixture
def exchange(broker: Broker) -> Iterator[str]:
    """The name of the exchange."""
    name = f"all-{uuid.uuid4().hex[:8]}"
    yield name
    if broker.name == "rabbitmq":
        with Connection(broker.producer_url) as connection:
            connection.default_channel.exchange_delete(name)


@pytest.fixture
def system(make_system: MakeSystem, exchange: str) -> System:
    made = make_system(test_broadcast=exchange, idempotency_lease=LEASE)
    for _ in range(WORKERS):
        made.start_worker(concurrency=1)
    return made


def broadcast(system: System, order: int) -> AsyncResult:
    """Have every worker charge an order, at the gate "go"."""
    return send(system, "charge", order, gate="go")


def send(system: System, task: str, *args: Any, **kwargs: Any) -> AsyncResult:
    """Have every worker get a call."""
    name = system.settings["test_broadcast"]
    result: AsyncResult = system.task(task).apply_async(
        args,
        kwargs,
        queue=name,
        declare=[Exchange(name, type="fanout")],  # else Redis's transport takes it for another
    )
    return result


def ended(system: System, call: AsyncResult, *states: str) -> int:
    """How many deliveries of a call have ended so."""
    return sum(system.ledger.count("finished", id=call.id, state=state) for state in states)


def test_a_message_that_is_put_back_comes_to_one_worker(system: System) -> None:
    """Scenario 64: a copy is put back where it came from; its exchange would hand it to everybody.

    Each copy comes again, waits while the call runs, and there are never more of them.
    """
    # When each of the copies has come again, and of a duplicate's, too
    first = broadcast(system, 1)
    system.ledger.wait_for("start", id=first.id)
    second = broadcast(system, 1)
    for call in (first, second):
        more = WORKERS + (WORKERS - 1)
        system.ledger.wait_for("received", times=more, id=call.id, timeout=60)
    system.ledger.open("go")
    # Then all of them are answered
    one, two = answers([first, second], timeout=60)
    assert one == two
    assert system.ledger.count("start") == system.ledger.count("effect") == 1
    for call in (first, second):
        times = {"times": WORKERS, "timeout": 60}
        system.ledger.wait_for("finished", id=call.id, state="SUCCESS", **times)
        # And each of them was put back once each time
        eventually(
            lambda call=call: (
                system.ledger.count("received", id=call.id)
                == WORKERS + ended(system, call, "RETRY", "IGNORED")
            ),
            "each was put back once each time",
        )


def test_a_copy_takes_over_from_a_worker_that_dies(system: System) -> None:
    """Scenario 64: the dead worker's queue goes with it, and another's copy is all there is."""
    # Given
    call = broadcast(system, 1)
    system.ledger.wait_for("start", id=call.id)
    system.ledger.wait_for("finished", times=WORKERS - 1, id=call.id, state="IGNORED")

    # A worker counts a copy as active for a moment after its process has let go of it
    def who_runs_it() -> list[Worker]:
        found = [it for it in system.workers if is_running(system, it.node, call.id)]
        return found if len(found) == 1 else []

    (runs,) = eventually(who_runs_it, "one worker runs it")
    # When
    runs.kill()
    system.ledger.open("go")
    # Then
    assert call.get(timeout=60)["order"] == 1
    assert system.ledger.count("start", interrupted=True) == 1


def test_a_retry_comes_once_to_each(system: System) -> None:
    """Scenario 64: of each attempt every worker gets a copy, and one of them runs it."""
    # When
    call = send(system, "charge_flaky", 1, fails=2, countdown=0)
    # Then
    assert call.get(timeout=60)["order"] == 1
    for attempt in range(3):
        assert system.ledger.count("start", id=call.id, retries=attempt) == 1
        system.ledger.wait_for("received", times=WORKERS, id=call.id, retries=attempt)


def is_running(system: System, node: str, task_id: str) -> bool:
    """Whether a worker's process is in the body of this call."""
    found: list[str] = []

    def asked() -> bool:
        inspect = system.app.control.inspect(destination=[node], timeout=5.0, limit=1)
        active = inspect.active() or {}
        found[:] = [task["id"] for tasks in active.values() for task in tasks]
        return bool(active)

    eventually(asked, f"{node} answers")
    return task_id in found
