"""One delivery of a message to a task, in this process, as a worker would do it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

from celery.app.trace import build_tracer
from celery.backends.base import KeyValueStoreBackend
from kombu import serialization
from kombu.utils.uuid import uuid

from celery_idempotent.delivery import callbacks
from celery_idempotent.delivery.body import Properties
from celery_idempotent.delivery.waiting import HELD

__all__ = ["Delivered", "Message", "deliver", "message_of", "published_by", "results_of"]

# kombu has no types for these.
_registry: Any = serialization.registry


@dataclass(frozen=True)
class Message:
    """A message to a task, as a producer sent it."""

    app: Any = field(repr=False)
    #: The task's name.
    task: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    task_id: str
    #: What ``apply_async`` was given besides.
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def countdown(self) -> float:
        """In how many seconds it is to be run."""
        return float(self.options.get("countdown") or 0)

    @property
    def retries(self) -> int:
        """Which retry of its task it is."""
        return int(self.options.get("retries") or 0)

    def deliver(self, *, redelivered: bool = False) -> Delivered:
        """Deliver it; ``redelivered``: as a broker that thinks the first delivery was lost."""
        published: list[Message] = []
        return self.deliver_into(published, redelivered=redelivered)

    def deliver_into(self, published: list[Message], *, redelivered: bool) -> Delivered:
        """Deliver it; what it sends goes into a list, which is there even if it dies."""
        task = self.app.tasks[self.task]
        args, kwargs, properties = self._over_the_wire()
        request = self._request(args, kwargs, properties, redelivered)
        trace = callbacks.traced(build_tracer(task.name, task, app=self.app))
        with published_by(self.app, published), _results_in(task, results_of(self.app)):
            returned, info, _, _ = trace(self.task_id, args, kwargs, request)
            stored = task.AsyncResult(self.task_id)
            if info is not None and str(info.state) == "IGNORED" and stored.state == "REVOKED":
                return Delivered(self, "REVOKED", stored.result, tuple(published))
            if info is not None:
                return Delivered(self, str(info.state), info.retval, tuple(published))
            result = stored.result if stored.state == "SUCCESS" else returned
        return Delivered(self, "SUCCESS", result, tuple(published))

    def _over_the_wire(self) -> tuple[Any, Any, Properties]:
        """Give the arguments as the worker gets them: a tuple is a list there."""
        serializer = self.options.get("serializer") or self.app.conf.task_serializer
        sent = (self.args, self.kwargs, None)
        kind, encoding, content = _registry.dumps(sent, serializer=serializer)
        args, kwargs, _ = _registry.loads(content, kind, encoding, accept=[kind])
        return args, kwargs, Properties({}, (content, kind, encoding, None))

    def _request(
        self, args: Any, kwargs: Any, properties: Properties, redelivered: bool
    ) -> dict[str, Any]:
        options = dict(self.options)
        link, link_error = _many(options.get("link")), _many(options.get("link_error"))
        chosen = options.get("ignore_result")
        return {
            **({} if chosen is None else {"ignore_result": chosen}),
            "id": self.task_id,
            "root_id": options.get("root_id") or self.task_id,
            "parent_id": options.get("parent_id"),
            "task": self.task,
            "headers": dict(options.get("headers") or {}),
            "retries": self.retries,
            "replaced_task_nesting": options.get("replaced_task_nesting", 0),
            "group": options.get("group_id"),
            "group_index": options.get("group_index"),
            "args": args,
            "kwargs": kwargs,
            "properties": properties,
            "callbacks": link or None,
            "errbacks": link_error or None,
            "chain": options.get("chain"),
            "chord": options.get("chord"),
            "delivery_info": {
                "redelivered": redelivered,
                "routing_key": options.get("queue"),
                HELD: True,  # as a worker says that holds what waits
            },
            "hostname": "test",
            "is_eager": False,
        }


@dataclass(frozen=True)
class Delivered:
    """What a delivery came to."""

    message: Message = field(repr=False)
    #: As in Celery: SUCCESS, FAILURE, RETRY, IGNORED, REJECTED or REVOKED (dropped).
    state: str
    #: What the task returned, as ``AsyncResult.get()`` gives it; else the exception.
    result: Any
    #: What was sent to the broker meanwhile: callbacks, retries, the message itself if it waits.
    published: tuple[Message, ...] = ()

    def get(self) -> Any:
        """Give the result, or raise the exception."""
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result

    def again(self) -> Delivered:
        """Have the broker deliver the same message once more."""
        return self.message.deliver(redelivered=True)


def deliver(
    task: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    redelivered: bool = False,
    **options: Any,
) -> Delivered:
    """Send a call of a task, and run its delivery in this process, as a worker would.

    It goes through Celery's tracer: the result is stored (in memory), callbacks are sent. It is
    not an eager call, so a busy key waits and does not raise. Nothing reaches your broker: what
    would be sent is in ``published``, and each of those can be delivered in turn.

    Args:
        task: the task, bound to its app.
        args, kwargs: what it is called with.
        redelivered: as if the broker had delivered it before.
        options: as for ``apply_async``: ``task_id``, ``retries``, ``idempotency_key``,
            ``headers``, ``link``, ...

    Returns:
        How it ended; :meth:`Delivered.again` delivers the same message once more.
    """
    return message_of(task, args, kwargs, **options).deliver(redelivered=redelivered)


def message_of(
    task: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
) -> Message:
    """Give the message that a call would send."""
    published: list[Message] = []
    with published_by(task.app, published):
        try:
            task.apply_async(args, kwargs, **options)
        except TypeError as exc:
            stray = [name for name in signature(task.run).parameters if name in options]
            if not stray:
                raise
            raise TypeError(
                f"{exc}: {stray[0]} was taken as an option of the call; its arguments go into args "
                f"and kwargs: kwargs={{{stray[0]!r}: ...}}"
            ) from exc
    return published[-1]


@contextmanager
def published_by(app: Any, published: list[Message]) -> Iterator[None]:
    """Take what an app sends to its broker, and send nothing."""
    real, eager = vars(app).get("send_task"), app.conf.task_always_eager

    def send_task(
        name: str, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any
    ) -> Any:
        task_id = task_id or uuid()
        published.append(Message(app, name, args or (), kwargs or {}, task_id, options))
        return app.AsyncResult(task_id)

    app.send_task = send_task
    app.conf.task_always_eager = False
    try:
        yield
    finally:
        app.conf.task_always_eager = eager
        if real is None:
            del app.send_task
        else:
            app.send_task = real


class Results(KeyValueStoreBackend):  # type: ignore[misc, unused-ignore]
    """A result backend in memory."""

    implements_incr = True

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self._values: dict[Any, Any] = {}

    def clear(self) -> None:
        """Forget all of them."""
        self._values.clear()

    def get(self, key: Any) -> Any:
        return self._values.get(key)

    def mget(self, keys: Sequence[Any]) -> list[Any]:
        return [self._values.get(key) for key in keys]

    def set(self, key: Any, value: Any) -> None:
        self._values[key] = value

    def delete(self, key: Any) -> None:
        self._values.pop(key, None)

    def incr(self, key: Any) -> Any:
        self._values[key] = int(self._values.get(key, 0)) + 1
        return self._values[key]

    def expire(self, key: Any, value: Any) -> None:
        """Nothing expires within a test."""


_results: WeakKeyDictionary[Any, Results] = WeakKeyDictionary()


def results_of(app: Any) -> Results:
    """Give where the results of an app's deliveries are kept."""
    results = _results.get(app)
    if results is None:
        results = _results[app] = Results(app)
    return results


@contextmanager
def _results_in(task: Any, results: Results) -> Iterator[None]:
    before = vars(task).get("_backend")
    task.backend = results
    try:
        yield
    finally:
        task.backend = before


def _many(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
