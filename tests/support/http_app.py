"""A small application behind the HTTP edge, in each adapter, and a client like a server's."""

from __future__ import annotations

import asyncio
import io
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from unittest.mock import patch
from wsgiref.util import setup_testing_defaults

import django
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from celery import Celery
from starlette.responses import StreamingResponse

from celery_idempotent.http import IdempotencyASGIMiddleware, IdempotencyWSGIMiddleware
from celery_idempotent.run.context import RunContext
from tests.support.djangos import set_up

set_up()

# Django has to be set up first.
from django.core.handlers.asgi import ASGIHandler  # noqa: E402
from django.core.handlers.wsgi import WSGIHandler  # noqa: E402
from django.http import HttpResponse, StreamingHttpResponse  # noqa: E402
from django.test import override_settings  # noqa: E402
from django.urls import re_path  # noqa: E402

from celery_idempotent.django.middleware import IdempotencyMiddleware  # noqa: E402


@dataclass
class Reply:
    """What a handler answers; what a client gets."""

    status: int = 201
    headers: list[tuple[str, str]] = field(default_factory=list)
    chunks: Iterable[bytes] = (b"",)
    #: Whether the client saw its end.
    is_whole: bool = True
    #: What an application does last, when its answer is made: commits, mostly.
    after: Callable[[], object] = bool

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """Which of the edge's own answers it is."""
        kind = self.header("Content-Type")
        return self.json["code"] if kind == "application/problem+json" else None

    def header(self, name: str) -> str | None:
        return next((value for n, value in self.headers if n.lower() == name.lower()), None)


Handler = Callable[[bytes, "RunContext | None"], Reply]

#: What a server answers where the application raises, or says nothing.
FAILED = Reply(500, [("Content-Type", "text/plain")], [b"Internal Server Error"])
#: What a client sees whose server drops the connection.
DROPPED = Reply(0, is_whole=False)


def make_celery(**settings: Any) -> Celery:
    """An app whose records are in this process's memory."""
    app = Celery(f"shop-{uuid.uuid4().hex[:6]}", set_as_current=False)
    app.conf.update(
        idempotency_store_url=f"memory://{uuid.uuid4().hex}", task_always_eager=True, **settings
    )
    return app


class HttpApp:
    """an application that answers POST with its handler; the caller is named by the field ``User``.

    Args:
        required: whether a key is required: everywhere, or at a path.
        options: of the middleware.
    """

    #: Which real server is to serve it, where a test wants one; else the usual one.
    server = ""
    #: Whether somebody is told of a client that is gone in the middle of a stream.
    ends_streams = True
    #: Whether the server tells the application that the client is gone before it sends anything.
    notices_hang_ups = False

    def __init__(
        self,
        handler: Handler,
        celery: Celery | None = None,
        required: bool | str = False,
        **options: Any,
    ) -> None:
        self.handler = handler
        self.celery = celery or make_celery()
        self.required = required
        self.options = options
        self.calls: list[bytes] = []
        #: What the application raised, or its server found wrong.
        self.errors: list[BaseException] = []

    def post(
        self,
        key: str | None = None,
        body: bytes = b"{}",
        *,
        user: str | None = "ann",
        path: str = "/orders",
        query: str = "",
        method: str = "POST",
        content_type: str = "application/json",
        fields: Sequence[str] | None = None,
        hang_up_after: int | None = None,
        cut_at: int | None = None,
    ) -> Reply:
        """Send a request.

        Args:
            hang_up_after: so many pieces of the answer; 0: while it is waited for.
            cut_at: the client dies after so many bytes of its body.
        """
        if fields is None:
            fields = [] if key is None else [f'"{key}"']
        headers = [("content-type", content_type), ("content-length", str(len(body)))]
        headers += [("idempotency-key", value) for value in fields]
        if user is not None:
            headers.append(("user", user))
        sent = body if cut_at is None else body[:cut_at]
        return self.send(method, path, query, headers, sent, hang_up_after, cut_at is not None)

    def send(
        self,
        method: str,
        path: str,
        query: str,
        headers: list[tuple[str, str]],
        body: bytes,
        hang_up_after: int | None,
        dies: bool,
    ) -> Reply:
        """Send a request as a server would give it; or drop it."""
        raise NotImplementedError

    def called(self, body: bytes, run: RunContext | None) -> Reply:
        self.calls.append(body)
        return self.handler(body, run)

    def wrap_again(self) -> None:
        """Put the middleware into the stack once more."""
        raise NotImplementedError

    def is_required(self, path: str) -> bool:
        return self.required == path if isinstance(self.required, str) else self.required


# --- over ASGI -----------------------------------------------------------------------------------


