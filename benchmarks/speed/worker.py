"""Goal 1: no-op tasks through a real prefork worker, against plain tasks with bare round trips."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from benchmarks.speed.measure import Goal, Say, ratio
from celery_idempotent.testing.servers import RedisServer

__all__ = ["measure_worker"]

_PROJECT = Path(__file__).resolve().parents[2]


class Throughput:
    """A worker whose queues are filled before it may look at them; how fast it empties one."""

    def __init__(self, server: RedisServer) -> None:
        os.environ["SPEED_URL"] = server.url(0).rpartition("/")[0]
        from benchmarks.speed import tasks

        self._tasks = tasks
        self._client = redis.Redis.from_url(server.url(0))
        self._results = redis.Redis.from_url(server.url(1))
        self._store = redis.Redis.from_url(server.url(2))
        self._queues = itertools.count()
        self._log = tempfile.NamedTemporaryFile(suffix=".log", delete=False)  # noqa: SIM115
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "benchmarks.speed.tasks", "worker"]
            + ["--pool=prefork", "--concurrency=2", "--without-gossip", "--without-mingle"]
            + ["--without-heartbeat", "--queues=idle", "--loglevel=WARNING"],
            cwd=_PROJECT,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._wait(lambda: tasks.app.control.ping(timeout=1.0), 60)

    def close(self) -> None:
        """End the worker."""
        self._worker.terminate()
        self._worker.wait(30)

    def seconds_a_task(self, name: str, count: int, *, same: bool = False) -> float:
        """Fill a queue with calls of one task, then let the worker at it."""
        queue = f"speed-{next(self._queues)}"
        task = self._tasks.app.tasks[f"speed.{name}"]
        numbers = itertools.repeat(1) if same else iter(range(time.monotonic_ns(), 2**62))
        with self._tasks.app.producer_pool.acquire() as producer:
            for number in itertools.islice(numbers, count):
                task.apply_async((number, 2, 3), queue=queue, producer=producer)
        done = self._results.dbsize() + count
        began = time.perf_counter()
        self._tasks.app.control.add_consumer(queue, reply=False)
        self._wait(lambda: self._results.dbsize() >= done, 120, pause=0.002)
        took = time.perf_counter() - began
        self._tasks.app.control.cancel_consumer(queue, reply=False)
        self._results.flushdb()
        return took / count

    def _wait(self, ready: Callable[[], Any], seconds: float, pause: float = 0.05) -> None:
        until = time.monotonic() + seconds
        while not ready():
            if self._worker.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the worker did not do its part: see {self._log.name}")
            time.sleep(pause)


def measure_worker(server: RedisServer, quick: bool, say: Say) -> list[Goal]:
    """Measure first executions and duplicates through a worker."""
    contestants = {
        "plain": ("plain", False),
        "two trips": ("two_trips", False),
        "first": ("guarded", False),
        "one trip": ("one_trip", False),
        "duplicate": ("guarded", True),
    }
    count, times = (600, 5) if quick else (3000, 11)
    throughput = Throughput(server)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    try:
        for task, same in contestants.values():
            throughput.seconds_a_task(task, 100, same=same)
        for turn in range(times):
            say(f"round {turn + 1} of {times}")
            order = list(contestants.items())
            for name, (task, same) in order if turn % 2 == 0 else reversed(order):
                seconds[name].append(throughput.seconds_a_task(task, count, same=same))
    finally:
        throughput.close()
    rates = {name: 1 / sorted(one)[len(one) // 2] for name, one in seconds.items()}
    detail = ", ".join(f"{name} {rate:.0f}/s" for name, rate in rates.items())
    to_plain = ratio(seconds["plain"], seconds["first"])
    return [
        Goal(
            "1a",
            "worker: first executions to a plain task with two bare round trips",
            ratio(seconds["two trips"], seconds["first"]),
            ">=",
            0.95,
            f"{detail}; to plain Celery {to_plain:.2f}",
        ),
        Goal(
            "1b",
            "worker: duplicates to a plain task with one bare round trip",
            ratio(seconds["one trip"], seconds["duplicate"]),
            ">=",
            0.95,
            f"to plain Celery {ratio(seconds['plain'], seconds['duplicate']):.2f}",
        ),
    ]
