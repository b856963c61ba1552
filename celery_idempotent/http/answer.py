"""The response to a request that holds its key: held back until it is whole, or passed on.

A response is recorded once the application has made all of it. If it was begun and not finished,
the request was interrupted, whoever cut it off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Final

from celery_idempotent.http.edge import HeldRequest
from celery_idempotent.http.messages import Response, is_open_ended

#: How long a response is still made after its client hung up, in seconds.
DRAIN_S: Final = 30.0


class Answer:
    """A response while the application makes it.

    It is held back until it is whole, so that it is recorded before it is sent. A response that has
    no end to wait for, or is too long to be kept, is passed on as it is made; then only its status
    is recorded.
    """

    def __init__(self, held: HeldRequest) -> None:
        self._held = held
        self._chunks: list[bytes] = []
        self._size = 0
        self._until: float | None = None
        self._left = held.most
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        #: Whether it is sent as it is made.
        self.passes = False
        #: Whether a part of it was sent.
        self.is_begun = False

    def start(self, status: int, headers: list[tuple[str, str]]) -> None:
        """Take the status and the header fields."""
        self.status, self.headers = status, headers
        self.passes = is_open_ended(headers)

    def add(self, chunk: bytes) -> None:
        """Take a piece of the body."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > self._held.most:
            self.passes = True

    def take(self, parts: Iterator[bytes]) -> bool:
        """Take pieces until the response is whole or passes on; return whether it is whole."""
        while not self.passes:
            part = next(parts, None)
            if part is None:
                return True
            self.add(part)
        return False

    @property
    def has_body(self) -> bool:
        """Whether a piece of the body that isn't empty is there."""
        return self._size > 0

    @property
    def is_sendable(self) -> bool:
        """Whether a server would send its status and header fields."""
        return Response(self.status, self.headers, dropped=True).is_sendable

    def pieces(self) -> list[bytes]:
        """Return the pieces that were held back, to be sent now."""
        pieces, self._chunks = self._chunks, []
        return pieces

    def finish(self) -> Response | None:
        """Record the response, which is whole; return a response to send instead of it, if any.

        Raises:
            Exception: the database refused what was written in the request's session.
        """
        if self.passes:
            made = Response(self.status, self.headers, dropped=True)
        else:
            made = Response(self.status, self.headers, b"".join(self._chunks))
        answer = self._held.finish(made)
        return None if answer is made else answer

    def fail(self, exc: BaseException | None = None) -> None:
        """End without a whole response, because of an exception or because it was given up.

        The key is freed if the client has received no part of the response.
        """
        if self.is_begun:
            self._held.interrupt()
        elif exc is None:
            self._held.release()
        else:
            self._held.fail(exc)

    # --- a client that hung up -------------------------------------------------------------------

    @property
    def is_for_nobody(self) -> bool:
        """Whether the client has hung up."""
        return self._until is not None

    def hang_up(self) -> None:
        """Note that the client is gone: from now on pieces are dropped, up to a limit.

        The client will send the request again, and work that was finished is not done twice.
        """
        if self._until is None:
            self._until = time.monotonic() + DRAIN_S

    def drop(self, piece: bytes) -> bool:
        """Drop a piece; return whether to wait for another one."""
        self._left -= len(piece)
        return self._left > 0 and self.seconds_left > 0

    @property
    def seconds_left(self) -> float:
        """How much longer it may be made without a client, in seconds."""
        return 0.0 if self._until is None else max(0.0, self._until - time.monotonic())


class Passing:
    """A response that a thread passes on as it is made; the server closes it.

    Args:
        parts: the rest of the response.
        context: the context that the parts are made in.
        close: closes the source of the parts.
    """

    def __init__(
        self,
        answer: Answer,
        parts: Iterator[bytes],
        context: Context,
        close: Callable[[], object] | None = None,
    ) -> None:
        self._answer = answer
        self._begun = iter(answer.pieces())
        self._parts = parts
        self._context = context
        self._close = close
        self._ended = False

    def __iter__(self) -> Passing:
        return self

    def __next__(self) -> bytes:
        self._answer.is_begun = True
        piece = next(self._begun, None)
        if piece is not None:
            return piece
        if self._ended:
            raise StopIteration
        try:
            return self._context.run(next, self._parts)
        except StopIteration:
            self._ended = True
            # Before the end is sent: a client that has received it finds it recorded.
            self._answer.finish()
            raise
        except BaseException as exc:
            self._ended = True
            self._answer.fail(exc)
            raise

    def close(self) -> None:
        """End the response: the client has received all of it, or hung up."""
        close, self._close = self._close, None
        try:
            if not self._ended:
                self._drain()
        finally:
            self._ended = True
            if close is not None:
                close()

    def _drain(self) -> None:
        self._answer.hang_up()
        try:
            for piece in self:
                if not self._answer.drop(piece):
                    break
        finally:
            if not self._ended:
                self._answer.fail()
