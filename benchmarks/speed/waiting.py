"""Goal 8: duplicates of a run that takes long: deliveries, and how late they are answered."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any

import redis

from benchmarks.speed.measure import Goal, Ratio, Say, Section
from celery_idempotent.testing.servers import RedisServer

__all__ = ["Found", "lateness", "measure_waiting", "polled"]

_PROJECT = Path(__file__).resolve().parents[2]
# Not all of it has types.
_redis: Any = redis.Redis
#: How the ends of runs are noticed: told by the store, or looked for, as its user may not publish.
_WAYS = ("woken", "polling")
#: How long the runs take, in seconds, and how many duplicates they have.
_RUNS, _COUNTS = (1.0, 10.0, 60.0), (10, 200, 2000)
_QUICK_RUNS, _QUICK_COUNTS = (1.0, 6.0), (10, 200)
#: How long one step may take, and after which time no further run is begun.
_LONGEST_S = 180.0
_ENOUGH_S = 900.0
#: From how many duplicates on they take so long to be worked off that one look tells too little;
#: how often they are played then, and how often where the run itself takes long.
_MANY = 1000
_ROUNDS = 7
_LONG_RUN_S = 30.0
_ROUNDS_OF_LONG_RUNS = 3
#: How long after the one way the other begins, where both fit into the same time: what comes after
#: the end of a run takes less.
_STAGGER_S = 3.0
_LONG_STAGGER_S = 12.0
_SAID_S = 10.0
#: How many processes each worker's pool has.
_PROCESSES = 2


@dataclass(frozen=True, slots=True)
class _Begun:
    """One run, for which its duplicates wait."""

    way: str
    name: str
    run_s: float
    count: int
    #: When each duplicate was published, by its task id.
    sent: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """What one run and its duplicates took."""

    #: For each duplicate.
    deliveries: float
    #: How long after the end of the run a duplicate that waited for it was answered, in seconds.
    late_s: float
    latest_s: float
    #: The same for as many of a run that is over, which are at one moment where those were at its
    #: end: held by the worker, in its queue, or still to be published.
    replayed_s: float
    #: How long half of as many plain calls take that wait in the queue.
    plain_s: float

    @property
    def beyond_s(self) -> float:
        """What the pool needs for as many of them that come at once is not lateness."""
        return self.late_s - self.replayed_s


class _Workers:
    """A worker whose store tells the ends of runs, and one whose store may not."""

    def __init__(self, server: RedisServer, say: Say) -> None:
        self._say = say
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
                    + ["--pool=prefork", f"--concurrency={_PROCESSES}"]
                    + ["--without-gossip", "--without-mingle", "--without-heartbeat"]
                    + [f"--queues={way}", "--loglevel=WARNING", f"--hostname={way}@bench"],
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

    def begin(self, way: str, run_s: float, count: int) -> _Begun:
        """Let one call run for so long, and send so many duplicates of it."""
        begun = _Begun(way, uuid.uuid4().hex, run_s, count)
        self._tasks.sleeps.apply_async((begun.name, run_s), queue=way)
        self._until(f"began:{begun.name}", 1)
        begun.sent.update(self._send(self._tasks.sleeps, (begun.name, run_s), begun, count))
        return begun

    def answered(self, begun: _Begun) -> None:
        """Wait until the duplicates are answered."""
        self._until(f"answered:{begun.name}", begun.count + 1)

    def finish(self, begun: _Begun) -> Found:
        """Measure what as many of other kinds take, and return all that was found."""
        name, count = begun.name, begun.count
        ended = float(self._client.get(f"ended:{name}"))
        answered = self._answers(name)
        # Who came after the end did not wait.
        waited = [it for it, sent in begun.sent.items() if sent < ended]
        late = sorted(answered[it] - ended for it in waited)
        delivered = int(self._client.get(f"delivered:{name}")) - 1
        held = self._held(begun, ended)
        replayed = self._replayed(begun, held, len(waited) - held)
        plain = uuid.uuid4().hex
        began = time.time()
        self._send(self._tasks.notes, (plain,), begun, count)
        self._until(f"answered:{plain}", count)
        noted = self._answers(plain).values()
        return Found(
            delivered / count,
            statistics.median(late),
            late[-1],
            statistics.median(replayed),
            statistics.median(noted) - began,
        )

    def _held(self, begun: _Begun, at: float) -> int:
        """Return how many of the duplicates the worker held at a moment."""
        self._send(self._tasks.tells, (begun.name,), begun, 1)
        self._until(f"told:{begun.name}", 1)
        noted = self._client.lrange(f"taken:{begun.name}", 0, -1)
        pairs = (it.decode().split() for it in noted)
        return len({task_id for when, task_id in pairs if float(when) < at} & set(begun.sent))

    def _replayed(self, begun: _Begun, held: int, queued: int) -> list[float]:
        """Have so many answered with the outcome that is there; return how long that took each.

        At one moment the worker holds the first, and the others stand in its queue, as its pool was
        busy. What is left of the duplicates is published from then on.
        """
        args = (begun.name, begun.run_s)
        # Late enough that all is in its place.
        due = time.time() + 3 + begun.count / 150
        eta = datetime.fromtimestamp(due, timezone.utc)
        counted = self._send(self._tasks.sleeps, args, begun, held, eta=eta)
        if queued:
            self._send(self._tasks.blocks, (begun.name, due), begun, _PROCESSES)
            self._until(f"blocked:{begun.name}", _PROCESSES)
            counted |= self._send(self._tasks.sleeps, args, begun, queued)
        if time.time() > due:
            raise RuntimeError("the replays were not in their places in time")
        time.sleep(due - time.time())
        self._send(self._tasks.sleeps, args, begun, begun.count - held - queued)
        self._until(f"answered:{begun.name}", 2 * begun.count + 1)
        answered = self._answers(begun.name)
        return [answered[it] - due for it in counted]

    def _send(
        self, task: Any, args: tuple[Any, ...], begun: _Begun, count: int, **options: Any
    ) -> dict[str, float]:
        """Publish so many calls, and return when each was, by its task id."""
        with self._tasks.app.producer_pool.acquire() as producer:
            options.update(queue=begun.way, producer=producer)
            return {task.apply_async(args, **options).id: time.time() for _ in range(count)}

    def _answers(self, name: str) -> dict[str, float]:
        """Return when each call was answered, by its task id."""
        noted = self._client.lrange(f"answered:{name}", 0, -1)
        pairs = (it.decode().split() for it in noted)
        return {task_id: float(at) for at, task_id in pairs}

    def _until(self, key: str, count: int) -> None:
        began = said = time.monotonic()
        while (there := self._client.llen(key)) < count:
            now = time.monotonic()
            if now > began + _LONGEST_S:
                raise RuntimeError(f"{key}: {there} of {count} after {_LONGEST_S:g} s")
            if now > said + _SAID_S:
                self._say(f"{there} of {count} are done")
                said = now
            time.sleep(0.02)


def measure_waiting(server: RedisServer, quick: bool, say: Say) -> Section:
    """Measure both ways for short and long runs, with few and many duplicates.

    A quick run has a short one with few, and a longer one with more.
    """
    plays = [*zip(_QUICK_RUNS, _QUICK_COUNTS, strict=True)] if quick else [*product(_RUNS, _COUNTS)]
    workers = _Workers(server, say)
    played: dict[str, dict[str, list[Found]]] = {way: {} for way in _WAYS}
    began = time.monotonic()
    try:
        for run_s, count in plays:
            if time.monotonic() - began > _ENOUGH_S:
                say(f"left out, as it took long: {count} duplicates of {run_s:g} s")
                continue
            for way, one in _played(workers, run_s, count, say):
                played[way].setdefault(f"{run_s:g} s, {count}", []).append(one)
    finally:
        workers.close()
    found = {way: {it: _middle(one) for it, one in rows.items()} for way, rows in played.items()}
    woken, polling = found["woken"], found["polling"]
    goals = [
        Goal(
            "8a",
            "deliveries a duplicate that waits, woken",
            max(one.deliveries for one in woken.values()),
            "<=",
            2.2,
            detail=_told(woken, lambda one: f"{one.deliveries:.2f}"),
        ),
        lateness(played["woken"]),
        polled(polling),
        Goal(
            "8d",
            "plain Celery's queue beside them: seconds until half of as many plain tasks are done",
            max(one.plain_s for one in woken.values()),
            detail=_told(woken, lambda one: f"{one.plain_s:.2f} s"),
        ),
    ]
    tables = {
        way: {
            it: {name: getattr(one, name) for name in Found.__slots__} for it, one in rows.items()
        }
        for way, rows in found.items()
    }
    return Section(goals, {"waiting": tables})


def lateness(played: Mapping[str, Sequence[Found]]) -> Goal:
    """Return how late duplicates are answered that are woken, from all rounds of each kind of run.

    How long the run took makes no difference to what comes after its end, so all runs with as many
    duplicates say it together. One round alone says little: the machine is a tenth faster or slower
    from one second to the next, and thousands of duplicates take seconds.
    """
    rounds: dict[str, list[float]] = {}
    for name, found in played.items():
        rounds.setdefault(name.rpartition(" ")[2], []).extend(one.beyond_s for one in found)
    medians = {count: Ratio.of(beyond) for count, beyond in rounds.items()}
    worst = max(medians, key=lambda count: medians[count].median)
    middle = {name: _middle(found) for name, found in played.items()}
    return Goal.of(
        "8b",
        "seconds after the run's end until half of its duplicates are answered, beyond what "
        "as many replays take that are where they were; all runs with as many duplicates",
        medians[worst],
        "<=",
        0.1,
        f"worst: {worst} duplicates; {len(rounds[worst])} rounds; "
        f"{_told(middle, lambda one: f'{one.beyond_s:.2f} s')}; "
        f"largest: {_told(middle, lambda one: f'{one.latest_s:.2f} s')}",
    )


def polled(found: Mapping[str, Found]) -> Goal:
    """Return how late duplicates are answered whose worker is told nothing of the run's end."""
    late = {it: one.beyond_s / float(it.partition(" ")[0]) for it, one in found.items()}
    latest = max(late, key=lambda it: late[it])
    return Goal(
        "8c",
        "the same without being told, as a part of the run",
        late[latest],
        "<=",
        0.125,
        detail=f"worst: {latest}; {_told(found, lambda one: f'{one.beyond_s:.2f} s')}",
    )