class OverAsgi(HttpApp):
    """What a server does for an ASGI application."""

    app: Any

    def send(
        self,
        method: str,
        path: str,
        query: str,
        headers: list[tuple[str, str]],
        body: bytes,
        hang_up_after: int | None,
        dies: bool,
    ) -> Reply:
        return asyncio.run(self._send(method, path, query, headers, body, hang_up_after, dies))

    async def _send(
        self,
        method: str,
        path: str,
        query: str,
        headers: list[tuple[str, str]],
        body: bytes,
        hang_up_after: int | None,
        dies: bool,
    ) -> Reply:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        }
        parts = [body[:1], body[1:]]
        sent: list[Any] = []
        gone = asyncio.Event()
        if hang_up_after == 0:
            gone.set()

        async def receive() -> Any:
            if parts:
                part = parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(parts) or dies}
            if not dies:
                await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if gone.is_set() and hang_up_after is not None:
                return  # as uvicorn
            _check_fields(message.get("headers", ()))
            sent.append(message)
            if hang_up_after is not None and len(sent) > hang_up_after:
                gone.set()
            if message["type"] == "http.response.body" and not message.get("more_body"):
                gone.set()

        try:
            await self.app(scope, receive, send)
        except Exception as exc:
            self.errors.append(exc)
        if not sent:
            return DROPPED if dies or hang_up_after is not None else FAILED
        got = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in sent[0]["headers"]]
        is_whole = len(sent) > 1 and not sent[-1].get("more_body", False)
        return Reply(
            sent[0]["status"], got, [m.get("body", b"") for m in sent[1:]], is_whole=is_whole
        )


def _check_fields(headers: Any) -> None:
    for _, value in headers:
        if any(byte in value for byte in b"\r\n\0"):
            raise ValueError("a header field has a line break")  # as servers do


class AsgiApp(OverAsgi):
    """The application in ASGI."""

    def __init__(self, handler: Handler, *args: Any, **options: Any) -> None:
        super().__init__(handler, *args, **options)
        self.app = self.application
        self.wrap_again()

    def wrap_again(self) -> None:
        self.app = IdempotencyASGIMiddleware(
            self.app,
            self.celery,
            identity=self.identity,
            required=lambda scope: self.is_required(scope["path"]),
            **self.options,
        )

    @staticmethod
    def identity(scope: Any) -> str | None:
        return next((v.decode() for n, v in scope["headers"] if n == b"user"), None)

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        reply = await asyncio.to_thread(self.called, body, scope.get("idempotency"))
        # As most do it: its stream is ended where the client hangs up.
        response = StreamingResponse(iter(reply.chunks), reply.status)
        response.raw_headers = [
            (n.encode("latin-1"), v.encode("latin-1")) for n, v in reply.headers
        ]
        await response(scope, receive, send)
        await asyncio.to_thread(reply.after)


# --- over WSGI -----------------------------------------------------------------------------------


class OverWsgi(HttpApp):
    """What a server does for a WSGI application."""

    app: Any

    def send(
        self,
        method: str,
        path: str,
        query: str,
        headers: list[tuple[str, str]],
        body: bytes,
        hang_up_after: int | None,
        dies: bool,
    ) -> Reply:
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "wsgi.input": io.BytesIO(body),
        }
        for name, value in headers:
            name = name.upper().replace("-", "_")
            name = name if name.startswith("CONTENT_") else f"HTTP_{name}"
            environ[name] = ", ".join([environ[name], value] if name in environ else [value])
        setup_testing_defaults(environ)
        got: list[Any] = []

        def start_response(line: str, fields: Any, exc_info: Any = None) -> Any:
            _check_fields([(name, value.encode("latin-1")) for name, value in fields])
            got[:] = [line, fields]
            return lambda data: None

        chunks: list[bytes] = []
        is_whole = False
        parts: Any = None
        try:
            try:
                parts = self.app(environ, start_response)
                for chunk in parts:
                    chunks.append(chunk)
                    if hang_up_after is not None and len(chunks) > hang_up_after:
                        break
                else:
                    is_whole = True
            finally:
                if hasattr(parts, "close"):
                    parts.close()
        except Exception as exc:
            self.errors.append(exc)
            if not chunks:
                return FAILED
        return Reply(int(got[0][:3]), got[1], chunks, is_whole=is_whole)


class WsgiApp(OverWsgi):
    """The application in WSGI."""

    def __init__(self, handler: Handler, *args: Any, **options: Any) -> None:
        super().__init__(handler, *args, **options)
        self.app = self.application
        self.wrap_again()

    def wrap_again(self) -> None:
        self.app = IdempotencyWSGIMiddleware(
            self.app,
            self.celery,
            identity=self.identity,
            required=lambda environ: self.is_required(environ["PATH_INFO"]),
            **self.options,
        )

    @staticmethod
    def identity(environ: Any) -> str | None:
        user: str | None = environ.get("HTTP_USER")
        return user

    def application(self, environ: Any, start_response: Any) -> Any:
        body = environ["wsgi.input"].read()
        reply = self.called(body, environ.get("idempotency"))
        start_response(f"{reply.status} Whatever", reply.headers)
        return _Closing(reply)


