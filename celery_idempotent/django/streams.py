"""Takes the responses of Django's views: whole, or while they are made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextvars import Context, copy_context
from typing import Any

from asgiref.sync import sync_to_async

from celery_idempotent.http.answer import Answer, Passing
from celery_idempotent.http.hangups import despite_hang_up
from celery_idempotent.http.messages import Response


def take(answer: Answer, response: Any) -> Response | None:
    """Take a response and record it; take a stream up to the size that is kept.

    Returns:
        The response to send instead, if any.
    """
    answer.start(response.status_code, list(response.items()))
    if not response.streaming:
        if hasattr(response, "render") and not getattr(response, "is_rendered", True):
            response.render()
        answer.add(response.content)
        return answer.finish()
    parts = iter(response)
    if not answer.take(parts):
        response.streaming_content = parts
        return None
    instead = answer.finish()
    response.streaming_content = answer.pieces()
    return instead


def pass_on(answer: Answer, response: Any) -> Any:
    """Pass on the rest of a stream while it is made."""
    parts: Iterator[bytes] = iter(response.streaming_content)
    if not answer.is_sendable:
        answer.fail()  # the server will refuse the response, and may not even close it
    closers = list(response._resource_closers)
    passing = Passing(answer, parts, copy_context())
    response.streaming_content = passing
    # It closes first: after a hang-up the source of the parts still works for a while.
    response._resource_closers[:] = [passing.close, *closers]
    return response


async def take_async(answer: Answer, response: Any, gone: asyncio.Event) -> Response | None:
    """Take a stream as :func:`take` does, and pass on the rest of it while it is made.

    Args:
        gone: set if the client hung up meanwhile.
    """
    answer.start(response.status_code, list(response.items()))
    content = response.streaming_content
    source = aiter(content) if response.is_async else _from_thread(iter(content))
    while not answer.passes:
        part = await anext(source, None)
        if part is None:
            instead = await sync_to_async(answer.finish)()
            response.streaming_content = _given(answer.pieces())
            return instead
        answer.add(part)
    if not answer.is_sendable:
        await sync_to_async(answer.fail)()  # as above
    if gone.is_set():
        answer.hang_up()
    response.streaming_content = _passing(answer, source, copy_context())
    return None


async def _passing(
    answer: Answer, source: AsyncIterator[bytes], context: Context
) -> AsyncIterator[bytes]:
    answer.is_begun = True
    coming: asyncio.Future[bytes | None] | None = None
    try:
        for piece in answer.pieces():
            yield piece
        while True:
            # In a task of its own: a hang-up cancels this one, and not the part that is made.
            coming = context.run(asyncio.ensure_future, _next(source))
            part = await asyncio.shield(coming)
            coming = None
            if part is None:
                break
            if not answer.is_for_nobody:
                yield part
            elif not answer.drop(part):
                raise asyncio.CancelledError
    except (GeneratorExit, asyncio.CancelledError):
        await despite_hang_up(_drain(answer, source, context, coming), asyncio.Event())
        raise
    except BaseException as exc:
        await sync_to_async(answer.fail)(exc)
        raise
    # Before the end is sent: a client that has received it finds it recorded.
    await despite_hang_up(sync_to_async(answer.finish)(), asyncio.Event())


async def _drain(
    answer: Answer,
    source: AsyncIterator[bytes],
    context: Context,
    coming: asyncio.Future[bytes | None] | None,
) -> None:
    """Continue a response that nobody reads, up to a limit."""
    answer.hang_up()
    try:
        while True:
            if coming is None:
                coming = context.run(asyncio.ensure_future, _next(source))
            part = await asyncio.wait_for(coming, answer.seconds_left)
            coming = None
            if part is None:
                await sync_to_async(answer.finish)()
                return
            if not answer.drop(part):
                break
    except asyncio.TimeoutError:
        pass
    except BaseException as exc:
        await sync_to_async(answer.fail)(exc)
        raise
    await sync_to_async(answer.fail)()
    close = getattr(source, "aclose", None)
    if close is not None:
        await close()


async def _next(source: AsyncIterator[bytes]) -> bytes | None:
    return await anext(source, None)


async def _given(parts: list[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def _from_thread(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (part := await sync_to_async(lambda: next(parts, None))()) is not None:
        yield part
