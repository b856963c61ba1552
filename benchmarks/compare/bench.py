"""One contender under test: its real workers, its callers and their answers."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks.compare.contenders import Contender
from benchmarks.compare.ledger import Ledger

__all__ = ["Answer", "Bench", "Call", "BenchError"]

#: An answer that hasn't come by then never comes.
PATIENCE_SECONDS = 30.0
#: Nothing queued, unacked or running for so long: whoever has no answer won't get one.
QUIET_SECONDS = 3.0
#: The same for a copy that nobody waits for.
SETTLED_SECONDS = 0.5
POLL_SECONDS = 0.05

_PROJECT = Path(__file__).resolve().parents[2]


class BenchError(Exception):
    """The machinery failed: what was measured can't be trusted."""


@dataclass(frozen=True)
class Call:
    """What a caller had in hand after it called the task."""

    #: The task that is to answer; None where the call was refused.
    task_id: str | None = None
    #: The name of the exception that refused the call.
    refusal: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a caller got in the end.

    ``kind`` is "result" (``detail`` is it), "none" (a success without a result), "error" or
    "refused" (``detail`` is the exception's name), "never".
    """

    kind: str
    detail: Any = None


class Bench:
    """A contender on a server of its own, which the environment names to workers and callers alike.

    A context manager: no worker outlives it.
    """

    def __init__(self, contender: Contender, directory: Path, server_url: str) -> None:
        self.contender = contender
        self.ledger = Ledger(directory)
        self._broker = Redis.from_url(f"{server_url}/0")
        self._results = Redis.from_url(f"{server_url}/1")
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        #: The contender's module: ``app``, ``charge``, ``summary``. The callers' side runs here.
        self.shop = importlib.import_module(contender.module)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    def server_version(self) -> str:
        """The private server's own name and version."""
        info: Any = self._broker.info("server")
        if "valkey_version" in info:
            return f"Valkey {info['valkey_version']}"
        return f"Redis {info['redis_version']}"

    def start_worker(self, concurrency: int = 4) -> int:
        """Start a prefork worker, return its pid once it takes messages."""
        command = [sys.executable, "-m", "celery", "-A", self.contender.module, "worker"]
        command += ["--pool", "prefork", "--concurrency", str(concurrency), "--loglevel", "INFO"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        number = len(self.ledger.events("ready")) + 1
        command += ["--hostname", f"worker{number}@%h"]
        log_path = self.ledger.directory / f"worker{number}.log"
        with open(log_path, "wb") as log:
            worker = subprocess.Popen(
                command, cwd=_PROJECT, stdout=log, stderr=log, start_new_session=True
            )
        self._workers[worker.pid] = worker

        def is_up() -> bool:
            if worker.poll() is not None:
                raise BenchError(
                    f"{self.contender.title}: the worker ended:\n{log_path.read_text()}"
                )
            return bool(self.ledger.events("ready", worker_pid=worker.pid))

        self.wait_for(is_up, "a worker starts")
        return worker.pid

    def kill_worker(self, pid: int) -> None:
        """SIGKILL a worker with its whole pool, as a lost machine would."""
        worker = self._workers.pop(pid)
        os.killpg(pid, signal.SIGKILL)
        worker.wait()

    def kill_all(self) -> None:
        """SIGKILL every worker that is left."""
        for pid in list(self._workers):
            self.kill_worker(pid)

    def call(self, order_id: str, **options: Any) -> Call:
        """Call the contender's task as a user would, and note what it says at once."""
        return self.attempt(
            lambda: self.shop.charge.apply_async(kwargs={"order_id": order_id, **options})
        )

    def attempt(self, publish: Callable[[], Any]) -> Call:
        """Publish something; an exception is a finding."""
        try:
            return Call(task_id=str(publish().id))
        except Exception as error:
            return Call(refusal=type(error).__name__)

    def call_at_once(self, count: int, order_id: str, **options: Any) -> list[Call]:
        """The same call from as many processes, let go together."""
        # Forked, not started anew: the barrier, not the time an import takes, sets them off.
        context = multiprocessing.get_context("fork")
        barrier = context.Barrier(count)
        calls: Any = context.SimpleQueue()

        def caller() -> None:
            barrier.wait()
            calls.put(self.call(order_id, **options))

        callers = [context.Process(target=caller) for _ in range(count)]
        for process in callers:
            process.start()
        for process in callers:
            process.join()
        if any(process.exitcode for process in callers):
            raise BenchError(f"{self.contender.title}: a caller died")
        return [calls.get() for _ in callers]

    def answers(self, calls: list[Call], patience: float = PATIENCE_SECONDS) -> list[Answer]:
        """What each caller gets, given until all have it or nothing more can happen."""
        deadline = time.monotonic() + patience
        quiet_since = time.monotonic()
        while time.monotonic() < deadline:
            answers = [self._answer(call) for call in calls]
            if not self._is_quiet():
                quiet_since = time.monotonic()
            # All may be answered while a copy still runs: its effect belongs to the finding.
            answered = all(answer.kind != "never" for answer in answers)
            if time.monotonic() - quiet_since > (SETTLED_SECONDS if answered else QUIET_SECONDS):
                return answers
            time.sleep(POLL_SECONDS)
        return [self._answer(call) for call in calls]

    def _answer(self, call: Call) -> Answer:
        if call.refusal is not None:
            return Answer("refused", call.refusal)
        meta: Mapping[str, Any] = self.shop.app.backend.get_task_meta(call.task_id)
        if meta["status"] == "SUCCESS":
            value = meta["result"]
            return Answer("none") if value is None else Answer("result", value)
        if meta["status"] in ("FAILURE", "REVOKED", "REJECTED"):
            return Answer("error", type(meta["result"]).__name__)
        return Answer("never", meta["status"])

    def state(self, call: Call) -> str:
        """The state of the call's task in the result backend."""
        meta: Mapping[str, Any] = self.shop.app.backend.get_task_meta(call.task_id)
        return str(meta["status"])

    def _is_quiet(self) -> bool:
        if self._broker.llen("celery") or self._broker.hlen("unacked"):
            return False
        alive = set(self._workers)
        return not any(run.ended is None and run.worker_pid in alive for run in self.ledger.runs())

    def locks(self) -> dict[str, float | str]:
        """The contender's locks by name, each with the seconds it has left, or "for ever"."""
        found: dict[str, float | str] = {}
        for pattern in self.contender.lock_keys:
            for key in self._results.scan_iter(match=pattern, count=1000):
                left = int(self._results.pttl(key))
                # -1: no expiry; -2: gone since the scan.
                if left != -2:
                    found[key.decode()] = "for ever" if left == -1 else round(left / 1000, 1)
        return found

    def wait_for(
        self, condition: Callable[[], Any], what: str, patience: float = PATIENCE_SECONDS
    ) -> None:
        """Return once the condition holds; BenchError where it doesn't in time."""
        if not self.comes_true(condition, patience):
            raise BenchError(f"{self.contender.title}: waited {patience:g} s in vain until {what}")

    def comes_true(self, condition: Callable[[], Any], patience: float) -> bool:
        """Whether the condition comes to hold in time."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(POLL_SECONDS)
        return bool(condition())
