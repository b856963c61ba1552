"""What instrumentation does to the headers of a message: so many ways of the same idea.

A table ``headers`` among the headers hides all others from ``task.request.headers``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from celery import Celery, Task, signals

__all__ = ["TRACERS"]

_TRACE = {"trace-id": "4bf92f3577b34da6", "baggage": "shop=1"}


def _nested(headers: dict[str, Any] | None) -> dict[str, Any]:
    """As Sentry's SDK before 2.55: what it adds stands at the top and in a table of its own."""
    made = {**(headers or {}), **_TRACE}
    made["headers"] = {**made.get("headers", {}), **_TRACE}
    return made


def _wrap(publish: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(publish)
    def wrapped(*args: Any, **options: Any) -> Any:
        options["headers"] = _nested(options.get("headers"))
        return publish(*args, **options)

    return wrapped


def _as_sentry() -> Callable[[], None]:
    """Wrap Celery's own methods, below whatever a task's class makes of them."""
    originals = Task.apply_async, Celery.send_task
    Task.apply_async, Celery.send_task = map(_wrap, originals)

    def undo() -> None:
        Task.apply_async, Celery.send_task = originals

    return undo


def _as_ddtrace() -> Callable[[], None]:
    """Add to the message that is about to be sent, in the signal for that."""

    def inject(headers: dict[str, Any], **_: Any) -> None:
        headers.setdefault("headers", {}).update(_TRACE)

    signals.before_task_publish.connect(inject, weak=False)
    return lambda: signals.before_task_publish.disconnect(inject)


#: By name: each instruments this process, and returns what undoes it.
TRACERS: dict[str, Callable[[], Callable[[], None]]] = {
    "sentry": _as_sentry,
    "ddtrace": _as_ddtrace,
}
