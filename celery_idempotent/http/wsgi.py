"""Middleware for WSGI applications (Flask, Bottle, Pyramid)."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable
from contextvars import copy_context
from typing import Any, Final

from celery_idempotent.http.answer import Answer, Passing
from celery_idempotent.http.edge import Edge, Held, keeps_by_default
from celery_idempotent.http.messages import Request, Response
from celery_idempotent.run.context import RunContext

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
        service: whose requests they are, where the Celery app's name doesn't tell that: two
            services with one store need two names.
        methods: which requests may have a key.
        keeps: which statuses are kept; see :func:`.keeps_by_default`.
        ttl: for how long an answer is kept, in seconds; else for the app's ``idempotency_ttl``.
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
        service: str | None = None,
        methods: Collection[str] = ("POST", "PATCH"),
        keeps: Callable[[int], bool] = keeps_by_default,
        ttl: float | None = None,
        max_request_size: int = 16 * 1024 * 1024,
        docs_url: str | None = None,
    ) -> None:
        self._app = app
        self._identity = identity
        self._required = required
        self._edge = Edge(
            celery,
            service=service,
            methods=methods,
            keeps=keeps,
            ttl=ttl,
            max_request_size=max_request_size,
            docs_url=docs_url,
        )

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if not self._edge.covers(environ["REQUEST_METHOD"]) or isinstance(
            environ.get("idempotency"),
            RunContext,  # it stands in the stack twice
        ):
            return self._app(environ, start_response)
        value = environ.get("HTTP_IDEMPOTENCY_KEY")
        required = self._required(environ) if callable(self._required) else self._required
        key = self._edge.key_of([] if value is None else [value], required)
        if isinstance(key, Response):
            return _send_whole(start_response, key)
        identity = None if key is None else self._identity(environ)
        if key is None or identity is None:
            return self._app(environ, start_response)
        body = _read(environ, self._edge)
        if isinstance(body, Response):
            return _send_whole(start_response, body)
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
        return _Exchange(held, start_response).run(self._app, environ)


class _Exchange:
    """A response that is sent once it is kept; as it is made, where it is too long for that."""

    def __init__(self, held: Held, start_response: StartResponse) -> None:
        self._answer = Answer(held)
        self._start_response = start_response
        # Its own, so that a response which is read later still publishes with the request's key.
        self._context = copy_context()
        self._working = held.working()
        self._line = ""
        self._fields: list[tuple[str, str]] = []
        self._parts: Iterable[bytes] = ()

    def run(self, app: App, environ: Environ) -> Iterable[bytes]:
        answer = self._answer
        self._context.run(self._working.__enter__)
        try:
            try:
                self._parts = self._context.run(app, environ, self._start)
                parts = iter(self._parts)
                while not answer.passes:
                    chunk = self._context.run(next, parts, None)
                    if chunk is None:
                        break
                    answer.add(chunk)
                if not self._line:
                    raise RuntimeError("the application gave a body, and no status")
                if answer.passes:
                    self._start_response(self._line, self._fields)
                    return Passing(answer, parts, self._context, self._close)
            except BaseException:
                self._close()
                raise
            # Not after the record: what an application does last may be its commit.
            self._close()
            instead = answer.finish()
        except BaseException as exc:
            answer.fail(exc)
            raise
        if instead is not None:
            return _send_whole(self._start_response, instead)
        self._start_response(self._line, self._fields)
        return [b"".join(answer.pieces())]

    def _start(
        self, line: str, fields: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        if exc_info and self._answer.has_body:
            raise exc_info[1].with_traceback(exc_info[2])
        status = int(line[:3])
        self._line, self._fields = line, list(fields)
        self._answer.start(status, self._fields)
        return self._answer.add

    def _close(self) -> None:
        close = getattr(self._parts, "close", None)
        try:
            if close is not None:
                self._context.run(close)
        finally:
            self._context.run(self._working.__exit__, None, None, None)


def _read(environ: Environ, edge: Edge) -> bytes | Response:
    """Read a body; give the answer where it is too long, or less than was announced."""
    length = environ.get("CONTENT_LENGTH") or None
    stream = environ["wsgi.input"]
    if edge.is_too_long(length):
        left = 0
    elif length is not None and length.isdecimal():
        left = int(length)
    else:
        left = edge.max_request_size + 1 if environ.get("wsgi.input_terminated") else 0
    body = bytearray()
    try:
        while left > 0 and (chunk := stream.read(min(left, _CHUNK))):
            body += chunk
            left -= len(chunk)
    except OSError:
        return edge.problems.incomplete()  # as some servers tell of it
    return edge.check_body(length, len(body)) or bytes(body)


def _send_whole(start_response: StartResponse, response: Response) -> Iterable[bytes]:
    start_response(response.reason, response.headers)
    return [response.body]
