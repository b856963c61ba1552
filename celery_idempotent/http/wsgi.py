"""Middleware for WSGI applications (Flask, Bottle, Pyramid)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import Any

from celery_idempotent.http.answer import Answer, Passing
from celery_idempotent.http.edge import Edge, HeldRequest
from celery_idempotent.http.messages import Request, Response
from celery_idempotent.http.middleware import Middleware

__all__ = ["IdempotencyWSGIMiddleware"]

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


class IdempotencyWSGIMiddleware(Middleware[App, Environ, "str | None"]):
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

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if not self._covers(environ, environ["REQUEST_METHOD"]):
            return self._app(environ, start_response)
        value = environ.get("HTTP_IDEMPOTENCY_KEY")
        key = self._key(environ, [] if value is None else [value])
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

    def __init__(self, held: HeldRequest, start_response: StartResponse) -> None:
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
                self._context.run(answer.take, parts)
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
    """Read a body, or return what answers one that is too long, or shorter than announced."""
    length = environ.get("CONTENT_LENGTH") or None
    if edge.is_too_long(length):
        left = 0
    elif length is not None and length.isdecimal():
        left = int(length)
    else:
        left = edge.max_request_size + 1 if environ.get("wsgi.input_terminated") else 0
    return edge.read_body(environ["wsgi.input"].read, left, length)


def _send_whole(start_response: StartResponse, response: Response) -> Iterable[bytes]:
    start_response(response.reason, response.headers)
    return [response.body]
