"""Everything that runs: the server, brokers, databases and workers, and what is done to them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from sqlalchemy import create_engine, func, select

from benchmarks.playing.process import lives
from celery_idempotent.stores.sql.store import SqlStore
from celery_idempotent.testing.servers import RedisServer
from tests.chaos import aof
from tests.chaos.evidence import Answer, Done
from tests.chaos.plan import LEASE_S, VISIBILITY_TIMEOUT_S, Act, Fault, Part
from tests.chaos.workload import Work, booked, inserted, make_app, mark_messages, metadata
from tests.support.brokers import RabbitBroker, RedisBroker
from tests.support.databases import Database
from tests.support.ledger import Entry, Ledger
from tests.support.workers import Worker

RESULT_DB, STORE_DB = 1, 2
#: The last line of a traceback.
_ERROR = re.compile(r"[\w.]*(Error|Exception)\b")


class Tail:
    """The ledger as it grows, read once."""

    def __init__(self, ledger: Ledger) -> None:
        self._path = ledger.path
        self._offset = 0
        self._lock = threading.Lock()
        self.entries: list[Entry] = []
        self.nodes: set[str] = set()
        self.children: dict[int, set[int]] = {}
        #: Bodies that have begun and not ended, by pid, with their node.
        self.busy: dict[int, str] = {}
        self.ended = 0

    def read(self) -> None:
        """Take what was written since the last time."""
        with self._lock:
            if not self._path.exists():
                return
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                data = file.read().rpartition(b"\n")[0]
            self._offset += len(data) + 1 if data else 0
            for line in data.splitlines():
                self._take(json.loads(line))

    def _take(self, entry: Entry) -> None:
        self.entries.append(entry)
        if entry["event"] == "ready":
            self.nodes.add(entry["node"])
        elif entry["event"] == "child":
            self.children.setdefault(entry["parent"], set()).add(entry["pid"])
        elif entry["event"] == "begin":
            self.busy[entry["pid"]] = entry["node"]
        elif entry["event"] == "end":
            self.busy.pop(entry["pid"], None)
            self.ended += 1


class System:
    """All processes of one run; :meth:`close` ends exactly those.

    Args:
        parts: what it consists of.
        directory: ledger, logs and the server's data go there.
    """

    def __init__(self, parts: Sequence[Part], directory: Path) -> None:
        self.parts = {part.name: part for part in parts}
        self.ledger = Ledger(directory / "ledger")
        self.tail = Tail(self.ledger)
        self.faults: list[Done] = []
        self.notes: list[str] = []
        self._lock = threading.Lock()
        self._closing = contextlib.ExitStack()
        # The server dies with the thread that started it: one that lives as long as this.
        self._keeper = ThreadPoolExecutor(1, "server")
        self._closing.callback(self._keeper.shutdown)
        self._data = directory / "server"
        persistent = ("--appendonly", "yes", "--appendfsync", "always")
        # What it writes down is evidence: it is not to be rewritten.
        kept = ("--auto-aof-rewrite-percentage", "0")
        self.server = RedisServer(directory=self._data, args=persistent + kept)
        self._keeper.submit(self.server.start).result()
        self._closing.callback(self.server.stop)
        self.client = redis.Redis.from_url(self.server.url(RESULT_DB), socket_timeout=2)
        self._closing.callback(self.client.close)
        self.database = self._database(directory)
        self._closing.callback(self.database.drop)
        self._engine = create_engine(self.database.url)
        self._closing.callback(self._engine.dispose)
        metadata.create_all(self._engine)
        self.brokers: dict[str, RabbitBroker | RedisBroker] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.apps: dict[str, Celery] = {}
        self.workers: dict[str, list[Worker]] = {name: [] for name in self.parts}
        for part in parts:
            self._prepare(part)
        mark_messages(Work(self.settings[parts[0].name]))

    def _database(self, directory: Path) -> Database:
        stores = {part.store for part in self.parts.values()}
        return Database("postgresql" if "postgresql" in stores else "sqlite", directory)

    def _prepare(self, part: Part) -> None:
        broker = RabbitBroker() if part.broker == "rabbitmq" else RedisBroker(self.server)
        self._closing.callback(broker.close)
        self.brokers[part.name] = broker
        settings = {
            "result_backend": self.server.url(RESULT_DB),
            "result_backend_always_retry": True,
            "idempotency_store_url": self.server.url(STORE_DB),
            "idempotency_lease": LEASE_S,
            # Faults may hit one key this often; a poison task is not what is tested here.
            "idempotency_max_interruptions": 254,
            "broker_connection_retry_on_startup": True,
            "test_ledger": str(self.ledger.path),
            "chaos_database": self.database.url,
            **broker.settings(VISIBILITY_TIMEOUT_S),
            "broker_connection_max_retries": None,
        }
        if part.broker != "redis":
            settings["broker_transport_options"] = {"confirm_publish": True}
        if part.store != "redis":
            settings["idempotency_store_url"] = self.database.url
            store = SqlStore.from_url(self.database.url)
            store.create_schema()
            store.close()
        self.settings[part.name] = settings
        self.apps[part.name] = make_app({**settings, "broker_url": broker.producer_url})
        self._closing.callback(self.apps[part.name].close)

    def start(self) -> None:
        """Start all workers and return once they consume."""
        started = [
            self._start_worker(part) for part in self.parts.values() for _ in range(part.workers)
        ]
        for worker in started:
            worker.wait_until_ready()
        self.tail.read()

    def _start_worker(self, part: Part) -> Worker:
        worker = Worker(
            self.settings[part.name], concurrency=part.concurrency, app="tests.chaos.workload"
        )
        with self._lock:
            self.workers[part.name].append(worker)
        return worker

    def supervise(self) -> None:
        """Put a new worker in the place of each that has ended by itself."""
        for name, workers in self.workers.items():
            for worker in list(workers):
                if not worker.running:
                    self._replace(name, worker, Act.ENDED)

    def _replace(self, name: str, worker: Worker, act: Act) -> None:
        with self._lock:
            if worker not in self.workers[name]:
                return
            self.workers[name].remove(worker)
        began = time.monotonic()
        if act is Act.ENDED:
            errors = [line for line in worker.log.splitlines() if _ERROR.match(line)]
            why = errors[-1] if errors else "its log says nothing of why"
            self.notes.append(f"a worker of {name} ended by itself: {why}")
        worker.kill()
        self._note(act, began, node=worker.node, part=name)
        self._start_worker(self.parts[name])

    # --- faults ----------------------------------------------------------------------------------

    def do(self, fault: Fault) -> None:
        """Do it, to whatever of the sort is there, and note it; returns when it is over."""
        if fault.act is Act.KILL_SERVER:
            self._server(fault, self.server.kill, self.server.start)
        elif fault.act is Act.PAUSE_SERVER:
            self._server(fault, self.server.pause, self.server.resume)
        elif fault.act is Act.CUT:
            began = time.monotonic()
            broker = self.brokers[fault.part]
            assert isinstance(broker, RabbitBroker)
            broker.proxy.cut()
            self._note(Act.CUT, began, part=fault.part)
        elif fault.act in (Act.KILL_WORKER, Act.STOP_WORKER):
            self._to_worker(fault)
        else:
            self._to_child(fault)

    def _server(self, fault: Fault, down: Any, up: Any) -> None:
        began = time.monotonic()
        down()
        time.sleep(fault.seconds)
        self._keeper.submit(up).result()
        self._note(fault.act, began)

    def _to_worker(self, fault: Fault) -> None:
        ready = [it for it in self.workers[fault.part] if it.node in self.tail.nodes and it.running]
        if not ready:
            return
        worker = ready[int(fault.pick * len(ready))]
        if fault.act is Act.KILL_WORKER:
            self._replace(fault.part, worker, fault.act)
            return
        with contextlib.suppress(ProcessLookupError):
            began = time.monotonic()
            worker.pause()
            time.sleep(fault.seconds)
            with contextlib.suppress(ProcessLookupError):
                worker.resume()
            self._note(fault.act, began, node=worker.node, part=fault.part)

    def _to_child(self, fault: Fault) -> None:
        workers = list(self.workers[fault.part])
        children = sorted(
            pid
            for worker in workers
            for pid in list(self.tail.children.get(worker.pid, ()))
            if lives(pid)
        )
        nodes = {worker.node for worker in workers}
        busy = [pid for pid in children if self.tail.busy.get(pid) in nodes]
        chosen = busy or children
        if not chosen:
            return
        pid = chosen[int(fault.pick * len(chosen))]
        with contextlib.suppress(ProcessLookupError):
            began = time.monotonic()
            if fault.act is Act.KILL_CHILD:
                os.kill(pid, signal.SIGKILL)
                for pids in self.tail.children.values():
                    pids.discard(pid)
                self.tail.busy.pop(pid, None)
            else:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(fault.seconds)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            self._note(fault.act, began, pid=pid, part=fault.part)

    def _note(self, act: Act, began: float, **whom: Any) -> None:
        self.faults.append(Done(act, began, time.monotonic(), **whom))

    # --- what is known ---------------------------------------------------------------------------

    def answers(self, ids: Sequence[str]) -> dict[str, Answer]:
        """What the result backend has for these calls; nothing while it is away."""
        found = {}
        for start in range(0, len(ids), 500):
            some = ids[start : start + 500]
            values: Any = self.client.mget([f"celery-task-meta-{task_id}" for task_id in some])
            for task_id, value in zip(some, values, strict=True):
                if value is not None:
                    meta = json.loads(value)
                    found[task_id] = Answer(meta["status"], meta["result"])
        return found

    def rows(self) -> dict[str, int]:
        """How many rows there are, by key, of sessions and keyed inserts."""
        found: dict[str, int] = {}
        with self._engine.connect() as connection:
            for table in (booked, inserted):
                counted = select(table.c.key, func.count()).group_by(table.c.key)
                found.update((key, count) for key, count in connection.execute(counted))
        return found

    def lost(self) -> dict[str, str]:
        """The marks of messages that kombu took off Redis's queues and lost, with their ids."""
        queues = [it.queue for it in self.brokers.values() if isinstance(it, RedisBroker)]
        return aof.lost(aof.commands(self._data), queues)

    def apart(self) -> frozenset[str]:
        """The nodes whose records are in a database, where the server's faults don't reach."""
        names = {name for name, part in self.parts.items() if part.store != "redis"}
        return frozenset(self._nodes_of(names))

    def _nodes_of(self, names: set[str]) -> set[str]:
        nodes = {worker.node for name in names for worker in self.workers[name]}
        return nodes | {fault.node for fault in self.faults if fault.part in names and fault.node}

    def close(self) -> None:
        """End the workers and all else."""
        for workers in self.workers.values():
            for worker in workers:
                with contextlib.suppress(ProcessLookupError):
                    worker.kill()
        self._closing.close()
