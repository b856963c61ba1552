"""An application on a real server, in threads of the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import uvicorn

from tests.support.http_app import HttpApp, OverAsgi, Reply
from tests.support.waiting import eventually


class Client:
    """Speaks HTTP to a server, as bytes where a library would be too polite."""

    def __init__(self, port: int, gone: threading.Event | None = None) -> None:
        self.port = port
        self._gone = gone

    def post(self, key: str = "a", body: bytes = b"{}", path: str = "/orders") -> Reply:
        """Send a whole request; a broken answer is what came of it."""
        with self.begin(key, body, path) as connection:
            return read(connection)

    def begin(
        self, key: str = "a", body: bytes = b"{}", path: str = "/orders", length: int | None = None
    ) -> socket.socket:
        """Send a request, or a part of it, and leave its connection open."""
        lines = [
            f"POST {path} HTTP/1.1",
            "Host: shop",
            "User: ann",
            f'Idempotency-Key: "{key}"',
            "Content-Type: application/json",
            f"Content-Length: {len(body) if length is None else length}",
            "Connection: close",
            "",
            "",
        ]
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall("\r\n".join(lines).encode() + body)
        return connection

    def hang_up(self, connection: socket.socket) -> None:
        """Be gone, and return once the application was told, if anybody tells it."""
        connection.close()
        if self._gone is None:
            return
        assert self._gone.wait(30)
        # What the event loop does about it, it has done when it answers.
        other = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        other.request("GET", "/")
        other.getresponse().read()
        other.close()


def read(connection: socket.socket) -> Reply:
    """Read an answer to its end."""
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        body = response.read()
    except http.client.IncompleteRead as exc:
        return Reply(response.status, response.getheaders(), [exc.partial], is_whole=False)
    except (http.client.HTTPException, OSError):
        return Reply(0, is_whole=False)
    return Reply(response.status, response.getheaders(), [body])


@contextlib.contextmanager
def serving(http_app: HttpApp) -> Iterator[Client]:
    """Serve an application."""
    server = http_app.server or ("uvicorn" if isinstance(http_app, OverAsgi) else "wsgiref")
    with _SERVERS[server](http_app.app) as client:  # type: ignore[attr-defined]
        yield client


def _watched(app: Any, gone: threading.Event) -> Any:
    """An application that notes when it is told of a client that is gone."""

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        if scope["method"] == "GET":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            return await send({"type": "http.response.body", "body": b""})

        async def heard() -> Any:
            message = await receive()
            if message["type"] == "http.disconnect":
                gone.set()
            return message

        return await app(scope, heard, send)

    return watched


@contextlib.contextmanager
def _uvicorn(app: Any) -> Iterator[Client]:
    gone = threading.Event()
    bound = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(_watched(app, gone), lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    eventually(lambda: server.started, "uvicorn serves")
    try:
        yield Client(bound.getsockname()[1], gone)
    finally:
        server.should_exit = True
        thread.join(30)
        bound.close()


@contextlib.contextmanager
def _hypercorn(app: Any) -> Iterator[Client]:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    gone, stop = threading.Event(), threading.Event()
    bound = socket.create_server(("127.0.0.1", 0))
    config = Config.from_mapping(
        bind=[f"fd://{bound.fileno()}"], errorlog=None, graceful_timeout=0.1
    )

    async def until_stopped() -> None:
        await asyncio.to_thread(stop.wait)

    def run() -> None:
        asyncio.run(serve(_watched(app, gone), config, shutdown_trigger=until_stopped))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield Client(bound.getsockname()[1], gone)
    finally:
        stop.set()
        thread.join(30)
        bound.detach()  # closed by the server


@contextlib.contextmanager
def _waitress(app: Any) -> Iterator[Client]:
    import waitress

    bound = socket.create_server(("127.0.0.1", 0))
    server = waitress.create_server(app, sockets=[bound], threads=8)
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            server.asyncore.loop(timeout=0.05, map=server._map, count=1)
        for channel in list(server._map.values()):
            channel.handle_close()
        server.task_dispatcher.shutdown()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield Client(bound.getsockname()[1])
    finally:
        stop.set()
        thread.join(30)


class _Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@contextlib.contextmanager
def _wsgiref(app: Any) -> Iterator[Client]:
    server = make_server("127.0.0.1", 0, app, _Threads, _Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Client(server.server_port)
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()


_SERVERS = {
    "uvicorn": _uvicorn,
    "hypercorn": _hypercorn,
    "wsgiref": _wsgiref,
    "waitress": _waitress,
}
