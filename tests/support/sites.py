"""A small site behind the HTTP edge, in ASGI and in WSGI, and a client that talks to it."""

from __future__ import annotations

import asyncio
import io
import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery import Celery

from celery_idempotent.http import IdempotencyASGIMiddleware, IdempotencyWSGIMiddleware
from celery_idempotent.run.context import RunContext


@dataclass
class Reply:
    """What a handler answers; what a client gets."""

    status: int = 201
    headers: list[tuple[str, str]] = field(default_factory=list)
    chunks: Iterable[bytes] = (b"",)

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return next((value for n, value in self.headers if n.lower() == name.lower()), None)


Handler = Callable[[bytes, "RunContext | None"], Reply]


class Hung(Exception):
    """A client that hangs up."""


def make_celery(**settings: Any) -> Celery:
    """An app whose records are in this process's memory."""
    app = Celery(f"shop-{uuid.uuid4().hex[:6]}", set_as_current=False)
    app.conf.update(
        idempotency_store_url=f"memory://{uuid.uuid4().hex}", task_always_eager=True, **settings
    )
    return app


class Site:
    """A site that answers POST with its handler; the caller is named by the field ``User``."""

    def __init__(self, handler: Handler, celery: Celery | None = None, **options: Any) -> None:
        self.handler = handler
        self.celery = celery or make_celery()
        self.options = options
        self.calls: list[bytes] = []

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
    ) -> Reply:
        """Send a request; ``hang_up_after`` so many chunks of the answer."""
        raise NotImplementedError

    def called(self, body: bytes, run: RunContext | None) -> Reply:
        self.calls.append(body)
        return self.handler(body, run)


class AsgiSite(Site):
    """The site in ASGI."""

    def __init__(self, handler: Handler, celery: Celery | None = None, **options: Any) -> None:
        super().__init__(handler, celery, **options)
        self.app = IdempotencyASGIMiddleware(
            self._application, self.celery, identity=self._identity, **options
        )

    @staticmethod
    def _identity(scope: Any) -> str | None:
        return next((v.decode() for n, v in scope["headers"] if n == b"user"), None)

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        reply = self.called(body, scope.get("idempotency"))
        headers = [(n.encode(), v.encode()) for n, v in reply.headers]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        for chunk in reply.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

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
    ) -> Reply:
        headers = [(b"content-type", content_type.encode())]
        for value in _fields(key, fields):
            headers.append((b"idempotency-key", value.encode()))
        if user is not None:
            headers.append((b"user", user.encode()))
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": headers,
        }
        parts = [body[:1], body[1:]]
        sent: list[Any] = []

        async def receive() -> Any:
            if parts:
                return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if hang_up_after is not None and len(sent) > hang_up_after:
                raise Hung
            sent.append(message)

        asyncio.run(self.app(scope, receive, send))  # type: ignore[arg-type]
        start = sent[0]
        got = [(n.decode(), v.decode()) for n, v in start["headers"]]
        return Reply(start["status"], got, [m["body"] for m in sent[1:]])


class WsgiSite(Site):
    """The site in WSGI."""

    def __init__(self, handler: Handler, celery: Celery | None = None, **options: Any) -> None:
        super().__init__(handler, celery, **options)
        self.app = IdempotencyWSGIMiddleware(
            self._application,
            self.celery,
            identity=lambda environ: environ.get("HTTP_USER"),
            **options,
        )

    def _application(self, environ: Any, start_response: Any) -> Any:
        body = environ["wsgi.input"].read()
        reply = self.called(body, environ.get("idempotency"))
        start_response(f"{reply.status} Whatever", reply.headers)
        return (chunk for chunk in reply.chunks)

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
    ) -> Reply:
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": content_type,
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }
        values = _fields(key, fields)
        if values:
            environ["HTTP_IDEMPOTENCY_KEY"] = ", ".join(values)
        if user is not None:
            environ["HTTP_USER"] = user
        got: list[Any] = []

        def start_response(line: str, headers: Any, exc_info: Any = None) -> Any:
            got[:] = [line, headers]
            return lambda data: None

        parts = self.app(environ, start_response)
        chunks = []
        try:
            for number, chunk in enumerate(parts):
                if hang_up_after is not None and number > hang_up_after:
                    raise Hung
                chunks.append(chunk)
        finally:
            if hasattr(parts, "close"):
                parts.close()
        return Reply(int(got[0][:3]), got[1], chunks)


def _fields(key: str | None, fields: Sequence[str] | None) -> Sequence[str]:
    if fields is not None:
        return fields
    return [] if key is None else [f'"{key}"']
