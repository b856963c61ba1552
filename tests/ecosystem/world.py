"""One row's world: a server, the app, its worker, and what was called."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery.result import AsyncResult

from tests.ecosystem.adapter import Adapter
from tests.ecosystem.shop import VARIABLE, make_app
from tests.support.ledger import Ledger
from tests.support.waiting import eventually

__all__ = ["World"]

ROOT = Path(__file__).parents[2]
FINAL = ("SUCCESS", "FAILURE")
PATIENCE_S = 60.0


class World:
    """What a case uses; :meth:`end_worker`, then :meth:`close`.

    Args:
        name: of the adapter.
        adapter: it has started its servers.
    """

    def __init__(self, name: str, adapter: Adapter) -> None:
        self.adapter = adapter
        self.ledger = Ledger(adapter.directory / "ledger")
        self.settings: dict[str, Any] = {
            "broker_url": f"{adapter.server}/0",
            "result_backend": f"{adapter.server}/1",
            "idempotency_store_url": f"{adapter.server}/2",
            "broker_connection_retry_on_startup": True,
            "task_default_queue": "shop",
            "worker_hijack_root_logger": False,
            **adapter.settings(),
        }
        row = {
            "adapter": name,
            "directory": str(adapter.directory),
            "server": adapter.server,
            "settings": self.settings,
        }
        os.environ.update(adapter.environment())
        os.environ[VARIABLE] = json.dumps(row)
        self.app = make_app(adapter, self.settings)
        #: The ids of all calls, and of those whose body has to run, to fail, or not to run.
        self.calls: list[str] = []
        self.runs: set[str] = set()
        self.failures: set[str] = set()
        self.duplicates: set[str] = set()
        self._worker: subprocess.Popen[bytes] | None = None
        self._helpers: list[subprocess.Popen[bytes]] = []

    # --- processes -------------------------------------------------------------------------------

    def spawn(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a process of the app; its log is ``<name>.log``."""
        with open(self.adapter.directory / f"{name}.log", "wb") as log:
            started = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._helpers.append(started)
        return started

    def log(self, name: str = "worker") -> str:
        """What a process has written."""
        return (self.adapter.directory / f"{name}.log").read_text(errors="replace")

    def start_worker(self) -> None:
        """Start it, and return once it consumes."""
        command = [
            *(sys.executable, "-m", "celery", "-A", "tests.ecosystem.app", "worker"),
            *("--pool", self.adapter.pool, "--concurrency", "4", "--hostname", self._worker_name()),
            *("--loglevel", "INFO", "--without-gossip", "--without-mingle", "-E"),
        ]
        self._worker = worker = self.spawn("worker", self.adapter.worker_command(command))
        eventually(
            lambda: self.ledger.count("ready") or worker.poll() is not None,
            "the worker is ready",
            PATIENCE_S,
        )
        assert worker.poll() is None, f"the worker did not start:\n{self.log()[-2000:]}"

    def _worker_name(self) -> str:
        """A name of its own: of two workers of one name, RabbitMQ refuses the second."""
        return f"shop@{self.adapter.directory.name}"

    def end_worker(self) -> None:
        """Have it end by itself, so that whatever it has to send is sent."""
        if self._worker is not None:
            os.kill(self._worker.pid, signal.SIGTERM)
            self._worker.wait(PATIENCE_S)

    def close(self) -> None:
        """End what was started."""
        for started in self._helpers:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()
        # A result that goes later asks for the server once a second, twenty times: it is gone then.
        gc.collect()
        self.app.close()

    # --- calls -----------------------------------------------------------------------------------

    def call(self, name: str, order: int, role: str, **kwargs: Any) -> AsyncResult:
        """Publish a call; its role says what is to become of it: run, fail, duplicate."""
        sent = self.app.tasks[f"shop.{name}"].apply_async((order,), kwargs)
        return self.note(sent, role)

    def note(self, sent: AsyncResult, role: str) -> AsyncResult:
        """Note what is to become of a call."""
        self.calls.append(sent.id)
        {"run": self.runs, "fail": self.failures, "duplicate": self.duplicates}[role].add(sent.id)
        return sent

    def finished(self, task_id: str) -> str:
        """Return the final state that a worker gave to a call; empty: none yet."""
        states = [entry["state"] for entry in self.ledger.entries("finished", id=task_id)]
        return next((state for state in states if state in FINAL), "")

    def waited(self, task_id: str) -> int:
        """Return how often a call was put back to wait."""
        states = [entry["state"] for entry in self.ledger.entries("finished", id=task_id)]
        return len([state for state in states if state not in FINAL])

    def answers(self, calls: Sequence[AsyncResult]) -> list[Any]:
        """Return what each caller got; where there are no results, the final states."""
        eventually(
            lambda: all(self.finished(call.id) for call in calls), "all are answered", PATIENCE_S
        )
        if not self.adapter.results:
            return [self.finished(call.id) for call in calls]
        return [call.get(timeout=PATIENCE_S, propagate=False) for call in calls]

    def effects(self, order: int) -> int:
        """Return how often an order was charged."""
        return self.ledger.count("effect", order=order)
