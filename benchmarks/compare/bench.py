"""One contender under test: its workers, its callers and their answers."""

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

#: An answer that has not come after this time counts as missing.
PATIENCE_SECONDS = 30.0
#: If nothing is queued, unacked or running for this long, which is longer than every lease here, no
#: further answer will come.
QUIET_SECONDS = 8.0
#: The same for a copy that nobody waits for.
SETTLED_SECONDS = 0.5
POLL_SECONDS = 0.05

_PROJECT = Path(__file__).resolve().parents[2]


class BenchError(Exception):
    """The benchmark itself failed, so that its figures can't be trusted."""


@dataclass(frozen=True)
class Call:
    """What a caller got from calling the task."""

    #: The task that is to answer; None if the call was refused.
    task_id: str | None = None
    #: The name of the exception that refused the call.
    refusal: str | None = None


@dataclass(frozen=True)
class Answer:
    """The final answer to a caller.

    ``kind`` is "result" (in ``detail``), "none" (a success without a result), "error" or "refused"
    (``detail`` is the exception's name), or "never".
    """

    kind: str
    detail: Any = None


class Bench:
    """A contender on a server of its own, whose URL workers and callers read in the environment.

    It is a context manager, and ends every worker.
    """

    def __init__(self, contender: Contender, directory: Path, server_url: str) -> None:
        self.contender = contender
        self.ledger = Ledger(directory)
        self._broker = Redis.from_url(f"{server_url}/0")
        self._results = Redis.from_url(f"{server_url}/1")
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        #: The contender's module, with ``app``, ``charge`` and ``summary``; callers run here.
        self.shop = importlib.import_module(contender.module)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    def server_version(self) -> str:
        """The name and version of the private server."""
        info: Any = self._broker.info("server")
        if "valkey_version" in info:
            return f"Valkey {info['valkey_version']}"
        return f"Redis {info['redis_version']}"

    def start_worker(self, concurrency: int = 4) -> int:
        """Start a prefork worker, and return its pid once it takes messages."""
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
        """Call the contender's task as a user would, and record its immediate answer."""
        return self.attempt(
            lambda: self.shop.charge.apply_async(kwargs={"order_id": order_id, **options})
        )

    def attempt(self, publish: Callable[[], Any]) -> Call:
        """Publish a call; an exception is a finding."""
        try:
            return Call(task_id=str(publish().id))
        except Exception as error:
            return Call(refusal=type(error).__name__)

    def call_at_once(self, count: int, order_id: str, **options: Any) -> list[Call]:
        """Make the same call from this many processes at the same moment."""
        # Forked and not started anew, so that the barrier and no import decides when they begin.
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
        """Return the callers' answers, once all have one or nothing more can happen."""
        deadline = time.monotonic() + patience
        quiet_since = time.monotonic()
        while time.monotonic() < deadline:
            answers = [self._answer(call) for call in calls]
            if not self._is_quiet():
                quiet_since = time.monotonic()
            # All may be answered while a copy still runs, whose effect belongs to the finding.
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
        """Return the state of the call's task in the result backend."""
        meta: Mapping[str, Any] = self.shop.app.backend.get_task_meta(call.task_id)
        return str(meta["status"])

    def _is_quiet(self) -> bool:
        if self._broker.llen("celery") or self._broker.hlen("unacked"):
            return False
        alive = set(self._workers)
        return not any(run.ended is None and run.worker_pid in alive for run in self.ledger.runs())

    def locks(self) -> dict[str, float | str]:
        """Return the contender's locks by name, with the seconds that are left, or "for ever"."""
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
        """Return once the condition holds; raise BenchError if it does not hold in time."""
        if not self.comes_true(condition, patience):
            raise BenchError(f"{self.contender.title}: waited {patience:g} s in vain until {what}")

    def comes_true(self, condition: Callable[[], Any], patience: float) -> bool:
        """Wait for the condition; return whether it held in time."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(POLL_SECONDS)
        return bool(condition())
