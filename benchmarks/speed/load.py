"""Goal 9: a worker under load, beside plain Celery: each pool, each kind of store, its memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from benchmarks.speed.measure import Goal, Say, Section
from celery_idempotent import IdempotentTask
from celery_idempotent.settings import environment_of
from celery_idempotent.testing.servers import RedisServer
from tests.support.clusters import Cluster

__all__ = ["Cost", "Pool", "Worker", "goals_of", "measure_load", "waiters"]

_PROJECT = Path(__file__).resolve().parents[2]
_POSTGRESQL = "CELERY_IDEMPOTENT_TEST_POSTGRESQL_URL"
#: What a body waits for: another service's answer.
_BODY_S = 0.01
#: A worker is offered so much of what plain Celery got done, to see how late calls are answered.
_OFFERED = 0.5
#: For how long nothing may happen.
_LONGEST_S = 300.0
_HOUR_S, _DAY_S = 3_600, 86_400
#: How many duplicates wait at once.
_WAITERS = 20_000
# Not all of it has types.
_redis: Any = redis.Redis


@dataclass(frozen=True, slots=True)
class Pool:
    """A worker's pool, and how many calls it works at at once."""

    kind: str
    size: int

    def __str__(self) -> str:
        return f"{self.kind} {self.size}"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one worker did with calls of one task."""

    #: Calls a second, where the queue is never empty.
    rate: float
    #: From publishing to the stored result, at half of the rate that plain Celery reaches.
    median_s: float
    p99_s: float


_POOLS = (
    *(Pool("prefork", size) for size in (1, 4, 16)),
    Pool("threads", 16),
    Pool("gevent", 200),
)


class Worker:
    """A worker of one pool on one store; its body waits for ``_BODY_S``."""

    def __init__(self, server: RedisServer, pool: Pool, store: str) -> None:
        os.environ["SPEED_URL"] = server.url(0).rpartition("/")[0]
        from benchmarks.speed import loads

        self._tasks = loads
        self._notes: Any = _redis.from_url(server.url(3))
        self._broker: Any = _redis.from_url(server.url(0))
        self._queue = uuid.uuid4().hex
        self._log = tempfile.NamedTemporaryFile(suffix=".log", delete=False)  # noqa: SIM115
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "benchmarks.speed.loads", "worker"]
            + [f"--pool={pool.kind}", f"--concurrency={pool.size}", f"--queues={self._queue}"]
            + ["--without-gossip", "--without-mingle", "--without-heartbeat"]
            + ["--loglevel=WARNING", f"--hostname={self._queue}@bench"],
            cwd=_PROJECT,
            env={**os.environ, "SPEED_STORE": store},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # The first call of each process connects it.
        self.passed("plain", 4 * pool.size, 0.0)

    def passed(
        self, name: str, count: int, every_s: float, body_s: float = _BODY_S
    ) -> tuple[float, list[float]]:
        """Publish so many calls, one ``every_s``.

        Returns the seconds until all had their results, and for each call from its publishing.
        """
        task, run = getattr(self._tasks, name), uuid.uuid4().hex
        began = time.perf_counter()
        with self._tasks.app.producer_pool.acquire() as producer:
            for number in range(count):
                early = began + number * every_s - time.perf_counter()
                if early > 0:
                    time.sleep(early)
                sent = (number, run, time.time(), body_s)
                task.apply_async(sent, queue=self._queue, producer=producer)
        self._until(lambda: self._notes.llen(f"answered:{run}"), count)
        took = time.perf_counter() - began
        answered = [float(it) for it in self._notes.lrange(f"answered:{run}", 0, -1)]
        self._notes.delete(f"answered:{run}")
        return took, answered

    def held(self, count: int, say: Say) -> tuple[int, int]:
        """Have so many duplicates wait for one run, and then be answered.

        Returns the bytes of memory of the worker before they came, and while all of them waited.
        """
        run, queue = uuid.uuid4().hex, self._queue
        # What its processes import for the first guarded call is not of those that wait.
        self.passed("guarded", 20, 0.0, 0.0)
        before = self.memory()
        with self._tasks.app.producer_pool.acquire() as producer:
            sent = (0, run, time.time(), 3_600.0)
            self._tasks.lasts.apply_async(sent, queue=queue, producer=producer)
            self._until(lambda: self._notes.llen(f"began:{run}"), 1)
            for _ in range(count):
                self._tasks.lasts.apply_async(sent, queue=queue, producer=producer)
        say(f"memory of a worker: {count:,} duplicates begin to wait")
        # Each that waits was put back, and the worker holds it; the run is one more.
        self._until(lambda: self._broker.hlen("unacked"), count + 1)
        during = self.memory()
        say(f"memory of a worker: {count:,} duplicates are answered")
        self._notes.rpush(f"over:{run}", 1)
        self._until(lambda: self._notes.llen(f"answered:{run}"), count + 1)
        return before, during

    def delayed(self, count: int) -> tuple[int, int]:
        """Have the worker hold so many plain calls that are due in an hour, which it then forgets.

        Returns the bytes of memory before they came, and while it held them.
        """
        before = self.memory()
        with self._tasks.app.producer_pool.acquire() as producer:
            options = {"queue": self._queue, "countdown": 3_600, "producer": producer}
            for number in range(count):
                self._tasks.plain.apply_async((number, "", time.time(), 0.0), **options)
        self._until(lambda: self._broker.hlen("unacked"), count)
        return before, self.memory()

    def _until(self, found: Callable[[], int], count: int) -> None:
        """Wait until so many are found, or nothing happens any more."""
        most, since = 0, time.perf_counter()
        while (there := found()) < count:
            now = time.perf_counter()
            if there > most:
                most, since = there, now
            if self._worker.poll() is not None or now - since > _LONGEST_S:
                raise RuntimeError(f"the worker did not do its part: see {self._log.name}")
            time.sleep(0.01)

    def memory(self) -> int:
        """Return the resident bytes of its processes together, with what they share."""
        listed = subprocess.run(
            ["ps", "-o", "rss=", "-g", str(self._worker.pid)],
            capture_output=True,
            text=True,
            check=True,
        )
        return 1024 * sum(map(int, listed.stdout.split()))

    def close(self) -> None:
        """End the worker."""
        self._worker.terminate()
        self._worker.wait(60)
        self._notes.close()
        self._broker.close()


def measure_load(server: RedisServer, quick: bool, say: Say) -> Section:
    """Measure each pool beside plain Celery; a quick run leaves it out, as it takes ten minutes."""
    if quick:
        return Section([])
    rows: dict[str, dict[str, Cost]] = {}
    found: dict[str, Cost]
    with ExitStack() as stack:
        stores = {"Redis": server.url(2)}
        cluster = Cluster(3)
        stack.callback(cluster.close)
        stores["Cluster of 3"] = cluster.url
        database = stack.enter_context(_database(say))
        if database:
            stores["PostgreSQL"] = database
        for pool in _POOLS:
            found = rows[str(pool)] = {}
            for store, url in stores.items():
                say(f"{pool}, {store}")
                worker = Worker(server, pool, url)
                try:
                    if not found:
                        found["plain"] = _cost(worker, "plain", pool, None)
                    found[store] = _cost(worker, "guarded", pool, found["plain"].rate)
                finally:
                    worker.close()
    grown = {name: _grown(server, name, say) for name in ("plain", "guarded")}
    kept = {window: _bytes_of_a_key(server, window) for window in (_HOUR_S, _DAY_S)}
    held = _held(server, _WAITERS, say)
    goals = [*goals_of(rows), _growth(grown), _memory(kept), waiters(held, _WAITERS)]
    table = {
        pool: {name: asdict(cost) for name, cost in found.items()} for pool, found in rows.items()
    }
    figures = {"pools": table, "grown": grown, "kept": kept, "held": held}
    return Section(goals, {"load": figures})


def _cost(worker: Worker, name: str, pool: Pool, plain: float | None) -> Cost:
    """Measure the rate with a full queue, then lateness at a load that the worker can bear."""
    count = min(2_000, 200 + 100 * pool.size)
    rate = count / worker.passed(name, count, 0.0)[0]
    offered = _OFFERED * (plain or rate)
    late = sorted(worker.passed(name, min(1_500, max(300, int(8 * offered))), 1 / offered)[1])
    return Cost(rate, statistics.median(late), late[int(0.99 * len(late))])


def goals_of(rows: dict[str, dict[str, Cost]]) -> Iterator[Goal]:
    """Return the figures of each pool: plain Celery's, and those of each store beside them."""
    for letter, (pool, found) in zip("abcde", rows.items(), strict=False):
        plain = found["plain"]
        guarded = {name: cost for name, cost in found.items() if name != "plain"}
        yield Goal(
            f"9{letter}",
            f"{pool}: calls a second of a body that waits {1000 * _BODY_S:g} ms, on Redis, to "
            "plain Celery",
            guarded["Redis"].rate / plain.rate,
            detail=f"plain {plain.rate:.0f}/s; "
            + "; ".join(
                f"{name} {cost.rate:.0f}/s, at half of plain's load p99 "
                f"{1000 * (cost.p99_s - plain.p99_s):+.1f} ms"
                for name, cost in guarded.items()
            ),
        )


