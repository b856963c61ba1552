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

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


class IdempotencyWSGIMiddleware(Middleware[App, Environ, "str | None"]):
    """Answers a repeated request with the response to the first one.

    ::

        app.wsgi_app = IdempotencyWSGIMiddleware(
            app.wsgi_app, celery, identity=lambda environ: environ["REMOTE_USER"]
        )

    In the application ``environ["idempotency"]`` is the same object as ``self.idempotency``
    in tasks (``key_for()``, ``interrupted``), and each task that is published gets a key that is
    derived from the request's.

    Args:
        app: the application.
        celery: the Celery app, whose store is used.
        identity: a function of the environ that returns a text that is different for each caller.
            With ``None`` the request is not protected, and the application should refuse it.
        required: whether a request must have a key: for all methods, or a function of the environ.
        service: the name of this service; without it the Celery app's name is used. Two services
            with one store need two names.
        methods: the methods of requests that may have a key.
        keeps: whether a response with this status is kept; see :func:`.keeps_by_default`.
        ttl: how long a response is kept, in seconds; without it the app's ``idempotency_ttl``.
        max_request_size: the largest body, in bytes, of a request with a key.
        docs_url: the page of your API's documentation about the key.
    """

    _known = "the environ"

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
    """Sends a response after it was recorded, or as it is made if it is too long to be kept."""

    def __init__(self, held: HeldRequest, start_response: StartResponse) -> None:
        self._answer = Answer(held)
        self._start_response = start_response
        # A copy, so that a response that is read later still publishes with the request's key.
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
                    raise RuntimeError(
                        "the application returned a body without calling start_response()"
                    )
                if answer.passes:
                    self._start_response(self._line, self._fields)
                    return Passing(answer, parts, self._context, self._close)
            except BaseException:
                self._close()
                raise
            # Before the record: the last thing that an application does may be its commit.
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
