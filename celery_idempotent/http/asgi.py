"""Middleware for ASGI applications (Starlette, FastAPI, Quart, Litestar)."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, TypeVar

from celery_idempotent.http.answer import Answer
from celery_idempotent.http.edge import Edge, HeldRequest
from celery_idempotent.http.hangups import detached
from celery_idempotent.http.messages import Request, Response
from celery_idempotent.http.middleware import Middleware

log = logging.getLogger("celery_idempotent")

T = TypeVar("T")
Scope = MutableMapping[str, Any]
AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class IdempotencyASGIMiddleware(Middleware[App, Scope, "str | Awaitable[str | None] | None"]):
    """Answers a repeated request with the response to the first one.

    ::

        app.add_middleware(
            IdempotencyASGIMiddleware, celery=celery, identity=lambda scope: scope["user"].id
        )

    In the application ``scope["idempotency"]`` is the same object as ``self.idempotency``
    in tasks (``key_for()``, ``interrupted``), and each task that is published gets a key that is
    derived from the request's.

    Args:
        app: the application.
        celery: the Celery app, whose store is used.
        identity: a function of the scope that returns a text that is different for each caller (or
            an awaitable of it). With ``None`` the request is not protected, and the application
            should refuse it.
        required: whether a request must have a key: for all methods, or a function of the scope.
        service: the name of this service; without it the Celery app's name is used. Two services
            with one store need two names.
        methods: the methods of requests that may have a key.
        keeps: whether a response with this status is kept; see :func:`.keeps_by_default`.
        ttl: how long a response is kept, in seconds; without it the app's ``idempotency_ttl``.
        max_request_size: the largest body, in bytes, of a request with a key.
        docs_url: the page of your API's documentation about the key.
    """

    _known = "the scope"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._covers(scope, scope["method"]):
            return await self._app(scope, receive, send)
        key = self._key(scope, _values(scope, b"idempotency-key"))
        if isinstance(key, Response):
            return await _send_whole(send, key)
        identity: Any = None if key is None else self._identity(scope)
        if inspect.isawaitable(identity):
            identity = await identity
        if key is None or identity is None:
            return await self._app(scope, receive, send)
        length = next(iter(_values(scope, b"content-length")), None)
        most = self._edge.max_request_size
        body = b"" if self._edge.is_too_long(length) else await _read(receive, most)
        if body is None:
            return None  # the client is gone, and nothing was done
        problem = self._edge.check_body(length, len(body))
        if problem is not None:
            return await _send_whole(send, problem)
        held = await _begin(self._edge, _request(scope, body), identity, key)
        if isinstance(held, Response):
            return await _send_whole(send, held)
        return await detached(self._work(held, scope, _Exchange(held, body, receive, send)))

    async def _work(self, held: HeldRequest, scope: Scope, exchange: _Exchange) -> None:
        extensions = {
            name: value
            for name, value in (scope.get("extensions") or {}).items()
            if not name.startswith("http.response.")  # these send a response past this middleware
        }
        scope = {**scope, "extensions": extensions, "idempotency": held.run}
        try:
            with held.working():
                await self._app(scope, exchange.receive, exchange.send)
        except Exception as exc:
            await _in_thread(exchange.answer.fail, exc)
            raise
        except BaseException as exc:
            # Nothing can be awaited any more: a thread does it.
            with suppress(RuntimeError):
                asyncio.get_running_loop().run_in_executor(None, exchange.answer.fail, exc)
            raise
        # Only now: the last thing that an application does may be its commit.
        await exchange.end()


class _Exchange:
    """Passes a request on after it was read, and a response after it was recorded."""

    def __init__(self, held: HeldRequest, body: bytes, receive: Receive, send: Send) -> None:
        self.answer = Answer(held)
        self._body: bytes | None = body
        self._receive = receive
        self._send = send
        self._passing = asyncio.Event()
        self._given_up = asyncio.Event()
        self._is_complete = False

    async def receive(self) -> AsgiMessage:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        # A client that goes away does not stop the work: it will send the request again.
        await self._passing.wait()
        message: AsgiMessage = {"type": "http.disconnect"}
        if not self._is_complete:
            message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_complete:
            self.answer.hang_up()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._given_up.wait(), self.answer.seconds_left)
            self._given_up.set()
        return message

    async def send(self, message: AsgiMessage) -> None:
        answer = self.answer
        if message["type"] == "http.response.start":
            headers = [(bytes(n), bytes(v)) for n, v in message.get("headers", ())]
            answer.start(
                message["status"], [(n.decode("latin-1"), v.decode("latin-1")) for n, v in headers]
            )
            if answer.passes:
                await self._pass(_start(answer.status, answer.headers))
        elif message["type"] == "http.response.body" and not self._is_complete:
            answer.add(message.get("body", b""))
            if answer.passes:
                await self._pass_on()
            if not message.get("more_body", False):
                self._is_complete = True
                self._passing.set()
                self._given_up.set()

    async def end(self) -> None:
        """Record the response, and send it or the rest of it."""
        answer = self.answer
        if not self._is_complete:
            return await _in_thread(answer.fail)
        instead = await _in_thread(answer.finish)
        if answer.is_begun:
            await self._send({"type": "http.response.body", "body": b""})
        elif instead is not None:
            await _send_whole(self._send, instead)
        else:
            await self._send(_start(answer.status, answer.headers))
            await self._send({"type": "http.response.body", "body": b"".join(answer.pieces())})
        return None

    # --- what is too long, or has no end ---------------------------------------------------------

    async def _pass_on(self) -> None:
        if not self.answer.is_begun:
            await self._pass(_start(self.answer.status, self.answer.headers))
        for piece in self.answer.pieces():
            if not self.answer.is_for_nobody:
                await self._pass({"type": "http.response.body", "body": piece, "more_body": True})
            elif self._given_up.is_set() or not self.answer.drop(piece):
                self._given_up.set()
                raise OSError("the client has hung up")

    async def _pass(self, message: AsgiMessage) -> None:
        try:
            await self._send(message)
        except OSError:
            self.answer.hang_up()
        self.answer.is_begun = True
        self._passing.set()


async def _begin(edge: Edge, request: Request, identity: str, key: str) -> Response | HeldRequest:
    loop = asyncio.get_running_loop()
    asking = loop.run_in_executor(None, edge.begin, request, identity, key)

    def give_back(asked: asyncio.Future[Response | HeldRequest]) -> None:
        if not asked.cancelled() and asked.exception() is None:
            held = asked.result()
            if isinstance(held, HeldRequest):
                with suppress(RuntimeError):
                    loop.run_in_executor(None, held.release)

    try:
        return await asyncio.shield(asking)
    except asyncio.CancelledError:
        asking.add_done_callback(give_back)
        raise


async def _in_thread(work: Callable[..., T], *args: Any) -> T:
    # Shielded: the outcome is recorded even if nobody waits for it.
    return await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, work, *args))


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for field, value in scope["headers"] if field == name]


def _request(scope: Scope, body: bytes) -> Request:
    types = _values(scope, b"content-type")
    query = scope.get("query_string", b"").decode("latin-1")
    return Request(scope["method"], scope["path"], query, body, types[0] if types else "")


async def _read(receive: Receive, most: int) -> bytes | None:
    """Read a body, and stop soon after ``most`` bytes; return ``None`` if the client went away."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False) or len(body) > most:
            return bytes(body)


async def _send_whole(send: Send, response: Response) -> None:
    await send(_start(response.status, response.headers))
    await send({"type": "http.response.body", "body": response.body})


def _start(status: int, fields: list[tuple[str, str]]) -> AsgiMessage:
    headers = [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in fields]
    return {"type": "http.response.start", "status": status, "headers": headers}
