"""Goal 1: no-op tasks through a real prefork worker, against plain tasks, also with bare trips."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import redis

from benchmarks.speed.measure import Effort, Goal, Say, ratio, rounds
from celery_idempotent.testing.servers import RedisServer

__all__ = ["measure_worker"]

#: The queue that is filled, and the queue that the worker reads.
_FILLED, _CONSUMED = "filled", "consumed"
_LONGEST_S = 120.0
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.0005, 0.02
_PROJECT = Path(__file__).resolve().parents[2]


class Throughput:
    """A worker whose queue is filled before it may read it; times how fast it empties the queue."""

    def __init__(self, server: RedisServer) -> None:
        os.environ["SPEED_URL"] = server.url(0).rpartition("/")[0]
        from benchmarks.speed import tasks

        self._tasks = tasks
        self._client = redis.Redis.from_url(server.url(0))
        self._results = redis.Redis.from_url(server.url(1))
        self._store = redis.Redis.from_url(server.url(2))
        self._log = tempfile.NamedTemporaryFile(suffix=".log", delete=False)  # noqa: SIM115
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "benchmarks.speed.tasks", "worker"]
            + ["--pool=prefork", "--concurrency=2", "--without-gossip", "--without-mingle"]
            + ["--without-heartbeat", f"--queues={_CONSUMED}", "--loglevel=WARNING"],
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

    def seconds_a_task(self, name: str, same: bool, count: int) -> float:
        """Pass so many calls of one task to the worker at once, all new or all the same."""
        task = self._tasks.app.tasks[f"speed.{name}"]
        numbers = itertools.repeat(1) if same else iter(range(time.monotonic_ns(), 2**62))
        with self._tasks.app.producer_pool.acquire() as producer:
            for number in itertools.islice(numbers, count):
                task.apply_async((number, 2, 3), queue=_FILLED, producer=producer)
        done = self._results.dbsize() + count
        began = time.perf_counter()
        # A queue is a list, and a worker that waits for it sees it at once.
        self._client.rename(_FILLED, _CONSUMED)
        took = self._until(done, count, began)
        self._results.flushdb()
        return took / count

    def _until(self, done: int, count: int, began: float) -> float:
        """Wait until so many results are there, ``count`` of them new; return how long that took.

        It looks seldom at first, because that takes the worker's time, and often in the end,
        because the time between the last result and the look that finds it counts, too.
        """
        while True:
            there, took = self._results.dbsize(), time.perf_counter() - began
            if there >= done:
                return took
            self._check(took < _LONGEST_S)
            missing = done - there
            left = took * missing / max(1, count - missing)
            time.sleep(min(max(left / 2, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S))

    def _wait(self, ready: Callable[[], Any], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not ready():
            self._check(time.monotonic() < until)
            time.sleep(0.05)

    def _check(self, in_time: bool) -> None:
        if self._worker.poll() is not None or not in_time:
            raise RuntimeError(f"the worker did not do its part: see {self._log.name}")


def measure_worker(server: RedisServer, quick: bool, say: Say) -> list[Goal]:
    """Measure first executions and duplicates through a worker."""
    contestants = {
        "plain": ("plain", False),
        "two trips": ("two_trips", False),
        "first": ("guarded", False),
        "one trip": ("one_trip", False),
        "duplicate": ("guarded", True),
    }
    count, effort = (80, Effort(120, 14)) if quick else (200, Effort(240, 270))
    throughput = Throughput(server)

    try:
        seconds = rounds(
            {name: partial(throughput.seconds_a_task, *one) for name, one in contestants.items()},
            count,
            effort,
            say,
        )
    finally:
        throughput.close()
    rates = {name: 1 / statistics.median(one) for name, one in seconds.items()}
    detail = ", ".join(f"{name} {rate:.0f}/s" for name, rate in rates.items())
    return [
        Goal.of(
            "1a",
            "worker: first executions to plain tasks that send our two scripts by redis-py",
            ratio(seconds["two trips"], seconds["first"]),
            ">=",
            0.95,
            detail,
        ),
        Goal.of(
            "1b",
            "worker: duplicates to plain tasks that send our claim's script by redis-py",
            ratio(seconds["one trip"], seconds["duplicate"]),
            ">=",
            0.95,
        ),
        Goal.of(
            "1c",
            "worker: first executions to plain Celery, which makes no round trip for them",
            ratio(seconds["plain"], seconds["first"]),
            ">=",
            0.95,
        ),
        Goal.of(
            "1d",
            "worker: duplicates to plain Celery, which runs each of them",
            ratio(seconds["plain"], seconds["duplicate"]),
            ">=",
            0.98,
        ),
    ]
