"""Quorum queues on RabbitMQ, where Celery has the broker itself delay messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import signals
from kombu import Connection

from tests.conftest import MakeSystem
from tests.support.brokers import AMQP_URL, RabbitBroker
from tests.support.system import System, answers

pytestmark = pytest.mark.matrix

#: Celery declares one queue and one exchange of this name for each bit of a delay.
DELAY = "celery_delayed_{}"
TURNS = 10


@pytest.fixture(autouse=True)
def nothing_left_behind(rabbit_broker: RabbitBroker) -> Iterator[None]:
    """Remove what Celery declares for delays, unless it was there before."""
    with Connection(AMQP_URL) as connection:
        try:
            connection.channel().queue_declare(DELAY.format(0), passive=True)
            was_there = True
        except connection.channel_errors:
            was_there = False
    yield
    if not was_there:
        with Connection(AMQP_URL) as connection:
            channel = connection.channel()
            for bit in range(28):
                channel.queue_delete(DELAY.format(bit))
                channel.exchange_delete(DELAY.format(bit))
            channel.exchange_delete("celery_delayed_delivery")


@pytest.fixture
def quorum_system(
    make_rabbit_system: MakeSystem, rabbit_broker: RabbitBroker
) -> Iterator[Callable[..., System]]:
    """Make a system of two such queues; nothing is put back for more than a second."""
    names = [rabbit_broker.queue, f"{rabbit_broker.queue}-other"]

    def make(**settings: Any) -> System:
        system = make_rabbit_system(
            test_quorum=names,
            broker_transport_options={"confirm_publish": True},
            worker_detect_quorum_queues=True,
            idempotency_ttl=2,
            task_options={"shop.charge_flaky": {"max_retries": TURNS}},
            **settings,
        )
        # A worker of Celery 5.5 delays nothing where a queue is missing that it doesn't consume.
        with system.app.connection_for_write() as connection:
            for queue in system.app.amqp.queues.values():
                queue(connection.default_channel).declare()
        return system

    yield make
    with Connection(AMQP_URL) as connection:
        for name in names:
            connection.channel().queue_delete(name)
            connection.channel().exchange_delete(f"{name}-topic")


@contextmanager
def sent_twice(system: System) -> Iterator[None]:
    """Send each message twice: the second is delivered as a copy of the first."""

    def again(
        body: Any, exchange: str, routing_key: str, headers: Any, properties: Any, **_: Any
    ) -> None:
        with system.app.connection_for_write() as connection:
            producer = connection.Producer()
            route = {"exchange": exchange, "routing_key": routing_key}
            producer.publish(body, **route, headers=dict(headers), **properties)

    signals.before_task_publish.connect(again)
    yield
    signals.before_task_publish.disconnect(again)


@pytest.mark.long(15)
def test_ten_turns_of_waiting(quorum_system: Callable[..., System]) -> None:
    """A duplicate and the call's own copy wait ten times each; the copy takes over, both are run.

    The broker delays each of them by letting it expire in one queue after another. With the headers
    that tell of that, RabbitMQ takes a message which comes again for one that goes in circles, and
    drops it.
    """
    # Given
    system = quorum_system(idempotency_lease=10)
    system.start_worker(concurrency=2)
    charge = system.task("charge")
    with sent_twice(system):
        call = charge.delay(1, gate="go")
    # When
    duplicate = charge.delay(1, gate="go")
    # Then
    for task_id, state in ((duplicate.id, "RETRY"), (call.id, "IGNORED")):
        system.ledger.wait_for("finished", times=TURNS, id=task_id, state=state, timeout=60)
    assert system.ledger.count("start") == 1
    # When the run is lost with its worker
    (worker,) = system.workers
    worker.kill()
    system.start_worker(concurrency=2)
    system.ledger.wait_for("start", times=2, timeout=60)
    system.ledger.open("go")
    # Then
    assert [answer["order"] for answer in answers([call, duplicate], timeout=60)] == [1, 1]
    assert system.ledger.count("start", interrupted=True) == 1
    assert "is a direct exchange" not in worker.log  # or the worker itself would have delayed them


def test_ten_turns_of_retrying(quorum_system: Callable[..., System]) -> None:
    """Each attempt is run once, while a duplicate waits for the last of them."""
    # Given
    system = quorum_system()
    system.start_worker(concurrency=2)
    flaky = system.task("charge_flaky")
    # When
    calls = [flaky.delay(1, fails=TURNS, countdown=1) for _ in range(2)]
    # Then
    assert [answer["order"] for answer in answers(calls, timeout=90)] == [1, 1]
    attempts = [entry["retries"] for entry in system.ledger.entries("start")]
    assert attempts[: TURNS + 1] == list(range(TURNS + 1))


def test_a_message_stays_in_its_queue(quorum_system: Callable[..., System]) -> None:
    """What came by another queue than the task's own waits and is retried there."""
    # Given
    system = quorum_system()
    _, other = system.settings["test_quorum"]
    system.start_worker(options=("-Q", other))
    charge, flaky = system.task("charge"), system.task("charge_flaky")
    call = charge.apply_async((1,), {"gate": "go"}, queue=other)
    system.ledger.wait_for("start", id=call.id)
    # When
    duplicate = charge.apply_async((1,), {"gate": "go"}, queue=other)
    system.ledger.wait_for("finished", times=2, id=duplicate.id, state="RETRY")
    system.ledger.open("go")
    retried = flaky.apply_async((2,), {"fails": 2, "countdown": 1}, queue=other)
    # Then
    given = answers([call, duplicate, retried], timeout=60)
    assert [answer["order"] for answer in given] == [1, 1, 2]


def test_waits_and_retries_on_a_direct_exchange(make_rabbit_system: MakeSystem) -> None:
    """There Celery has the worker delay messages: duplicates wait, and the task retries."""
    # Given
    system = make_rabbit_system(
        task_default_queue_type="quorum",
        broker_transport_options={"confirm_publish": True},
        worker_detect_quorum_queues=True,
    )
    system.start_worker()
    charge, flaky = system.task("charge"), system.task("charge_flaky")
    first = charge.delay(1, gate="go")
    system.ledger.wait_for("start", id=first.id)
    # When
    duplicates = [charge.delay(1, gate="go") for _ in range(3)]
    for duplicate in duplicates:
        system.ledger.wait_for("finished", id=duplicate.id, state="RETRY")
    system.ledger.open("go")
    # Then
    assert len({answer["receipt"] for answer in answers([first, *duplicates], timeout=60)}) == 1
    assert system.ledger.count("start") == 1
    # When
    retried = [flaky.delay(2, fails=1, countdown=1) for _ in range(2)]
    # Then
    assert len({answer["receipt"] for answer in answers(retried, timeout=60)}) == 1
    assert system.ledger.count("effect", key=2) == 1
