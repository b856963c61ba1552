"""Goal 8: duplicates of a run that takes long: deliveries, and how late they are answered."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import redis

from benchmarks.speed.measure import Goal, Say, Section
from celery_idempotent.testing.servers import RedisServer

__all__ = ["measure_waiting"]

_PROJECT = Path(__file__).resolve().parents[2]
# Not all of it has types.
_redis: Any = redis.Redis
#: How the ends of runs are noticed: told by the store, or looked for, as its user may not publish.
_WAYS = ("woken", "polling")
_LONGEST_S = 600.0


@dataclass(frozen=True, slots=True)
class _Found:
    """What one run and its duplicates took."""

    #: For each duplicate.
    deliveries: float
    #: How long after the end of the run a duplicate was answered, in seconds.
    late_s: float
    latest_s: float
    #: The same where the outcome is there: as many duplicates with an ETA, after that.
    replayed_s: float
    #: How long half of as many plain calls take that wait in the queue.
    plain_s: float


class _Workers:
    """A worker whose store tells the ends of runs, and one whose store may not."""

    def __init__(self, server: RedisServer) -> None:
        base = server.url(0).rpartition("/")[0]
        self._client: Any = _redis.from_url(server.url(3))
        self._client.execute_command(
            *("ACL", "SETUSER", "mute", "on", ">mute", "+@all", "-publish", "-subscribe"),
            *("~*", "resetchannels"),
        )
        os.environ["SPEED_URL"] = base
        self._workers = []
        for way in _WAYS:
            mute = f"redis://mute:mute@127.0.0.1:{server.port}"
            store = base if way == "woken" else mute
            log = tempfile.NamedTemporaryFile(suffix=".log", delete=False)  # noqa: SIM115
            self._workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "celery", "-A", "benchmarks.speed.waits", "worker"]
                    + ["--pool=prefork", "--concurrency=2", "--without-gossip"]
                    + ["--without-mingle", "--without-heartbeat", f"--queues={way}"]
                    + ["--loglevel=WARNING", f"--hostname={way}@bench"],
                    cwd=_PROJECT,
                    env={**os.environ, "SPEED_STORE": f"{store}/2"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        from benchmarks.speed import waits

        self._tasks = waits
        until = time.monotonic() + 60
        while len(waits.app.control.ping(timeout=1.0)) < len(_WAYS):
            if time.monotonic() > until:
                raise RuntimeError("the workers did not start")

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.wait(60)

    def measure(self, way: str, run_s: float, count: int) -> _Found:
        """Let one call run for so long, while so many duplicates of it wait."""
        with self._tasks.app.producer_pool.acquire() as producer:
            name = uuid.uuid4().hex
            sent = {"queue": way, "producer": producer}
            self._tasks.sleeps.apply_async((name, run_s), **sent)
            self._until(f"began:{name}", 1)
            for _ in range(count):
                self._tasks.sleeps.apply_async((name, run_s), **sent)
            self._until(f"answered:{name}", count + 1)
            # Late enough that the worker holds all of them when they are due.
            due = datetime.now(timezone.utc) + timedelta(seconds=2 + count / 100)
            for _ in range(count):
                self._tasks.sleeps.apply_async((name, run_s), eta=due, **sent)
            self._until(f"answered:{name}", 2 * count + 1)
            plain = uuid.uuid4().hex
            began = time.time()
            for _ in range(count):
                self._tasks.notes.apply_async((plain,), **sent)
            self._until(f"answered:{plain}", count)
        ended = float(self._client.get(f"ended:{name}"))
        times = [float(it) for it in self._client.lrange(f"answered:{name}", 0, -1)]
        answered = [it - ended for it in times[: count + 1]]
        replayed = [it - due.timestamp() for it in times[count + 1 :]]
        noted = [float(it) for it in self._client.lrange(f"answered:{plain}", 0, -1)]
        late = sorted(max(0.0, it) for it in answered)[1:]
        delivered = int(self._client.get(f"delivered:{name}")) - 1 - count
        return _Found(
            delivered / count,
            statistics.median(late),
            late[-1],
            statistics.median(replayed),
            statistics.median(noted) - began,
        )

    def _until(self, key: str, count: int) -> None:
        until = time.monotonic() + _LONGEST_S
        while self._client.llen(key) < count:
            if time.monotonic() > until:
                raise RuntimeError(f"{key}: {self._client.llen(key)} of {count}")
            time.sleep(0.02)


def measure_waiting(server: RedisServer, quick: bool, say: Say) -> Section:
    """Measure both ways for short and long runs, with few and many duplicates."""
    runs, counts = ((1.0, 10.0), (10, 200)) if quick else ((1.0, 10.0, 60.0), (10, 200, 2000))
    workers = _Workers(server)
    found: dict[str, dict[str, _Found]] = {way: {} for way in _WAYS}
    try:
        for run_s in runs:
            for count in counts:
                for way in _WAYS:
                    say(f"{way}: {count} duplicates of {run_s:g} s")
                    found[way][f"{run_s:g} s, {count}"] = workers.measure(way, run_s, count)
    finally:
        workers.close()
    woken, polling = found["woken"], found["polling"]
    # What the pool needs for as many of them that come at once is not lateness.
    beyond = {it: one.late_s - one.replayed_s for it, one in woken.items()}
    worst = max(beyond, key=lambda it: beyond[it])
    late = {it: one.late_s / float(it.partition(" ")[0]) for it, one in polling.items()}
    latest = max(late, key=lambda it: late[it])
    goals = [
        Goal(
            "8a",
            "deliveries a duplicate that waits, woken",
            max(one.deliveries for one in woken.values()),
            "<=",
            2.2,
            detail=_told(woken, lambda one: f"{one.deliveries:.2f}"),
        ),
        Goal(
            "8b",
            "seconds after the run's end until half of its duplicates are answered, beyond what "
            "as many replays take",
            beyond[worst],
            "<=",
            0.1,
            detail=f"worst: {worst}; largest: {_told(woken, lambda one: f'{one.latest_s:.2f} s')}",
        ),
        Goal(
            "8c",
            "the same without being told, as a part of the run",
            late[latest],
            detail=f"worst: {latest}; {_told(polling, lambda one: f'{one.late_s:.2f} s')}",
        ),
    ]
    tables = {
        way: {
            it: {name: getattr(one, name) for name in _Found.__slots__} for it, one in rows.items()
        }
        for way, rows in found.items()
    }
    return Section(goals, {"waiting": tables})


def _told(rows: dict[str, _Found], one: Any) -> str:
    return "; ".join(f"{name}: {one(found)}" for name, found in rows.items())
