"""Middleware for ASGI applications (Starlette, FastAPI, Quart, Litestar)."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextlib import suppress
from typing import Any, TypeVar

from celery_idempotent.http.edge import Edge, Held, keeps_by_default
from celery_idempotent.http.messages import Request, Response, is_open_ended

__all__ = ["IdempotencyASGIMiddleware"]

log = logging.getLogger("celery_idempotent")

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Identity = Callable[[Scope], "str | Awaitable[str | None] | None"]


class IdempotencyASGIMiddleware:
    """Answers a request that is sent again with the first one's response.

    ::

        app.add_middleware(
            IdempotencyASGIMiddleware, celery=celery, identity=lambda scope: scope["user"].id
        )

    In the application ``scope["idempotency"]`` is what tasks have as ``self.idempotency``
    (``key_for()``, ``interrupted``), and each task that is published gets a key derived from the
    request's.

    Args:
        app: the application.
        celery: the Celery app, whose store is used.
        identity: gives, from the scope, a text that tells callers apart (or an awaitable of it);
            ``None``: nobody, so the request goes on unprotected, and the application refuses it.
        required: whether a request must have a key: for all of the methods, or by its scope.
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
        identity: Identity,
        required: bool | Callable[[Scope], bool] = False,
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._edge.covers(scope["method"]):
            return await self._app(scope, receive, send)
        values = [v.decode("latin-1") for n, v in scope["headers"] if n == b"idempotency-key"]
        required = self._required(scope) if callable(self._required) else self._required
        key = self._edge.key_of(values, required)
        if isinstance(key, Response):
            return await _send_whole(send, key)
        identity: Any = None if key is None else self._identity(scope)
        if inspect.isawaitable(identity):
            identity = await identity
        if key is None or identity is None:
            return await self._app(scope, receive, send)
        body = await _read(receive, self._edge.max_request_size)
        if body is None:
            return None  # the client is gone, and nothing was done
        if len(body) > self._edge.max_request_size:
            too_large = self._edge.problems.too_large(self._edge.max_request_size)
            return await _send_whole(send, too_large)
        held = await _begin(self._edge, _request(scope, body), identity, key)
        if isinstance(held, Response):
            return await _send_whole(send, held)
        return await self._protected(held, scope, body, receive, send)

    async def _protected(
        self, held: Held, scope: Scope, body: bytes, receive: Receive, send: Send
    ) -> None:
        exchange = _Exchange(held, self._edge.max_response_size, body, receive, send)
        extensions = {
            name: value
            for name, value in (scope.get("extensions") or {}).items()
            if not name.startswith("http.response.")  # other ways to send what is to be kept
        }
        scope = {**scope, "extensions": extensions, "idempotency": held.run}
        try:
            with held.for_tasks():
                await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            await _in_thread(exchange.fail)
            raise
        except BaseException:
            # It can't be waited for any more: a thread goes on with it.
            with suppress(RuntimeError):
                asyncio.get_running_loop().run_in_executor(None, exchange.cut_off)
            raise
        await _in_thread(exchange.fail)  # of a response that was never finished


class _Exchange:
    """A request that is given once it was read, and a response that is sent once it is kept."""

    def __init__(self, held: Held, most: int, body: bytes, receive: Receive, send: Send) -> None:
        self._held = held
        self._most = most
        self._body: bytes | None = body
        self._receive = receive
        self._send = send
        self._status = 0
        self._raw_headers: list[tuple[bytes, bytes]] = []
        self._headers: list[tuple[str, str]] = []
        self._chunks: list[bytes] = []
        self._size = 0
        self._passing = asyncio.Event()
        self._is_finished = False
        self._is_client_gone = False

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        # A client that goes away doesn't stop what it asked for: it will ask again.
        await self._passing.wait()
        message = await self._receive()
        self._is_client_gone = message["type"] == "http.disconnect"
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._raw_headers = [(bytes(n), bytes(v)) for n, v in message.get("headers", ())]
            self._headers = [
                (n.decode("latin-1"), v.decode("latin-1")) for n, v in self._raw_headers
            ]
            if is_open_ended(self._headers):
                await self._pass_on()
        elif self._passing.is_set():
            await self._pass(message)
        else:
            await self._keep(message.get("body", b""), message.get("more_body", False))

    async def _keep(self, chunk: bytes, more: bool) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk)
        if not more:
            self._passing.set()
            response = Response(self._status, self._headers, b"".join(self._chunks))
            answer = await self._finish(response)
            if answer is not response:
                return await _send_whole(self._send, answer)
            await self._send(self._start())
            return await self._send({"type": "http.response.body", "body": response.body})
        if self._size > self._most:
            await self._pass_on()
        return None

    async def _finish(self, response: Response) -> Response:
        self._is_finished = True
        return await _in_thread(self._held.finish, response)

    # --- what is too long, or has no end ---------------------------------------------------------

    async def _pass_on(self) -> None:
        self._passing.set()
        chunks, self._chunks = self._chunks, []
        await self._pass(self._start())
        for chunk in chunks:
            await self._pass({"type": "http.response.body", "body": chunk, "more_body": True})

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            # Before its last part is sent: who has seen all of it finds it recorded.
            await self._finish(self._without_body())
        try:
            await self._send(message)
        except Exception:
            self._is_client_gone = True
            raise

    def _without_body(self) -> Response:
        return Response(self._status, self._headers, dropped=True)

    # --- what was not finished -------------------------------------------------------------------

    def fail(self) -> None:
        """Free the key; but where the client went away, in mid-answer, the work was done."""
        if self._is_client_gone and not self._is_finished:
            self._held.finish(self._without_body())
        self._held.release()

    def cut_off(self) -> None:
        """End the lease at once; but where the answer had begun, the work was done."""
        if self._is_finished:
            return
        if self._passing.is_set():
            self._held.finish(self._without_body())
        self._held.interrupt()

    def _start(self) -> Message:
        return {
            "type": "http.response.start",
            "status": self._status,
            "headers": self._raw_headers,
        }


async def _begin(edge: Edge, request: Request, identity: str, key: str) -> Response | Held:
    loop = asyncio.get_running_loop()
    asking = loop.run_in_executor(None, edge.begin, request, identity, key)

    def give_back(asked: asyncio.Future[Response | Held]) -> None:
        if not asked.cancelled() and asked.exception() is None:
            held = asked.result()
            if isinstance(held, Held):
                with suppress(RuntimeError):
                    loop.run_in_executor(None, held.release)

    try:
        return await asyncio.shield(asking)
    except asyncio.CancelledError:
        asking.add_done_callback(give_back)
        raise


async def _in_thread(work: Callable[..., T], *args: Any) -> T:
    # Shielded: what is to be recorded is, whether or not anybody waits for it.
    return await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, work, *args))


def _request(scope: Scope, body: bytes) -> Request:
    types = [v.decode("latin-1") for n, v in scope["headers"] if n == b"content-type"]
    query = scope.get("query_string", b"").decode("latin-1")
    return Request(scope["method"], scope["path"], query, body, types[0] if types else "")


async def _read(receive: Receive, most: int) -> bytes | None:
    """Read a body, and stop soon after ``most`` bytes; ``None``: the client went away."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False) or len(body) > most:
            return bytes(body)


async def _send_whole(send: Send, response: Response) -> None:
    headers = [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in response.headers]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})
