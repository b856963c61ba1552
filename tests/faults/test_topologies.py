"""The same faults by other ways to a server, TLS and a socket, and on Redis beside Valkey."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.brokers import RedisBroker
from tests.support.replicas import tell
from tests.support.system import STORE_DB, System
from tests.support.tls import TlsFront, make_certificate


@pytest.fixture
def socket_server() -> Iterator[tuple[RedisServer, str]]:
    """A server that listens on a socket as well, and its URL; a socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="idem") as directory:
        path = os.path.join(directory, "s")
        with RedisServer(args=("--unixsocket", path)) as server:
            yield server, f"redis+socket://{path}?virtual_host={STORE_DB}"


@pytest.fixture
def tls_server(redis_server: RedisServer, tmp_path: Path) -> Iterator[tuple[TlsFront, str]]:
    """TLS in front of a server, and its URL with the certificate to check it by."""
    certificate, key = make_certificate(tmp_path)
    front = TlsFront(redis_server.port, certificate, key)
    path = quote(str(certificate))
    yield front, f"rediss://127.0.0.1:{front.port}/{STORE_DB}?ssl_ca_certs={path}"
    front.close()


def survives_a_kill(system: System) -> None:
    """A run whose process is killed is taken over at once, and its duplicate is answered."""
    # Given
    system.start_worker(concurrency=2)
    pay = system.task("pay")
    first = pay.delay(1, gate="go")
    (begun,) = system.ledger.wait_for("start")
    # When
    os.kill(begun["pid"], signal.SIGKILL)
    system.ledger.open("go")
    # Then
    answer = first.get(timeout=30)
    assert pay.delay(1, gate="go").get(timeout=30) == answer
    assert system.ledger.count("effect") == 1
    assert system.ledger.entries("start")[-1]["interrupted"]


def test_tls(make_faulty: MakeSystem, tls_server: tuple[TlsFront, str]) -> None:
    """Scenario 2 over TLS: children of the pool make connections of their own, as the parent."""
    front, url = tls_server
    survives_a_kill(make_faulty(idempotency_store_url=url, idempotency_lease=300))
    assert front.taken > 2


def test_a_socket(make_faulty: MakeSystem, socket_server: tuple[RedisServer, str]) -> None:
    """Scenario 2 over a unix socket."""
    server, url = socket_server
    survives_a_kill(make_faulty(idempotency_store_url=url, idempotency_lease=300))
    assert tell(server, "INFO", "keyspace")[f"db{STORE_DB}"]["keys"] > 0


def test_redis(tmp_path: Path, redis_program: Path) -> None:
    """Scenario 2 where records, results and messages are in Redis, whose scripts are its own."""
    with RedisServer(binary=redis_program) as server:
        system = System(
            RedisBroker(server), server, tmp_path, test_faults=True, idempotency_lease=300
        )
        try:
            survives_a_kill(system)
            assert "valkey_version" not in tell(server, "INFO", "server")
        finally:
            system.close()
