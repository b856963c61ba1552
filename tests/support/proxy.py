"""A TCP proxy on the loopback address, so that a test can cut a connection between two others."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """Forward a port of its own to another address until told otherwise."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._refusing = False
        self._wanted = b""
        self._mute: set[socket.socket] = set()
        self._flows = threading.Event()
        self._flows.set()
        self._freezes_at: bytes | None = None
        self._frozen = False
        #: How many answers were lost by :meth:`lose_answer_to`.
        self.lost = 0
        #: How many connections were ended at once, after :meth:`refuse`.
        self.refused = 0
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def cut(self) -> None:
        """End every connection that goes through now; new ones are let through."""
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            _end(connection)

    def refuse(self) -> None:
        """End every connection, and each new one at once, until :meth:`accept`."""
        self._refusing = True
        self.cut()

    def accept(self) -> None:
        """Let connections through again, and what the target sends."""
        self._refusing = False
        self._flows.set()

    def lose_answer_to(self, request: bytes) -> None:
        """Let the next request with these bytes through, and end its connection at the answer."""
        self._wanted = request

    def hold_answers(self) -> None:
        """Keep to itself what the target sends, the connections up, until :meth:`accept`.

        What is kept when a connection ends is lost with it.
        """
        self._flows.clear()

    def freeze(self, at: bytes = b"") -> None:
        """Be a host that hangs, until :meth:`thaw`: take what comes, new connections too.

        Args:
            at: it begins with the request that has these bytes; with the next one by default.
        """
        self._freezes_at = at

    @property
    def is_frozen(self) -> bool:
        """Whether it has taken something since :meth:`freeze`, which it keeps."""
        return self._frozen

    def thaw(self) -> None:
        """End every connection, with all that it took; new ones are let through."""
        self._freezes_at, self._frozen = None, False
        self.cut()

    def turn_to(self, host: str, port: int) -> None:
        """End every connection, and let new ones through to another address."""
        self._target = (host, port)
        self.cut()

    def close(self) -> None:
        """Stop for good."""
        _end(self._listener)
        self.refuse()
        self._flows.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._refusing:
                    self.refused += 1
                    _end(near)
                    continue
                try:
                    far = socket.create_connection(self._target)
                except OSError:
                    _end(near)
                    continue
                with self._lock:
                    self._open |= {near, far}
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(
                        target=self._forward,
                        args=(source, sink, source is far),
                        name="proxy",
                        daemon=True,
                    ).start()

    def _forward(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._freezes_at is not None and self._freezes_at in data:
                    self._frozen = True
                if self._frozen:
                    continue
                with self._lock:
                    if self._wanted and self._wanted in data:
                        self._wanted = b""
                        self._mute.add(sink)
                    elif source in self._mute:
                        self._mute.discard(source)
                        self.lost += 1
                        break
                if answers:
                    self._flows.wait()
                sink.sendall(data)
        _end(source)
        _end(sink)
        with self._lock:
            self._open -= {source, sink}


def _end(connection: socket.socket) -> None:
    # Shutdown wakes a thread that is blocked in recv or accept; close alone does not.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
