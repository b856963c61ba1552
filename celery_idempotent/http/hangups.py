"""Continues the work of an event loop when the client hangs up: it will send the request again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

log = logging.getLogger("celery_idempotent")

T = TypeVar("T")

#: The event loop itself has only weak references to its tasks.
_under_way: Final[set[asyncio.Task[Any]]] = set()


async def detached(work: Coroutine[Any, Any, T]) -> T:
    """Await work that continues by itself if this is cancelled."""
    task = _begin(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            task.add_done_callback(_tell)
        raise


async def despite_hang_up(work: Coroutine[Any, Any, T], gone: asyncio.Event) -> T:
    """Await work to its end, even if this is cancelled meanwhile; that sets ``gone``.

    It is for a server that cleans up once this has returned. The end of the event loop cancels the
    work.
    """
    task = _begin(work)
    while True:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.done():
                raise
            gone.set()


def _begin(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    task = asyncio.ensure_future(work)
    _under_way.add(task)
    task.add_done_callback(_under_way.discard)
    return task


def _tell(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("a request failed after its client had hung up", exc_info=task.exception())
