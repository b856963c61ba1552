"""Python processes that start warm: forked by one that has imported what is installed.

Tests start many processes, and each would spend a second of processor on importing Celery and what
it needs. Here one process imports that, once a run, and forks for each process that a test asks
for. It imports nothing of ours: each process imports what is tested by itself, as with
``python -m``.

Run as a script this file is that process. A process starts cold, as a new interpreter, if only that
can give what it asks for (:func:`_needs_a_new_interpreter`).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import importlib.metadata
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

#: What is imported once: all that a worker imports, and what many samples do.
MODULES = (
    *("celery.app.base", "celery.app.amqp", "celery.app.builtins", "celery.app.events"),
    *("celery.app.log", "celery.app.routes", "celery.app.trace", "celery.apps.worker"),
    *("celery.backends.redis", "celery.bin.amqp", "celery.bin.base", "celery.bin.worker"),
    *("celery.concurrency.prefork", "celery.concurrency.solo", "celery.events.state"),
    *("celery.app.control", "celery.apps.multi", "celery.beat", "celery.bin.beat"),
    *("celery.bin.call", "celery.bin.control", "celery.bin.events", "celery.bin.graph"),
    *("celery.bin.list", "celery.bin.logtool", "celery.bin.migrate", "celery.bin.multi"),
    *("celery.bin.purge", "celery.bin.result", "celery.bin.shell", "celery.bin.upgrade"),
    *("celery.contrib.abortable", "celery.contrib.migrate", "celery.schedules"),
    *("celery.fixups.django", "celery.worker.autoscale", "celery.worker.components"),
    *("celery.worker.consumer", "celery.worker.consumer.delayed_delivery"),
    *("celery.worker.control", "celery.worker.request", "celery.worker.strategy"),
    *("celery.worker.worker", "click_didyoumean", "click_plugins.core", "pytz"),
    *("click_repl", "django.core.management", "django.db.models", "humanize"),
    *("kombu.pools", "kombu.transport.memory", "kombu.transport.pyamqp"),
    *("kombu.transport.redis", "psycopg", "pymysql", "redis.cluster", "sqlalchemy.orm"),
    *("sqlalchemy.dialects.mysql.pymysql", "sqlalchemy.dialects.postgresql.psycopg"),
    *("sqlalchemy.dialects.sqlite.pysqlite", "prometheus_client", "tornado.web", "uvicorn", "yaml"),
    *("importlib.readers", "kombu.matcher", "kombu.pidbox", "tornado.auth", "tornado.httpclient"),
    *("tornado.options", "billiard.popen_fork", "billiard.synchronize"),
)
_MESSAGE_SIZE = 1 << 18
#: What the warm process is started with. Its own folder and modules are no part of what it forks.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
#: How variables begin that are read while an interpreter starts, by the linker, libc or Python, or
#: by Celery when it is imported.
_READ_AT_THE_START = ("LD_", "GLIBC_", "MALLOC_", "PYTHON", "LANG", "LC_", "REMAP_SIGTERM")
#: Those that a forked process heeds all the same.
_HEEDED = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")


class Process(Protocol):
    """What a test may do with a process: a part of :class:`subprocess.Popen`."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def start(
    args: Sequence[str],
    *,
    cwd: Path,
    env: dict[str, str],
    stdout: IO[Any],
    stderr: IO[Any] | None = None,
    cold: bool = False,
) -> Process:
    """Start ``python ARGS`` in a session of its own, with nothing to read from stdin.

    Args:
        args: what Python takes: ``-m MODULE`` or the path of a script, and its arguments.
        stderr: ``stdout`` unless given.
        cold: start a new interpreter, for what has to come before any import.
    """
    stderr = stderr or stdout
    if cold or _needs_a_new_interpreter(args, env):
        return subprocess.Popen(
            [sys.executable, *args],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    return _Forked({"args": list(args), "cwd": str(cwd), "env": env}, stdout, stderr)


def _needs_a_new_interpreter(args: Sequence[str], env: dict[str, str]) -> bool:
    """Whether only a new interpreter can be what is asked for.

    That is so with other options of Python than those that :func:`_run` knows, with another value
    of a variable that is read at the start, and where there are no pidfds (Linux has them).
    """
    if args[0].startswith("-") and args[0] not in ("-m", "-W"):
        return True
    return not hasattr(os, "pidfd_open") or any(
        env.get(name) != _ENVIRONMENT.get(name)
        for name in {*env, *_ENVIRONMENT} - {*_HEEDED}
        if name.startswith(_READ_AT_THE_START)
    )


def run(
    args: Sequence[str], *, cwd: Path, env: dict[str, str], timeout: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGS`` to its end; what it wrote, and its exit code."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(args, cwd=cwd, env=env, stdout=out, stderr=err)
        try:
            code = process.wait(timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        written = []
        for file in (out, err):
            file.seek(0)
            written.append(file.read().decode())
        return subprocess.CompletedProcess(list(args), code, *written)


class _Forked:
    """A process that was forked by the warm one, whose child it is."""

    def __init__(self, wanted: dict[str, Any], stdout: IO[Any], stderr: IO[Any]) -> None:
        reading, writing = os.pipe()
        self._status = os.fdopen(reading, "rb", buffering=0)
        try:
            fds = [stdout.fileno(), stderr.fileno(), writing]
            socket.send_fds(_warm(), [json.dumps(wanted).encode()], fds)
        finally:
            os.close(writing)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


_asking: socket.socket | None = None
_starting = threading.Lock()


def _warm() -> socket.socket:
    """Return the way to the warm process, which ends when this is closed, with us at the latest."""
    global _asking
    with _starting:
        if _asking is None:
            _asking, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=_ENVIRONMENT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            theirs.close()
            atexit.register(process.wait)
            atexit.register(_asking.close)
        return _asking


# --- the warm process ----------------------------------------------------------------------------


def _serve(fd: int) -> dict[str, Any] | None:
    """Fork for each request; return in a child what it has to be, and ``None`` at the end."""
    asked = socket.socket(fileno=fd)
    children = selectors.DefaultSelector()
    children.register(asked, selectors.EVENT_READ)
    while True:
        for found, _ in children.select():
            if found.fileobj is not asked:
                _tell_the_end(children, found)
                continue
            packed, fds, _, _ = socket.recv_fds(asked, _MESSAGE_SIZE, 3)
            if not packed:
                return None
            out, err, status = fds
            pid = os.fork()
            if pid == 0:
                children.close()
                asked.close()
                _become(out, err, status)
                return json.loads(packed)
            os.close(out)
            os.close(err)
            children.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))


def _tell_the_end(children: selectors.BaseSelector, found: selectors.SelectorKey) -> None:
    pid, status = found.data
    _, ended = os.waitpid(pid, 0)
    children.unregister(found.fileobj)
    os.close(found.fd)
    with contextlib.suppress(BrokenPipeError):
        os.write(status, b"%d\n" % os.waitstatus_to_exitcode(ended))
    os.close(status)


def _become(out: int, err: int, status: int) -> None:
    """Be in a session of one's own, with these files and no others."""
    os.setsid()
    os.write(status, b"%d\n" % os.getpid())
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(source, target)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def _run(wanted: dict[str, Any], installed: list[str]) -> None:
    """Do what a new interpreter would with these arguments."""
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    time.tzset()
    tempfile.tempdir = None
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    args = wanted["args"]
    if args[0] == "-W":
        warnings.simplefilter(args[1])
        args = args[2:]
    is_module = args[0] == "-m"
    args = args[1:] if is_module else args
    first = wanted["cwd"] if is_module else str(Path(args[0]).resolve().parent)
    named = [it for it in os.environ.get("PYTHONPATH", "").split(os.pathsep) if it]
    sys.argv = [*args]
    sys.path[:] = [first, *named, *installed]
    if is_module:
        runpy.run_module(args[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(args[0], run_name="__main__")


def remember_version() -> None:
    """Have redis-py look up its own version once: it parses its metadata for each connection."""
    utils: Any = importlib.import_module("redis.utils")
    utils.get_lib_version = functools.cache(utils.get_lib_version)


def _main(fd: int) -> None:
    installed = sys.path[1:]
    for name in MODULES:
        with contextlib.suppress(ImportError):  # not every environment has all of them
            importlib.import_module(name)
    remember_version()
    importlib.metadata.entry_points()  # finds what is installed, and remembers where
    gc.collect()
    gc.freeze()
    wanted = _serve(fd)
    if wanted is not None:
        _run(wanted, installed)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