def _grown(server: RedisServer, name: str, say: Say) -> dict[str, int]:
    """Return a worker's memory after 2,000 calls, and after 100,000."""
    worker = Worker(server, Pool("prefork", 2), server.url(2))
    try:
        worker.passed(name, 2_000, 0.0, 0.0)
        found = {"2000": worker.memory()}
        for turn in range(1, 11):
            say(f"memory of a worker, {name}: {turn * 10_000:,} calls")
            worker.passed(name, 9_800, 0.0, 0.0)
        found["100000"] = worker.memory()
    finally:
        worker.close()
    return found


def _growth(grown: dict[str, dict[str, int]]) -> Goal:
    ours, plain = grown["guarded"], grown["plain"]
    mega = {name: {at: value / 1e6 for at, value in found.items()} for name, found in grown.items()}
    return Goal(
        "9f",
        "MB by which a worker of 2 processes grows from 2,000 calls to 100,000",
        (ours["100000"] - ours["2000"]) / 1e6,
        detail=(
            f"from {mega['guarded']['2000']:.0f} to {mega['guarded']['100000']:.0f}; plain Celery "
            f"from {mega['plain']['2000']:.0f} to {mega['plain']['100000']:.0f}, by "
            f"{(plain['100000'] - plain['2000']) / 1e6:.1f}"
        ),
    )


