"""The stage: a private server and real workers for each side, started and ended in order."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from kombu.transport.redis import Channel as RedisChannel

from celery_idempotent.errors import how_to_install
from celery_idempotent.testing.servers import RedisServer
from examples.demo.bank import Payment, open_bank, payments_of
from examples.demo.briefing import Briefing
from examples.demo.ledger import Entry, Ledger

__all__ = ["IDEMPOTENT", "PLAIN", "SIDES", "DemoFailed", "Stage", "Worker"]

PLAIN = "plain"
IDEMPOTENT = "idempotent"
SIDES = (PLAIN, IDEMPOTENT)

VAULT = "vault"

#: The queues of each side, one for each worker that it has.
_QUEUES = {PLAIN: (PLAIN, PLAIN), IDEMPOTENT: (IDEMPOTENT, IDEMPOTENT, VAULT)}
_APPS = {
    PLAIN: "examples.demo.app",
    IDEMPOTENT: "examples.demo.app",
    VAULT: "examples.demo.vault",
}
_SLOTS_A_WORKER = 4


class DemoFailed(Exception):
    """The demo could not go on; the message says what is missing."""


class Worker:
    """One ``celery worker``, the leader of a process group that holds its pool children too."""

    def __init__(self, name: str, queue: str, briefing: Briefing, log: Path) -> None:
        self.name = name
        self.queue = queue
        self.log = log
        command = [
            *(sys.executable, "-m", "celery", "-A", _APPS[queue], "worker"),
            *("-n", name, "-Q", queue, "-c", str(_SLOTS_A_WORKER), "-l", "INFO"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ]
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                command,
                # A killed pool leaves a directory behind; here it is removed with the logs.
                env={**os.environ, **briefing.environment(), "TMPDIR": str(log.parent)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A group of its own: a kill ends its children, too, and Ctrl-C only the demo.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id, which is also its group's."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether its main process is gone."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL the whole group, as the kernel's OOM killer or a lost machine would."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


class Stage:
    """Everything the demo starts; leaving it ends exactly that, by process id.

    Attributes:
        directory: where the ledger and the workers' logs are.
        ledger: the ledger.
        shop: the module :mod:`examples.demo.app`, bound to the private server.
        stopping: set when the demo was asked to end; then all waiting ends.
    """

    def __init__(self, mode: str, stopping: threading.Event) -> None:
        self.stopping = stopping
        self.directory = Path(tempfile.mkdtemp(prefix="celery-idempotent-demo-"))
        self.ledger = Ledger(self.directory / "ledger.jsonl")
        self.shop: Any = None
        self._mode = mode
        self._sweeper: Any = None
        self._server = RedisServer(directory=self.directory / "server")
        self._workers: dict[str, list[Worker]] = {side: [] for side in SIDES}
        self._hired = dict.fromkeys(SIDES, 0)
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Stage:
        try:
            self._server.start()
            # Celery prefers CELERY_BROKER_URL and such to an app's configuration: where they are
            # set, the demo would use a queue of the user's.
            for name in list(os.environ):
                if name.startswith("CELERY") and not name.startswith("CELERY_IDEMPOTENT_"):
                    del os.environ[name]
            os.environ.update(self._briefing("").environment())
            # Imported late, because the app reads its briefing when it is imported.
            from examples.demo import app as shop

            self.shop = shop
            self._prepare()
            self._broker = redis.Redis(port=self._server.port, db=0)
            if not hasattr(RedisChannel, "unacked_restore_interval"):
                self._sweeper = shop.app.connection_for_read().default_channel
            for side, queues in _QUEUES.items():
                for queue in queues:
                    self._hire(side, queue)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every worker and the server."""
        with self._lock:
            self._closed = True
            # Tasks in flight no longer matter, and no task can delay a SIGKILL.
            for workers in self._workers.values():
                for worker in workers:
                    worker.kill()
                workers.clear()
        # When a result is deleted after the server ended, it tries for half a minute to
        # unsubscribe; the results of a chord are in a cycle.
        gc.collect()
        self._server.stop()

    def discard(self) -> None:
        """Remove the ledger and the logs."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def pids(self) -> list[int]:
        """Return the processes that were started and have not been ended."""
        return [worker.pid for workers in self._workers.values() for worker in workers]

    def ready(self, side: str) -> bool:
        """Whether all workers of a side take messages.

        Raises:
            DemoFailed: one of them ended by itself; the message has its last lines.
        """
        for worker in self._workers[side]:
            if worker.ended:
                last = worker.log.read_text(errors="replace").strip().rpartition("\n")[2]
                raise DemoFailed(f"the worker {worker.name} ended by itself: {last}")
        up = {entry.worker for entry in self.ledger.of(side) if entry.event == "ready"}
        return up.issuperset(worker.name for worker in self._workers[side])

    def kill_worker_of(self, entry: Entry) -> None:
        """SIGKILL the worker that wrote this entry, and start another one in its place."""
        with self._lock:
            workers = self._workers[entry.side]
            victim = next(worker for worker in workers if worker.name == entry.worker)
            victim.kill()
            workers.remove(victim)
        self.ledger.write(Entry("killed", side=entry.side, worker=victim.name, pid=victim.pid))
        self._hire(entry.side, victim.queue)

    def sweep(self) -> None:
        """Deliver lost messages again if the workers do it too rarely.

        Before kombu 5.7 a running worker looks for them every 100 s, which can't be changed. Any
        client may look; this one does so with kombu's own code. Only one thread may call it.
        """
        if self._sweeper is not None:
            self._sweeper.qos.restore_visible(interval=1)

    def quiet(self, side: str) -> bool:
        """Whether nothing of this side is queued, held back or running: the figures are final."""
        queues = set(_QUEUES[side])
        if any(self._broker.llen(queue) for queue in queues):
            return False
        held: Any = self._broker.hvals("unacked")
        if any(json.loads(value)[2] in queues for value in held):
            return False
        entries = self.ledger.of(side)
        dead = {entry.worker for entry in entries if entry.event == "killed"}
        alive = [entry.event for entry in entries if entry.worker not in dead]
        return alive.count("delivered") == alive.count("left")

    def payments(self, side: str) -> list[Payment]:
        """Return the payments in the last act's databases."""
        briefing = self._briefing(side)
        paths = (briefing.bank_path, briefing.vault_path)
        return [payment for path in paths for payment in payments_of(path, side)]

    def _prepare(self) -> None:
        try:
            from examples.demo.vault import open_vault
        except ImportError as exc:
            raise DemoFailed(f"{exc}: {how_to_install('demo')}") from exc
        open_vault()
        open_bank(self._briefing("").bank_path)

    def _hire(self, side: str, queue: str) -> None:
        # Under the lock, so that no thread starts a worker that close() does not see.
        with self._lock:
            if self._closed:
                return
            self._hired[side] += 1
            name = f"{side}-{self._hired[side]}@demo"
            log = self.directory / f"{name.partition('@')[0]}.log"
            self._workers[side].append(Worker(name, queue, self._briefing(side), log))

    def _briefing(self, side: str) -> Briefing:
        server = self._server.url().rpartition("/")[0]
        return Briefing(server, str(self.ledger.path), side, self._mode)
