"""One relay, given its database: SQLAlchemy's and Django's on real brokers that refuse and hang."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from celery import Celery
from kombu import Connection
from sqlalchemy import Engine, create_engine, select

from celery_idempotent import outbox
from celery_idempotent.outbox.schema import outbox as table
from celery_idempotent.testing.servers import RedisServer
from tests.support.brokers import RabbitBroker
from tests.support.databases import Database
from tests.support.django_system import DjangoSystem
from tests.support.djangos import database_of
from tests.support.proxy import Proxy
from tests.support.relays import RelayProcess
from tests.support.waiting import eventually

pytestmark = [pytest.mark.system, pytest.mark.long(10)]

#: The app's own time limits: with those that the relay sets a test would take longer.
LIMITS: dict[str, Any] = {"broker_connection_timeout": 1}
EAGERLY = ("--interval", "0.1")


@dataclass
class Queue:
    """A broker behind a proxy, and one queue of it."""

    name: str
    url: str
    #: Past the proxy.
    direct_url: str
    proxy: Proxy
    options: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        return {
            **LIMITS,
            "broker_url": self.url,
            "task_default_queue": self.name,
            "broker_transport_options": self.options,
        }

    def ids(self, name: str | None = None) -> list[str]:
        """The task ids of its messages, which are taken out."""
        with Connection(self.direct_url) as connection:
            queue = connection.SimpleQueue(name or self.name)
            messages = [queue.get(timeout=5) for _ in range(queue.qsize())]
            for message in messages:
                message.ack()
            queue.close()
        return [message.headers["id"] for message in messages]


@pytest.fixture
def rabbitmq(rabbit_broker: RabbitBroker) -> Iterator[Queue]:
    yield Queue(
        rabbit_broker.queue,
        rabbit_broker.url,
        rabbit_broker.producer_url,
        rabbit_broker.proxy,
        {"read_timeout": 1, "write_timeout": 1},
    )
    rabbit_broker.close()


@pytest.fixture
def redis_queue(redis_server: RedisServer) -> Iterator[Queue]:
    proxy = Proxy("127.0.0.1", redis_server.port)
    direct = redis_server.url()
    url = direct.replace(f":{redis_server.port}", f":{proxy.port}")
    options = {"socket_timeout": 1, "socket_connect_timeout": 1}
    yield Queue(f"relays-{uuid.uuid4().hex[:8]}", url, direct, proxy, options)
    proxy.close()


class Running(Protocol):
    """A relay in a process of its own."""

    @property
    def log(self) -> str: ...
    def stop(self) -> int: ...
    def wait(self) -> int: ...


@dataclass
class Side:
    """An application that writes calls into its outbox, and relays that send them."""

    #: Publishes calls of a task that nobody here knows, in one transaction; gives their ids.
    publish: Callable[..., list[str]]
    start_relay: Callable[..., Running]
    #: The task ids of what waits.
    waiting: Callable[[], list[str]]


class DjangoRelay:
    """``manage.py idempotency relay`` as an operator starts it."""

    def __init__(self, system: DjangoSystem, options: tuple[str, ...]) -> None:
        self._path = system.directory / f"{len(system.processes)}.log"
        self._process = system.start("-m", "django", "idempotency", "relay", *options)

    @property
    def log(self) -> str:
        return self._path.read_text(errors="replace")

    def stop(self) -> int:
        self._process.terminate()
        return self.wait()

    def wait(self) -> int:
        return self._process.wait(60)


def call(task_id: str, **options: Any) -> Any:
    """A call of a task that the relay doesn't know."""
    app = Celery("elsewhere", broker="memory://", set_as_current=False)
    return app.signature("elsewhere.do", args=(1,)).set(task_id=task_id, **options)


@pytest.fixture(params=["sqlalchemy", "django"])
def make_side(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path
) -> Iterator[Callable[[Queue], Side]]:
    """Give each outbox in turn, on PostgreSQL."""
    closing: list[Callable[[], Any]] = []
    kind = request.param
    if kind == "sqlalchemy":
        database = Database("postgresql", tmp_path)
        closing.append(database.drop)
        yield lambda queue: _sqlalchemy(queue, database, tmp_path, closing)
    else:
        with database_of("postgresql", tmp_path) as alias:
            yield lambda queue: _django(queue, alias, redis_server, tmp_path, closing)
            for close in reversed(closing):
                close()
            closing.clear()
    for close in reversed(closing):
        close()


def _sqlalchemy(queue: Queue, database: Database, directory: Path, closing: list[Any]) -> Side:
    engine: Engine = create_engine(database.url)
    outbox.create_schema(engine)
    settings = {
        **queue.settings,
        "idempotency_store_url": "memory://",
        "test_ledger": str(directory / "ledger"),
    }

    def publish(*calls: Any) -> list[str]:
        with engine.begin() as connection:
            return [outbox.publish(connection, one).id for one in calls]

    def start_relay(*options: str) -> RelayProcess:
        relay = RelayProcess(settings, database.url, options)
        closing.append(relay.kill)
        return relay

    def waiting() -> list[str]:
        with engine.connect() as connection:
            return list(connection.scalars(select(table.c.task_id).order_by(table.c.id)))

    closing.append(engine.dispose)
    return Side(publish, start_relay, waiting)


