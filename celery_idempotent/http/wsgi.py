"""Middleware for WSGI applications (Flask, Bottle, Pyramid)."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from contextvars import copy_context
from typing import Any, Final

from celery_idempotent.http.edge import Edge, Held, keeps_by_default
from celery_idempotent.http.messages import Request, Response, is_open_ended

__all__ = ["IdempotencyWSGIMiddleware"]

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

_CHUNK: Final = 64 * 1024


class IdempotencyWSGIMiddleware:
    """Answers a request that is sent again with the first one's response.

    ::

        app.wsgi_app = IdempotencyWSGIMiddleware(
            app.wsgi_app, celery, identity=lambda environ: environ["REMOTE_USER"]
        )

    In the application ``environ["idempotency"]`` is what tasks have as ``self.idempotency``
    (``key_for()``, ``interrupted``), and each task that is published gets a key derived from the
    request's.

    Args:
        app: the application.
        celery: the Celery app, whose store is used.
        identity: gives, from the environ, a text that tells callers apart; ``None``: nobody, so
            the request goes on unprotected, and the application refuses it.
        required: whether a request must have a key: for all of the methods, or by its environ.
        methods: which requests may have a key.
        keeps: which statuses are kept; see :func:`.keeps_by_default`.
        max_request_size: the largest body, in bytes, of a request with a key.
        docs_url: where your API's documentation tells of the key.
    """

    def __init__(
        self,
        app: App,
        celery: Any,
        *,
        identity: Callable[[Environ], str | None],
        required: bool | Callable[[Environ], bool] = False,
        methods: Collection[str] = ("POST", "PATCH"),
        keeps: Callable[[int], bool] = keeps_by_default,
        max_request_size: int = 16 * 1024 * 1024,
        docs_url: str | None = None,
    ) -> None:
        self._app = app
        self._identity = identity
        self._required = required
        self._edge = Edge(
            celery,
            methods=methods,
            keeps=keeps,
            max_request_size=max_request_size,
            docs_url=docs_url,
        )

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if not self._edge.covers(environ["REQUEST_METHOD"]):
            return self._app(environ, start_response)
        value = environ.get("HTTP_IDEMPOTENCY_KEY")
        required = self._required(environ) if callable(self._required) else self._required
        key = self._edge.key_of([] if value is None else [value], required)
        if isinstance(key, Response):
            return _send_whole(start_response, key)
        identity = None if key is None else self._identity(environ)
        if key is None or identity is None:
            return self._app(environ, start_response)
        body = _read(environ, self._edge.max_request_size)
        if body is None:
            too_large = self._edge.problems.too_large(self._edge.max_request_size)
            return _send_whole(start_response, too_large)
        request = Request(
            environ["REQUEST_METHOD"],
            environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""),
            environ.get("QUERY_STRING", ""),
            body,
            environ.get("CONTENT_TYPE", ""),
        )
        held = self._edge.begin(request, identity, key)
        if isinstance(held, Response):
            return _send_whole(start_response, held)
        environ = {
            **environ,
            "wsgi.input": io.BytesIO(body),
            "CONTENT_LENGTH": str(len(body)),
            "idempotency": held.run,
        }
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        exchange = _Exchange(held, self._edge.max_response_size, start_response)
        return exchange.run(self._app, environ)


class _Exchange:
    """A response that is sent once it is kept; as it comes, where it is too long for that."""

    def __init__(self, held: Held, most: int, start_response: StartResponse) -> None:
        self._held = held
        self._most = most
        self._start_response = start_response
        # Its own, so that a response which is read later still publishes with the request's key.
        self._context = copy_context()
        self._for_tasks: AbstractContextManager[None] = held.for_tasks()
        self._line = ""
        self._headers: list[tuple[str, str]] = []
        self._chunks: list[bytes] = []
        self._size = 0
        self._parts: Iterable[bytes] = ()
        self._write: Callable[[bytes], object] | None = None

    def run(self, app: App, environ: Environ) -> Iterable[bytes]:
        self._context.run(self._for_tasks.__enter__)
        try:
            self._parts = self._context.run(app, environ, self._start)
            parts = iter(self._parts)
            while not self._is_passing():
                chunk = self._context.run(next, parts, None)
                if chunk is None:
                    break
                self._add(chunk)
            else:
                return _Rest(self, parts)
            if not self._line:
                raise RuntimeError("the application gave a body, and no status")
        except BaseException as exc:
            self.fail(exc)
            self.close()
            raise
        self.close()
        return self._finish()

    def _add(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk)

    def _start(
        self, line: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        if self._write is not None and exc_info:
            raise exc_info[1].with_traceback(exc_info[2])
        self._line, self._headers = line, list(headers)
        return self._add

    def _is_passing(self) -> bool:
        return is_open_ended(self._headers) or self._size > self._most

    def _finish(self) -> Iterable[bytes]:
        response = Response(int(self._line[:3]), self._headers, b"".join(self._chunks))
        answer = self._held.finish(response)
        if answer is not response:
            return _send_whole(self._start_response, answer)
        self._start_response(self._line, self._headers)
        return [response.body]

    # --- what is too long, or has no end ---------------------------------------------------------

    def begin_passing(self) -> list[bytes]:
        self._write = self._start_response(self._line, self._headers)
        chunks, self._chunks = self._chunks, []
        return chunks

    def next_part(self, parts: Iterator[bytes]) -> bytes | None:
        chunk: bytes | None = self._context.run(next, parts, None)
        return chunk

    def end_passing(self) -> None:
        self._held.finish(Response(int(self._line[:3]), self._headers, dropped=True))

    def fail(self, exc: BaseException) -> None:
        if isinstance(exc, Exception):
            self._held.release()
        else:
            self._held.interrupt()

    def close(self) -> None:
        close = getattr(self._parts, "close", None)
        try:
            if close is not None:
                self._context.run(close)
        finally:
            self._context.run(self._for_tasks.__exit__, None, None, None)


class _Rest:
    """A response that is passed on while it comes; the server closes it."""

    def __init__(self, exchange: _Exchange, parts: Iterator[bytes]) -> None:
        self._exchange = exchange
        self._parts = parts
        self._given = self._give()

    def __iter__(self) -> Iterator[bytes]:
        return self._given

    def _give(self) -> Generator[bytes, None, None]:
        exchange = self._exchange
        try:
            yield from exchange.begin_passing()
            held_back = b""
            while (chunk := exchange.next_part(self._parts)) is not None:
                yield held_back
                held_back = chunk
            # Before its last part is sent: who has seen all of it finds it recorded.
            exchange.end_passing()
            yield held_back
        except GeneratorExit:
            raise  # the client went away, in mid-answer
        except BaseException as exc:
            exchange.fail(exc)
            raise

    def close(self) -> None:
        self._given.close()
        # Unless it ended otherwise: the answer had begun, so the work was done.
        self._exchange.end_passing()
        self._exchange.close()


def _read(environ: Environ, most: int) -> bytes | None:
    """Read a body; ``None``: it has more than ``most`` bytes."""
    length = environ.get("CONTENT_LENGTH") or ""
    stream = environ["wsgi.input"]
    if length.isdigit():
        if int(length) > most:
            return None
        left = int(length)
    elif environ.get("wsgi.input_terminated"):
        left = most + 1
    else:
        return b""
    body = bytearray()
    while left > 0 and (chunk := stream.read(min(left, _CHUNK))):
        body += chunk
        left -= len(chunk)
    return bytes(body) if len(body) <= most else None


def _send_whole(start_response: StartResponse, response: Response) -> Iterable[bytes]:
    start_response(response.reason, response.headers)
    return [response.body]
