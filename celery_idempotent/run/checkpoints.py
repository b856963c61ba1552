"""A long loop that goes on, after a retry or a crash, where it had come to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from celery_idempotent.core.step import MAX_NAME
from celery_idempotent.errors import StoppedAtCheckpoint
from celery_idempotent.run.steps import Steps

T = TypeVar("T")


def checkpoint(steps: Steps, name: str, cursor: Any) -> None:
    """Record a cursor; then stop, if the worker shuts down and the task allows it.

    Raises:
        StoppedAtCheckpoint: the run stops here.
        ClaimLost, NotCommitted, ValueError: as :meth:`.Steps.reach`.
    """
    steps.reach(name, cursor)
    if steps.may_stop:
        raise StoppedAtCheckpoint(f"stopped behind {cursor!r:.80}: the worker shuts down")


def resume(
    steps: Steps | None,
    name: str,
    items: Iterable[T] | Callable[[Any], Iterable[T]],
    cursor: Callable[[T], Any] | None,
    every: int | None,
    seconds: float,
) -> Iterator[T]:
    """Yield the items behind the last checkpoint; see :meth:`.RunContext.resume`."""
    if not isinstance(name, str) or not name or len(name) > MAX_NAME:
        raise ValueError(f"a loop's name is text of 1 to {MAX_NAME} characters, not {name!r}")
    last = None if steps is None else steps.cursor(name)
    found: Iterator[tuple[Any, T]]
    if callable(items):
        if cursor is None:
            raise ValueError("where items is a function of the last cursor, give cursor=, too")
        found = ((cursor(item), item) for item in items(last))
    elif cursor is None:
        start = -1 if last is None else last
        found = ((at, item) for at, item in enumerate(items) if at > start)
    else:
        found = _behind(items, cursor, last)
    return _yield(steps, name, found, every, seconds)


def _behind(items: Iterable[T], cursor: Callable[[T], Any], last: Any) -> Iterator[tuple[Any, T]]:
    """Yield the items behind a cursor. They have to come in ascending order: else some are lost."""
    before: Any = None
    for item in items:
        at = cursor(item)
        if before is not None and not before < at:
            raise ValueError(
                f"items must come in ascending order of their cursor, and {at!r:.80} came after "
                f"{before!r:.80}: sort them by it"
            )
        before = at
        if last is None or last < at:
            yield at, item


def _yield(
    steps: Steps | None,
    name: str,
    found: Iterator[tuple[Any, T]],
    every: int | None,
    seconds: float,
) -> Iterator[T]:
    if steps is None:
        for _, item in found:
            yield item
        return
    done, since, at = 0, time.monotonic(), None
    for at, item in found:
        yield item
        # The loop came back for the next item: it is done with this one.
        done += 1
        due = done >= every if every is not None else time.monotonic() - since >= seconds
        if due or steps.may_stop:
            checkpoint(steps, name, at)
            done, since = 0, time.monotonic()
    if done:
        steps.reach(name, at)
