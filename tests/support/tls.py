"""TLS in front of a server whose binary may have none, with a certificate made for the test."""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

from tests.support.missing import NotThere


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Make a certificate for the loopback address, signed by itself; give it and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise NotThere("openssl is needed to make a certificate")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    made = subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise NotThere(f"openssl failed: {made.stderr}")
    return certificate, key


class TlsFront:
    """Take TLS connections, and pass on what comes by them to a port of this machine."""

    def __init__(self, port: int, certificate: Path, key: Path) -> None:
        self._target = ("127.0.0.1", port)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        #: How many connections spoke TLS.
        self.taken = 0
        threading.Thread(target=self._accept, name="tls", daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), name="tls", daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        # One thread for both directions: a TLS connection is no two streams to OpenSSL.
        with (
            contextlib.suppress(OSError),
            self._context.wrap_socket(near, server_side=True) as secure,
            socket.create_connection(self._target) as far,
        ):
            self.taken += 1
            while True:
                ready = [secure] if secure.pending() else select.select([secure, far], [], [])[0]
                for source, sink in ((secure, far), (far, secure)):
                    if source in ready:
                        data = source.recv(65536)
                        if not data:
                            return
                        sink.sendall(data)