def _bytes_of_a_key(server: RedisServer, window_s: int) -> float:
    """Return the memory of the store for a finished key, with all that belongs to it."""
    app = Celery("kept", broker="memory://", backend="cache+memory://")
    app.conf.update(idempotency_store_url=server.url(5), idempotency_journal=0)

    def body(number: int) -> str:
        return "x" * 64

    task = app.task(
        base=IdempotentTask,
        idempotency_key="order:{number}",
        idempotency_ttl=window_s,
        name=f"kept.window_{window_s}",
        shared=False,
    )(body)
    client: Any = _redis.from_url(server.url(5))
    task.apply((-1,))
    before, count = client.info("memory")["used_memory"], 5_000
    for number in range(count):
        task.apply((number,))
    after = client.info("memory")["used_memory"]
    client.flushdb()
    return float(after - before) / count


def _memory(kept: dict[int, float]) -> Goal:
    hour, day = kept[_HOUR_S], kept[_DAY_S]
    hours, days = (100 * window_s * kept[window_s] / 1e6 for window_s in (_HOUR_S, _DAY_S))
    return Goal(
        "9g",
        "bytes of a finished key in Redis with a window of a day",
        day,
        detail=(
            f"with a window of an hour {hour:.0f}; at 100 calls a second that is {hours:,.0f} MB "
            f"for a window of an hour, {days:,.0f} MB for one of a day"
        ),
    )


def _held(server: RedisServer, count: int, say: Say) -> dict[str, tuple[int, int]]:
    """Return a worker's memory before it holds so many messages and while it does."""
    found = {}
    worker = Worker(server, Pool("prefork", 2), server.url(2))
    try:
        found["guarded"] = worker.held(count, say)
    finally:
        worker.close()
    worker = Worker(server, Pool("prefork", 2), server.url(2))
    try:
        say(f"memory of a worker: {count:,} plain calls that are due later")
        found["plain"] = worker.delayed(count)
    finally:
        worker.close()
    return found


def waiters(held: dict[str, tuple[int, int]], count: int) -> Goal:
    """Return the figure of a worker's memory while so many messages wait in it."""
    mega = {name: (before / 1e6, during / 1e6) for name, (before, during) in held.items()}
    plain, ours = (1e3 * (mega[it][1] - mega[it][0]) / count for it in ("plain", "guarded"))
    return Goal(
        "9h",
        f"kB of a worker's memory for each of {count:,} duplicates that wait",
        ours,
        detail=(
            f"a worker of 2 processes goes from {mega['guarded'][0]:.0f} MB to "
            f"{mega['guarded'][1]:.0f}; plain Celery takes {plain:.1f} kB for each of as many "
            f"calls that are due later, from {mega['plain'][0]:.0f} MB to {mega['plain'][1]:.0f}"
        ),
    )


@contextmanager
def _database(say: Say) -> Iterator[str]:
    """Return the URL of a database of its own, or nothing where there is no PostgreSQL."""
    default = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
    server = make_url(os.environ.get(_POSTGRESQL, default))
    name = f"idempotent_bench_{uuid.uuid4().hex[:8]}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except DBAPIError as exc:
        say(f"no PostgreSQL at {server.host}:{server.port}, so it is left out: {exc.orig}")
        yield ""
        return
    url = server.set(database=name).render_as_string(hide_password=False)
    app = Celery("schema", broker="memory://", set_as_current=False)
    app.conf.idempotency_store_url = url
    store: Any = environment_of(app).store
    try:
        store.create_schema()
        yield url
    finally:
        store.close()
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        engine.dispose()
