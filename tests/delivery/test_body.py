"""A message that is put back is the message that came, whatever its body did to its arguments."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from celery import Celery
from celery.app.trace import trace_task_ret
from celery.worker.strategy import proto1_to_proto2
from kombu import serialization
from kombu.serialization import dumps, loads

from celery_idempotent import IdempotentTask
from celery_idempotent.delivery.body import Properties, body_of
from celery_idempotent.errors import StoppedAtCheckpoint
from celery_idempotent.stores.base import NotCommitted
from celery_idempotent.testing.deliveries import Message, deliver, message_of
from celery_idempotent.testing.memory import MovableStore
from celery_idempotent.worker.request import IdempotentRequest
from tests.support.serializers import SERIALIZERS


def rows(serializer: str) -> dict[Any, Any]:
    """What a call brings: numbers for keys, and tuples, which not every serializer keeps."""
    return {"1": [10, 20]} if serializer == "msgpack" else {1: [10, 20], 2: (3, 4)}


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("bodies", broker="memory://", backend="cache+memory://")
    app.conf.update(accept_content=[*SERIALIZERS], task_default_queue="bodies")
    yield app
    app.close()


Ending = Callable[[Any, MovableStore, Message], object]


def stops(task: Any, store: MovableStore, message: Message) -> None:
    raise StoppedAtCheckpoint("as the worker shuts down")


def loses_its_key(task: Any, store: MovableStore, message: Message) -> None:
    """A copy takes over, and its process ends."""
    store.advance(11_000)
    with pytest.raises(SystemExit):
        message.deliver(redelivered=True)


def is_not_committed(task: Any, store: MovableStore, message: Message) -> None:
    raise NotCommitted("the database ended the connection")


@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("ending", [stops, loses_its_key, is_not_committed])
def test_a_body_that_is_run_again_gets_what_was_sent(
    app: Celery, store: MovableStore, ending: Ending, serializer: str
) -> None:
    """Its first run took from its arguments, as Python programs do, and is put back then."""
    # Given
    seen: list[Any] = []

    @app.task(base=IdempotentTask, bind=True, idempotency_key="{order}", idempotency_lease=10)
    def book(self: Any, order: int, items: Any, *, also: Any) -> int:
        seen.append((dict(items), list(also)))
        if len(seen) == 2 and ending is loses_its_key:
            raise SystemExit
        items.clear(), also.clear()
        if len(seen) == 1:
            ending(self, store, message)
        return len(seen[-1][0])

    message = message_of(book, (1, rows(serializer)), {"also": [1, 2]}, serializer=serializer)
    brought = loads_as_sent((1, rows(serializer)), serializer)[1], [1, 2]
    # When
    (again,) = message.deliver().published
    store.advance(11_000)
    answer = again.deliver()
    # Then
    assert (answer.state, answer.result) == ("SUCCESS", len(rows(serializer)))
    assert seen == [brought] * len(seen)
    assert again.options["serializer"] == serializer


def test_a_retry_is_as_in_plain_celery(app: Celery, store: MovableStore) -> None:
    """Its arguments are those that the body leaves, and its serializer is the task's."""

    # Given
    @app.task(base=IdempotentTask, bind=True, idempotency_key="{order}")
    def book(self: Any, order: int, items: Any) -> None:
        items.clear()
        raise self.retry(countdown=1)

    # When
    (again,) = deliver(book, (1, {1: 2}), serializer="pickle").published
    # Then
    assert again.args[1] == {}
    assert again.options.get("serializer") == app.conf.task_serializer


def loads_as_sent(value: Any, serializer: str) -> Any:
    kind, encoding, content = dumps(value, serializer=serializer)
    return loads(content, kind, encoding, accept=[kind])


class Wire(NamedTuple):
    """What goes over a broker in memory, and through a worker's parent process."""

    app: Celery

    def take(self) -> Any:
        with self.app.connection_for_read() as connection:
            message = connection.default_channel.basic_get("bodies")
        message.accept = serialization.prepare_accept_content(self.app.conf.accept_content)
        return message

    def handed_on(self, task: Any, message: Any) -> tuple[Any, ...]:
        """Return what a pool's process gets of a message."""
        more: dict[str, Any] = {}
        if not message.headers.get("id"):
            body, headers, decoded, utc = proto1_to_proto2(message, message.payload)
            more = {"body": body, "headers": headers, "decoded": decoded, "utc": utc}
        request = IdempotentRequest(message, app=self.app, task=task, hostname="h", **more)
        given = request.request_dict, request.body, request.content_type, request.content_encoding
        return pickle.loads(pickle.dumps(given))

    def run(self, task: Any, message: Any) -> Any:
        request, body, kind, encoding = self.handed_on(task, message)
        return trace_task_ret(task.name, request["id"], request, body, kind, encoding, app=self.app)


@pytest.fixture
def wire(app: Celery) -> Wire:
    return Wire(app)