class _Closing:
    """A body that is closed."""

    def __init__(self, reply: Reply) -> None:
        self._parts = iter(reply.chunks)
        self.close = reply.after

    def __iter__(self) -> Iterator[bytes]:
        return self._parts


# --- Django --------------------------------------------------------------------------------------


class DjangoApp(HttpApp):
    """The application as a view of Django's, behind Django's own handlers."""

    is_async = False

    def __init__(self, handler: Handler, *args: Any, **options: Any) -> None:
        super().__init__(handler, *args, **options)
        app = self

        class Keys(IdempotencyMiddleware):
            def identity(self, request: Any) -> str | None:
                user: str | None = request.headers.get("User")
                return user

            def required(self, request: Any) -> bool:
                return app.is_required(request.path)

            @cached_property
            def edge(self) -> Any:
                with patch("celery_idempotent.django.middleware.celery_app", lambda: app.celery):
                    return IdempotencyMiddleware.edge.func(self)  # type: ignore[attr-defined]

        for name, value in self.options.items():
            setattr(Keys, name, staticmethod(value) if name == "keeps" else value)
        self.middleware = [self.listed(Keys), f"{__name__}.Afterwards"]
        self.urlconf = (re_path("", self.view_async if self.is_async else self.view),)

    def listed(self, middleware: Any) -> str:
        """Give a middleware a name that Django's settings may list."""
        name = f"made_{uuid.uuid4().hex}"
        globals()[name] = middleware
        return f"{__name__}.{name}"

    def wrap_again(self) -> None:
        self.middleware.insert(0, self.middleware[0])

    def view(self, request: Any) -> Any:
        reply = self.called(request.body, getattr(request, "idempotency", None))
        request.after = reply.after
        return self.response(reply)

    async def view_async(self, request: Any) -> Any:
        run = getattr(request, "idempotency", None)
        reply = await asyncio.to_thread(self.called, request.body, run)
        request.after = reply.after
        return self.response(reply)

    def response(self, reply: Reply) -> Any:
        if isinstance(reply.chunks, (list, tuple)):
            response: Any = HttpResponse(reply.body, status=reply.status)
        else:
            parts = _in_threads(reply.chunks) if self.is_async else reply.chunks
            response = StreamingHttpResponse(parts, status=reply.status)
        if reply.header("Content-Type") is None:
            del response["Content-Type"]
        for name, value in reply.headers:
            response[name] = value
        return response


async def _in_threads(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    parts = iter(chunks)
    while (part := await asyncio.to_thread(next, parts, None)) is not None:
        yield part


class Afterwards:
    """A middleware that commits, say, once the view has answered."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Any) -> None:
        self._get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        if iscoroutinefunction(self):
            return self._answer(request)
        response = self._get_response(request)
        getattr(request, "after", bool)()
        return response

    async def _answer(self, request: Any) -> Any:
        response = await self._get_response(request)
        await asyncio.to_thread(getattr(request, "after", bool))
        return response


class _Wsgi(WSGIHandler):  # type: ignore[misc]
    def __init__(self, http_app: DjangoApp) -> None:
        self._urlconf = http_app.urlconf
        with override_settings(MIDDLEWARE=http_app.middleware):
            super().__init__()

    def get_response(self, request: Any) -> Any:
        request.urlconf = self._urlconf
        return super().get_response(request)


class _Asgi(ASGIHandler):  # type: ignore[misc]
    def __init__(self, http_app: DjangoApp) -> None:
        self._urlconf = http_app.urlconf
        with override_settings(MIDDLEWARE=http_app.middleware):
            super().__init__()

    async def get_response_async(self, request: Any) -> Any:
        request.urlconf = self._urlconf
        return await super().get_response_async(request)


class DjangoWsgiApp(OverWsgi, DjangoApp):
    """Django under WSGI."""

    @cached_property
    def app(self) -> Any:  # type: ignore[override]
        return _Wsgi(self)


class DjangoAsgiApp(OverAsgi, DjangoApp):
    """Django under ASGI, with sync views."""

    notices_hang_ups = ends_streams = django.VERSION >= (5,)

    @cached_property
    def app(self) -> Any:  # type: ignore[override]
        return _Asgi(self)


class DjangoAsyncApp(DjangoAsgiApp):
    """Django under ASGI, with async views."""

    is_async = True


#: The application in each adapter, by the name that the documentation has for it.
HTTP_APPS: dict[str, type[HttpApp]] = {
    "asgi": AsgiApp,
    "wsgi": WsgiApp,
    "django-wsgi": DjangoWsgiApp,
    "django-asgi": DjangoAsgiApp,
    "django-asgi-async": DjangoAsyncApp,
}
