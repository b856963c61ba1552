"""The app whose tasks are delivered in schedules: one for all of them, as making one is slow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

from billiard import einfo
from celery import Celery
from celery.app.trace import build_tracer

from celery_idempotent import IdempotentTask
from tests.support.schedules.system import System
from tests.support.schedules.world import World

__all__ = ["LEASE_S", "MOST_RETRIES", "OTHERS", "REFUSING", "TASKS", "app", "played_in"]

LEASE_S = 10.0
MOST_RETRIES = 2
#: Shorter than some copies are late.
WINDOW_S = 15.0

#: Each task's options.
TASKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tracked": {"track_started": True},
    "stored": {"idempotency_store_failures": True},
    "unknown": {"idempotency_on_interrupted": "unknown"},
    "windowed": {"idempotency_ttl": WINDOW_S},
    "tracked-stored": {"track_started": True, "idempotency_store_failures": True},
}
#: Tasks whose duplicates do not wait, or not for long.
REFUSING: dict[str, dict[str, Any]] = {
    "raises": {"idempotency_on_running": "raise"},
    "drops": {"idempotency_on_running": "drop"},
    "impatient": {"idempotency_wait_timeout": 5.0},
}
#: Tasks whose calls do not wait for a store that is away, and tasks without a window.
OTHERS: dict[str, dict[str, Any]] = {
    "gives-up": {"idempotency_on_store_error": "raise"},
    "opens": {"idempotency_on_store_error": "run"},
    "free": {"idempotency_ttl": 0},
    "free-stored": {"idempotency_ttl": 0, "idempotency_store_failures": True},
    "free-opens": {"idempotency_ttl": 0, "idempotency_on_store_error": "run"},
    "in-turn": {"idempotency_ttl": 0, "idempotency_after_wait": "run"},
}

app = Celery("schedules", broker="memory://", set_as_current=False)
app.conf.update(
    result_backend="cache+memory://",
    idempotency_lease=LEASE_S,
    idempotency_journal=0,
    idempotency_events=False,
    task_publish_retry=False,
    result_extended=False,
)

#: What bodies do, while a schedule is played.
_bodies: Any = None


def _define(name: str, options: dict[str, Any]) -> None:
    @app.task(
        bind=True,
        base=IdempotentTask,
        name=f"schedules.{name}",
        idempotency_key="{key}",
        max_retries=MOST_RETRIES,
        shared=False,
        **options,
    )
    def body(self: Any, key: str) -> Any:
        return _bodies(self, key)


for _name, _options in {**TASKS, **REFUSING, **OTHERS}.items():
    _define(_name, _options)


@app.task(name="schedules.link", shared=False)
def link(result: Any) -> None:
    """Its messages are counted, not delivered."""


@app.task(name="schedules.errback", shared=False)
def errback(task_id: str) -> None:
    """Its messages are counted, not delivered."""


@app.task(name="schedules.other", acks_late=True, reject_on_worker_lost=True, shared=False)
def other(text: str) -> str:
    """What a task is replaced by."""
    return text


app.finalize()
#: kombu draws the process's identity when it first needs it: not from a schedule's chance.
_ = app.thread_oid


@contextmanager
def played_in(system: System, bodies: Any) -> Iterator[None]:
    """Let the app send, store and run in a simulated system."""
    global _bodies
    amqp = app.amqp
    before = _bodies, app.conf.broker_transport_options, amqp.__dict__.get("send_task_message")
    tasks = [app.tasks[name] for name in app.tasks if name.startswith("schedules.")]
    _bodies = bodies
    visibility = system.broker.visibility
    app.conf.broker_transport_options = {"visibility_timeout": visibility} if visibility else {}
    amqp.__dict__["send_task_message"] = lambda _, __, message, **options: system.send(
        message, options
    )
    try:
        with (
            mock.patch.object(app, "now", partial(_now, system.world)),
            mock.patch.object(app, "producer_or_acquire", _given),
            mock.patch.object(app, "_get_backend", return_value=system.results),
            # Nothing reads tracebacks, and to copy and show them took a third of the time.
            mock.patch.object(einfo, "Traceback", _nothing_of),
            mock.patch.object(einfo, "traceback", SimpleNamespace(format_exception=_one_line)),
        ):
            for task in tasks:
                task.backend = system.results
                task.__trace__ = build_tracer(task.name, task, app=app, hostname="simulated")
            yield
    finally:
        _bodies, app.conf.broker_transport_options, sender = before
        amqp.__dict__.pop("send_task_message")
        if sender is not None:
            amqp.__dict__["send_task_message"] = sender
        for task in tasks:
            task.backend = None


def _now(world: World) -> datetime:
    return datetime.fromtimestamp(world.now, timezone.utc)


def _nothing_of(_: Any) -> None:
    """Stands for the copy of a traceback that processes can exchange."""


def _one_line(kind: type[BaseException], *_: Any) -> list[str]:
    return [f"{kind.__name__}\n"]


@contextmanager
def _given(*_: Any) -> Iterator[Any]:
    yield SimpleNamespace(connection=SimpleNamespace(_reraise_as_library_errors=_nothing))


@contextmanager
def _nothing() -> Iterator[None]:
    yield