def _django(
    queue: Queue, alias: str, server: RedisServer, directory: Path, closing: list[Any]
) -> Side:
    from django.db import transaction

    from celery_idempotent.django import models
    from celery_idempotent.django import outbox as django_outbox

    system = DjangoSystem(server, alias, directory, **queue.settings)
    closing.append(system.close)

    def publish(*calls: Any) -> list[str]:
        with transaction.atomic(using=alias):
            return [django_outbox.publish(one, using=alias).id for one in calls]

    def waiting() -> list[str]:
        rows = models.Message.objects.using(alias).order_by("id")
        return list(rows.values_list("task_id", flat=True))

    return Side(publish, lambda *options: DjangoRelay(system, options), waiting)


@pytest.fixture(params=["rabbitmq", "redis_queue"])
def queue(request: pytest.FixtureRequest) -> Queue:
    """Each broker in turn."""
    made: Queue = request.getfixturevalue(request.param)
    return made


def test_a_broker_that_hangs_loses_nothing_and_stops_no_relay(
    make_side: Callable[[Queue], Side], queue: Queue
) -> None:
    """What it took and did not confirm stays; the outage is one line; SIGTERM ends the relay."""
    # Given a broker that hangs from the third message on
    side = make_side(queue)
    ids = [f"{number}-{uuid.uuid4()}" for number in range(5)]
    queue.proxy.freeze(at=ids[2].encode())
    side.publish(*(call(task_id) for task_id in ids))
    # When
    relay = side.start_relay(*EAGERLY)
    eventually(lambda: "the broker is away" in relay.log, "the outage is noticed")
    # Then
    assert side.waiting() == ids[2:]
    # And it ends when it is told to, though the broker still hangs
    assert relay.stop() == 0
    assert relay.log.count("the broker is away") == 1
    assert "Traceback" not in relay.log
    # When the broker is there again, without what it took
    queue.proxy.thaw()
    once = side.start_relay("--once")
    # Then
    assert once.wait() == 0, once.log
    assert side.waiting() == []
    assert queue.ids() == ids


def test_a_relay_outlives_a_broker_that_hangs(
    make_side: Callable[[Queue], Side], queue: Queue
) -> None:
    """It says once that the broker went and once that it is back, and sends what waited."""
    # Given
    side = make_side(queue)
    ids = [f"{number}-{uuid.uuid4()}" for number in range(4)]
    queue.proxy.freeze(at=ids[1].encode())
    side.publish(*(call(task_id) for task_id in ids))
    relay = side.start_relay(*EAGERLY)
    eventually(lambda: "the broker is away" in relay.log, "the outage is noticed")
    # When
    queue.proxy.thaw()
    # Then
    eventually(lambda: not side.waiting(), "all is sent")
    eventually(lambda: "the broker is back" in relay.log, "the end of the outage is told")
    assert relay.stop() == 0
    assert relay.log.count("the broker is away") == relay.log.count("the broker is back") == 1
    assert queue.ids() == ids


def test_a_queue_that_refuses_holds_up_no_other(
    make_side: Callable[[Queue], Side], rabbitmq: Queue
) -> None:
    """A full queue and a missing exchange: their rows wait, the others are sent in their order."""
    # Given
    side = make_side(rabbitmq)
    full = f"{rabbitmq.name}-full"
    with Connection(rabbitmq.direct_url) as connection:
        channel = connection.default_channel
        limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
        channel.queue_declare(full, arguments=limits, auto_delete=False)
        channel.queue_bind(full, "amq.direct", full)
        try:
            to_full = {"exchange": "amq.direct", "routing_key": full}
            to_none = {"exchange": f"{full}-missing", "routing_key": "any"}
            ids = [str(uuid.uuid4()) for _ in range(6)]
            options: list[dict[str, Any]] = [to_full, to_full, {}, to_none, to_full, {}]
            side.publish(*(call(one, **more) for one, more in zip(ids, options, strict=True)))
            # When
            once = side.start_relay("--once")
            # Then
            assert once.wait() == 0, once.log
            assert side.waiting() == [ids[1], ids[3], ids[4]]
            assert rabbitmq.ids() == [ids[2], ids[5]]
            assert channel.queue_declare(full, passive=True).message_count == 1
            # And the status says so
            status = side.start_relay("--status")
            assert status.wait() == 0, status.log
            assert "3 waiting" in status.log
            assert "3 failing" in status.log
        finally:
            channel.queue_delete(full)