def stopping(app: Celery, **options: Any) -> Any:
    @app.task(base=IdempotentTask, name="stopping", bind=True, idempotency_key="{order}", **options)
    def stopping(self: Any, order: int, items: Any) -> None:
        items.clear()
        raise StoppedAtCheckpoint("as the worker shuts down")

    return stopping


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_the_same_bytes_are_published_again(
    store: MovableStore, wire: Wire, serializer: str, compression: str | None
) -> None:
    """With their content type, whatever serializer the worker's own calls have."""
    # Given
    task = stopping(wire.app)
    task.apply_async(
        (1, rows(serializer)), serializer=serializer, compression=compression, queue="bodies"
    )
    sent = wire.take()
    # When
    wire.run(task, sent)
    # Then
    again = wire.take()
    assert _as_bytes(again) == _as_bytes(sent)
    assert (again.content_type, again.content_encoding) == (
        sent.content_type,
        sent.content_encoding,
    )
    assert again.headers.get("compression") == sent.headers.get("compression")
    assert again.headers["id"] == sent.headers["id"]


def _as_bytes(message: Any) -> bytes:
    body = message.body
    return body.encode() if isinstance(body, str) else bytes(body)


def test_a_serializer_that_the_worker_can_only_read_is_kept(
    store: MovableStore, wire: Wire
) -> None:
    """Its key to sign or to encrypt may be its producer's alone: nothing is sent in clear."""

    # Given
    def cannot(value: Any) -> bytes:
        raise AssertionError("no key to encrypt with")

    wire.app.conf.accept_content = ["sealed"]
    serialization.register("sealed", lambda it: pickle.dumps(it)[::-1], None, "application/sealed")
    try:
        task = stopping(wire.app)
        task.apply_async((1, rows("pickle")), serializer="sealed", queue="bodies")
        sent = wire.take()
        opened = lambda it: pickle.loads(bytes(it)[::-1])  # noqa: E731
        serialization.register("sealed", cannot, opened, "application/sealed")
        # When
        wire.run(task, sent)
        again = wire.take()
    finally:
        serialization.unregister("sealed")
    # Then
    assert (again.content_type, _as_bytes(again)) == ("application/sealed", _as_bytes(sent))


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_where_its_links_are_sent_the_message_has_none_and_the_same_arguments(
    store: MovableStore, wire: Wire, serializer: str
) -> None:
    """Then only the third part of its body changes, and it is written by the same serializer."""

    # Given
    class Tails(IdempotentTask):
        abstract = True

        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            self.request.callbacks = None

    @wire.app.task(base=Tails, name="tails", bind=True, idempotency_key="{order}")
    def tails(self: Any, order: int, items: Any) -> None:
        items.clear()
        raise StoppedAtCheckpoint("as the worker shuts down")

    link = dict(tails.si(2, {}))
    tails.apply_async((1, rows(serializer)), serializer=serializer, link=link, queue="bodies")
    sent = wire.take()
    # When
    wire.run(tails, sent)
    # Then
    again = wire.take()
    assert again.content_type == sent.content_type
    before, after = sent.payload, again.payload
    assert after[0] == before[0]
    assert before[2]["callbacks"] and not after[2]["callbacks"]


@pytest.mark.parametrize("protocol", [1, 2])
def test_a_message_of_protocol_1_keeps_its_arguments(
    store: MovableStore, wire: Wire, protocol: int
) -> None:
    """Its body is a table, of which Celery hands on the parts; so for a worker that sends it."""
    # Given
    wire.app.conf.task_protocol = protocol
    task = stopping(wire.app)
    old = {"task": task.name, "id": "old", "args": [1, {"a": 1}], "kwargs": {}}
    with wire.app.producer_or_acquire() as producer:
        queue = wire.app.amqp.queues["bodies"]
        producer.publish(
            old, routing_key="bodies", serializer="yaml", compression="zlib", declare=[queue]
        )
    sent = wire.take()
    # When
    wire.run(task, sent)
    # Then
    again = wire.take()
    assert again.content_type == sent.content_type
    args = again.payload["args"] if protocol == 1 else again.payload[0]
    assert args == [1, {"a": 1}]


def test_it_costs_no_copy_of_the_body(store: MovableStore, wire: Wire) -> None:
    """A pool's process is given the same bytes already: pickled, they are there once."""
    # Given
    task = stopping(wire.app)
    task.apply_async((1, "x" * 100_000), serializer="pickle", queue="bodies")
    message = wire.take()
    # When
    request, body, _, _ = wire.handed_on(task, message)
    # Then
    assert request["properties"].came[0] is body


def test_who_reads_the_properties_finds_no_body_in_them() -> None:
    """They are printed, logged, and written as JSON."""
    properties = Properties({"reply_to": "me"}, (b"secret", "application/json", "utf-8", None))
    assert json.loads(json.dumps(properties)) == {"reply_to": "me"} == properties
    assert "secret" not in repr(properties)
    assert pickle.loads(pickle.dumps(properties)).came == properties.came


@pytest.mark.parametrize("properties", [None, {}, {"came": (b"[]", "application/json", "", None)}])
def test_without_our_parent_process_no_body_is_known(app: Celery, properties: Any) -> None:
    """An eager call, and a ``Request`` class of a project: nor is one that a message brings."""
    assert body_of(app, SimpleNamespace(properties=properties)) is None
