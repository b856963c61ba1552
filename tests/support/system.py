"""A whole system for one test: broker, results, store, ledger, producer and workers."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from celery.result import AsyncResult

from celery_idempotent.testing.servers import RedisServer
from tests.support.brokers import Broker
from tests.support.ledger import Ledger
from tests.support.tasks import make_app
from tests.support.waiting import PATIENCE_SECONDS, eventually
from tests.support.workers import Worker

RESULT_DB, STORE_DB = 1, 2


class System:
    """What a test uses; :meth:`close` ends all of it.

    Args:
        broker: where messages go.
        server: holds the results, and the records unless ``store`` is given.
        directory: the ledger and the workers' logs go there.
        store: a server apart for the records.
        visibility_timeout: seconds after which Redis delivers again what a worker still holds.
        task_options: options of tasks by the task's name.
        settings: more settings of the app.
    """

    def __init__(
        self,
        broker: Broker,
        server: RedisServer,
        directory: Path,
        *,
        store: RedisServer | None = None,
        visibility_timeout: float | None = None,
        task_options: dict[str, dict[str, Any]] | None = None,
        **settings: Any,
    ) -> None:
        self.broker = broker
        self.store = store or server
        self.settings: dict[str, Any] = {
            "result_backend": server.url(RESULT_DB),
            "idempotency_store_url": self.store.url(STORE_DB),
            "broker_connection_retry_on_startup": True,
            "test_ledger": str(directory / f"ledger-{uuid.uuid4().hex[:6]}"),
            "test_options": task_options or {},
            **broker.settings(visibility_timeout),
            **settings,
        }
        self.ledger = Ledger(self.settings["test_ledger"])
        self.app: Celery = make_app({**self.settings, "broker_url": broker.producer_url})
        self.workers: list[Worker] = []

    def task(self, name: str) -> Any:
        """The task ``shop.<name>``, to be called as a producer calls it."""
        return self.app.tasks[f"shop.{name}"]

    def start_worker(
        self,
        pool: str = "prefork",
        concurrency: int = 4,
        heartbeat: bool = False,
        options: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> Worker:
        """Start one more worker and return once it consumes."""
        worker = Worker(
            self.settings,
            pool=pool,
            concurrency=concurrency,
            heartbeat=heartbeat,
            options=options,
            environment=environment,
        )
        self.workers.append(worker)
        return worker.wait_until_ready()

    def records(self) -> dict[bytes, bytes]:
        """What the store has, by key."""
        with redis.Redis.from_url(self.store.url(STORE_DB)) as client:
            return {key: client.dump(key) or b"" for key in client.scan_iter()}

    def wait_until_quiet(self) -> None:
        """Return once no message waits and no worker holds one."""

        def quiet() -> bool:
            held = sum(
                len(tasks)
                for worker in self.workers
                if worker.running
                # In the order in which a message passes through them: none is missed in between.
                for kind in ("scheduled", "reserved", "active")
                for tasks in self._inspect(worker, kind)
            )
            return held == 0 and self.broker.messages() == 0

        eventually(quiet, "no message left")

    def redeliver(self) -> None:
        """Have the broker deliver again what the workers hold, once they know what runs where.

        A worker that loses its connection before it has read that its child took a task thinks the
        child idle, and gives it the copy as well: there the copy would wait behind the body. An
        answer to a ping shows that the worker has read all that its children had said.
        """
        for worker in self.workers:
            if worker.running:
                ping = partial(
                    self.app.control.ping, destination=[worker.node], timeout=5.0, limit=1
                )
                eventually(ping, f"{worker.node} answers")
        self.broker.redeliver()

    def _inspect(self, worker: Worker, kind: str) -> list[Any]:
        inspector = self.app.control.inspect(destination=[worker.node], timeout=5.0, limit=1)
        answers = getattr(inspector, kind)()
        # A worker that does not answer is not known to be quiet.
        return list(answers.values()) if answers else [["no answer"]]

    def close(self) -> None:
        """End the workers and remove what is left at the broker."""
        for worker in self.workers:
            worker.kill()
        self.app.close()
        self.broker.close()


def outlive_lease(task: Any, *args: Any) -> None:
    """Return once a run's lease was renewed past the end that it has now, and some seconds more."""
    record = task.idempotency_record(*args)
    eventually(
        lambda: task.idempotency_record(*args).until_ms > record.until_ms + 3000,
        "the lease renewed past its first end",
        timeout=60,
    )


def answers(results: Sequence[AsyncResult], timeout: float = PATIENCE_SECONDS) -> list[Any]:
    """What each call got: its result, or the exception it failed with."""
    return [result.get(timeout=timeout, propagate=False) for result in results]