def _played(workers: _Workers, run_s: float, count: int, say: Say) -> Iterator[tuple[str, Found]]:
    """Let both ways play one run each; long runs overlap, but not what comes after their ends."""
    stagger = _STAGGER_S if count <= 200 else _LONG_STAGGER_S
    overlap = run_s >= 2 * stagger
    begun: list[_Begun] = []
    for way in _WAYS:
        if begun and overlap:
            time.sleep(stagger)
        say(f"{way}: {count} duplicates of {run_s:g} s")
        begun.append(workers.begin(way, run_s, count))
        if not overlap:
            workers.answered(begun[-1])
            yield way, workers.finish(begun[-1])
    if overlap:
        for one in begun:
            workers.answered(one)
        for one in begun:
            yield one.way, workers.finish(one)
    rounds = _ROUNDS if run_s < _LONG_RUN_S else _ROUNDS_OF_LONG_RUNS
    for _ in range(1, rounds if count > _MANY else 1):
        say(f"{_WAYS[0]} once more: {count} duplicates of {run_s:g} s")
        begun = [workers.begin(_WAYS[0], run_s, count)]
        workers.answered(begun[0])
        yield _WAYS[0], workers.finish(begun[0])


def _middle(found: Sequence[Found]) -> Found:
    return sorted(found, key=lambda one: one.beyond_s)[len(found) // 2]


def _told(rows: Mapping[str, Found], one: Any) -> str:
    return "; ".join(f"{name}: {one(found)}" for name, found in rows.items())
