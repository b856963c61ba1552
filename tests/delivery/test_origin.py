"""A message is put back into the queue that it came from, whatever else its exchange feeds."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue, binding
from kombu.common import Broadcast

from celery_idempotent.delivery.origin import Origin, origin_of


def app_of(*queues: Queue, broker: str = "amqp://") -> Celery:
    app = Celery("origin", broker=broker, set_as_current=False)
    app.conf.task_queues = queues
    return app


def origin(app: Celery, exchange: str, key: str, natively: bool = False) -> Origin:
    return origin_of(app, {"exchange": exchange, "routing_key": key}, natively)


def named(found: Origin) -> str:
    """The queue that a route leads to by its name alone."""
    queue: Any = found.route["queue"]
    assert (found.route["exchange"], found.route["routing_key"]) == ("", queue.name)
    assert (queue.exchange.type, queue.no_declare) == ("direct", True)
    return str(queue.name)


TOPIC = Exchange("orders", type="topic")
FANOUT = Exchange("all", type="fanout")
DIRECT = Exchange("work", type="direct")


@pytest.mark.parametrize(
    ("exchange", "key"), [("", "celery"), ("", "another"), ("unknown", "key"), ("", "")]
)
def test_most_go_where_celery_sends_a_retry(exchange: str, key: str) -> None:
    """By the name of their queue, or by an exchange that this worker knows nothing of."""
    app = app_of(Queue("celery"), Broadcast("all", queue="mine"))
    assert origin(app, exchange, key) == Origin({})
    assert origin_of(app, None, False) == Origin({})


@pytest.mark.parametrize(("exchange", "key"), [("all", "celery"), ("all", ""), ("", "mine")])
def test_a_fanout_exchange(exchange: str, key: str) -> None:
    """The first time by the exchange, then by the queue's name: each time into that queue."""
    found = origin(app_of(Queue("celery"), Broadcast("all", queue="mine")), exchange, key)
    assert named(found) == "mine"
    assert (found.is_fanned_out, found.reaches_all) == (True, False)


@pytest.mark.parametrize("broker", ["redis://", "sentinel://"])
def test_a_fanout_exchange_on_redis(broker: str) -> None:
    """It can only be sent to all; a connection has to know that the exchange is one of these."""
    app = app_of(Broadcast("all", queue="mine"), broker=broker)
    found = origin(app, "all", "celery")
    assert (found.is_fanned_out, found.reaches_all) == (True, True)
    (declared,) = found.route["declare"]
    assert (declared.name, declared.type) == ("all", "fanout")


@pytest.mark.parametrize(
    ("key", "queue"),
    [("order.paid", "paid"), ("order.eu.new", "new"), ("order", "every"), ("other.x", "every")],
)
def test_a_topic_exchange(key: str, queue: str) -> None:
    """The first queue of this worker whose pattern fits: an exchange has several."""
    app = app_of(
        Queue("paid", TOPIC, "order.*"),
        Queue("new", TOPIC, "order.#.new"),
        Queue("every", TOPIC, "#"),
    )
    assert named(origin(app, "orders", key)) == queue
    assert named(origin(app, "", queue)) == queue


def test_a_direct_exchange_with_several_queues() -> None:
    """By the exchange each of them would get a copy."""
    app = app_of(Queue("one", DIRECT, "key"), Queue("two", DIRECT, "key"))
    assert named(origin(app, "work", "key")) == "one"
    assert origin(app, "work", "another key") == Origin({})


def test_a_queue_with_several_bindings() -> None:
    """Each of them may have brought the message."""
    app = app_of(Queue("both", bindings=[binding(FANOUT), binding(TOPIC, "order.#")]))
    assert named(origin(app, "orders", "order.paid")) == "both"
    assert origin(app, "all", "").is_fanned_out


@pytest.mark.parametrize(
    ("exchange", "key"),
    [
        ("orders", "order.paid"),
        ("celery_delayed_27", "0.0.1.order.paid"),
        ("celery_delayed_27", "0.0.1.order.*"),
        ("mine_celery_delayed_27", "0.0.1.order.paid"),
    ],
)
def test_a_broker_that_delays(exchange: str, key: str) -> None:
    """It does so by the exchange; without its queue Celery would send it to the task's."""
    queue = Queue("paid", TOPIC, "order.*")
    found = origin(app_of(Queue("celery"), queue), exchange, key, natively=True)
    assert set(found.route) == {"queue"}
    assert found.route["queue"].name == "paid"


def test_only_queues_of_this_worker() -> None:
    """What others consume didn't bring it here."""
    app = app_of(Queue("one", DIRECT, "key"), Queue("two", DIRECT, "key"))
    app.amqp.queues.select(["two"])
    assert named(origin(app, "work", "key")) == "two"
