"""Quorum queues on RabbitMQ, where Celery has the broker itself delay messages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kombu import Connection

from tests.conftest import MakeSystem
from tests.support.brokers import AMQP_URL, RabbitBroker
from tests.support.system import answers

#: Celery declares one queue and one exchange of this name for each bit of a delay.
DELAY = "celery_delayed_{}"


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


def test_waits_and_retries_are_delayed_by_the_broker(make_rabbit_system: MakeSystem) -> None:
    """Duplicates wait in whole seconds, are answered, and the task retries as it would."""
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
        system.ledger.wait_for("executed", times=2, id=duplicate.id)
    system.ledger.open("go")
    # Then
    assert len({answer["receipt"] for answer in answers([first, *duplicates], timeout=60)}) == 1
    assert system.ledger.count("start") == 1
    # When
    retried = [flaky.delay(2, fails=1, countdown=1) for _ in range(2)]
    # Then
    assert len({answer["receipt"] for answer in answers(retried, timeout=60)}) == 1
    assert system.ledger.count("effect", key=2) == 1
