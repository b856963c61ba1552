"""A library under test: its workers, its callers' answers, and whether anything goes on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from celery import Celery
from redis import Redis

from benchmarks.playing.ledger import Ledger
from benchmarks.playing.player import say
from benchmarks.playing.process import PROJECT, end_group, lives

__all__ = ["PATIENCE_S", "POLL_S", "SETTLED_S", "Answer", "BenchError", "Call", "PlayedBench"]

B = TypeVar("B", bound="PlayedBench")

#: Nothing is waited for longer than this; an answer that has not come by then counts as missing.
PATIENCE_S = 60.0
#: If nothing is queued, unacked or running for this long, which is longer than every lease here, no
#: further answer will come.
QUIET_S = 8.0
#: The same for a copy that nobody waits for.
SETTLED_S = 0.3
POLL_S = 0.02


class BenchError(Exception):
    """The benchmark itself failed, so that what it saw can't be trusted."""


@dataclass(frozen=True)
class Call:
    """What a caller got at once: the id of the task that is to answer, or an exception."""

    task_id: str | None = None
    #: The name of the exception that the call raised.
    refusal: str | None = None
    #: The id of the first task, if a chain was called.
    head_id: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a caller got in the end.

    ``kind`` is "result" (in ``detail``), "none" (a success without a result), "refused" (an error
    by which a library refuses a duplicate; ``detail`` is its name), "error" (another one), or
    "never".
    """

    kind: str
    detail: Any = None

    def __str__(self) -> str:
        words = {"result": "a result", "none": "None", "never": "no answer"}
        return words.get(self.kind) or str(self.detail)


class PlayedBench(ABC):
    """A library on a server of its own; a context manager that ends every worker.

    Args:
        app_module: the module with the Celery app that workers run.
        app: the same app, for the callers.
        ledger: what its bodies write.
        server_url: the server, without a database; the broker is its database 0.
    """

    def __init__(self, app_module: str, app: Celery, ledger: Ledger, server_url: str) -> None:
        self.app = app
        self.ledger = ledger
        self._app_module = app_module
        self._broker = Redis.from_url(f"{server_url}/0", socket_timeout=PATIENCE_S)
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._workers_lock = threading.Lock()
        self._is_closed = False

    @abstractmethod
    def refuses(self, error: str, at_the_call: bool) -> bool:
        """Whether an exception with this name is how the library refuses a duplicate."""

    def __enter__(self: B) -> B:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every worker; no other one can be started."""
        with self._workers_lock:
            for pid in self._workers:
                end_group(pid)
            self._is_closed = True

    def server_version(self) -> str:
        """The name and version of the private server."""
        info: Any = self._broker.info("server")
        if "valkey_version" in info:
            return f"Valkey {info['valkey_version']}"
        return f"Redis {info['redis_version']}"

    # -- workers -----------------------------------------------------------------------------------

    def start_worker(self, concurrency: int) -> int:
        """Start a prefork worker, and return its pid once it takes messages."""
        number = len(self.ledger.events("ready")) + 1
        command = [sys.executable, "-m", "celery", "-A", self._app_module, "worker"]
        command += ["--pool", "prefork", "--concurrency", str(concurrency), "--loglevel", "INFO"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        command += ["--hostname", f"worker{number}@%h"]
        log_path = self.ledger.directory / f"worker{number}.log"
        with open(log_path, "wb") as log, self._workers_lock:
            if self._is_closed:
                raise BenchError("the run is over")
            worker = subprocess.Popen(
                command, cwd=PROJECT, stdout=log, stderr=log, start_new_session=True
            )
            self._workers[worker.pid] = worker
        say("worker", pid=worker.pid)
        self.wait_for(
            lambda: self.ledger.events("ready", worker_pid=worker.pid),
            f"worker {number} takes messages",
        )
        return worker.pid

    def kill_worker(self, pid: int) -> None:
        """SIGKILL a worker with its whole pool, as a lost machine would."""
        end_group(pid)
        with self._workers_lock:
            worker = self._workers.pop(pid)
        worker.wait(timeout=PATIENCE_S)
        say("worker", pid=pid, ended=True)

    def kill_all(self) -> None:
        """SIGKILL every worker that is left."""
        for pid in list(self._workers):
            self.kill_worker(pid)

    def _see_workers(self) -> None:
        """Raise BenchError if a worker has ended that was not killed: nothing would ever come."""
        with self._workers_lock:
            ended = [it for it in self._workers.values() if it.poll() is not None]
        if ended:
            logs = ", ".join(path.name for path in self.ledger.directory.glob("worker*.log"))
            raise BenchError(
                f"worker {ended[0].pid} ended by itself with {ended[0].returncode}; see {logs}"
            )

    # -- calls and their answers -------------------------------------------------------------------

    def attempt(self, publish: Callable[[], Any]) -> Call:
        """Publish a call; an exception is a finding."""
        try:
            result = publish()
            parent = getattr(result, "parent", None)
            return Call(result.id, head_id=None if parent is None else parent.id)
        except Exception as error:
            return Call(refusal=type(error).__name__)

    def answers(self, *calls: Call) -> list[Answer]:
        """Return the callers' answers, once all have one or nothing more can happen."""
        deadline = time.monotonic() + PATIENCE_S
        quiet_since = time.monotonic()
        while time.monotonic() < deadline:
            self._see_workers()
            answers = [self._answer(call) for call in calls]
            if not self.is_quiet():
                quiet_since = time.monotonic()
            # All may be answered while a copy still runs, whose effect belongs to what is seen.
            answered = all(answer.kind != "never" for answer in answers)
            if time.monotonic() - quiet_since > (SETTLED_S if answered else QUIET_S):
                return answers
            time.sleep(POLL_S)
        return [self._answer(call) for call in calls]

    def _answer(self, call: Call) -> Answer:
        if call.refusal is not None:
            return self._named(call.refusal, at_the_call=True)
        meta = self.app.backend.get_task_meta(call.task_id)
        if meta["status"] == "SUCCESS":
            value = meta["result"]
            return Answer("none") if value is None else Answer("result", value)
        if meta["status"] in ("FAILURE", "REVOKED", "REJECTED"):
            return self._named(type(meta["result"]).__name__, at_the_call=False)
        return Answer("never", meta["status"])

    def _named(self, error: str, *, at_the_call: bool) -> Answer:
        return Answer("refused" if self.refuses(error, at_the_call) else "error", error)

    def state(self, call: Call) -> str:
        """The state of a call's task in the result backend."""
        return str(self.app.backend.get_task_meta(call.task_id)["status"])

    def is_quiet(self) -> bool:
        """Whether nothing is queued, unacked or running."""
        if self._broker.llen("celery") or self._broker.hlen("unacked"):
            return False
        return not any(run.ended is None and lives(run.pid, run.born) for run in self.ledger.runs())

    def wait_for(self, condition: Callable[[], Any], what: str) -> None:
        """Return once the condition holds; raise BenchError if it does not hold in time."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if condition():
                return
            self._see_workers()
            time.sleep(POLL_S)
        raise BenchError(f"waited {PATIENCE_S:g} s in vain until {what}")
