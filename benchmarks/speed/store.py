"""Goals 4 to 6: commands and bytes a key, growth, one heartbeat for all claims, and import time."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

import redis
from celery import Celery

from benchmarks.speed.bare import Bare
from benchmarks.speed.measure import Effort, Goal, Ratio, Say, Section
from benchmarks.speed.paper import memory_on_paper
from celery_idempotent import IdempotentTask
from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import Record, State
from celery_idempotent.run.heartbeat import Heartbeat
from celery_idempotent.run.lease import Lease
from celery_idempotent.stores.redis.store import RedisStore
from celery_idempotent.testing.servers import RedisServer

__all__ = ["measure_store"]

_DAY_MS = 86_400_000
#: Ends the recording of a monitor.
_END = "that-was-all"
_FEW = 1_000
_BATCH = 10_000
_TIMED = 50


def measure_store(server: RedisServer, quick: bool, say: Say) -> Section:
    """Measure the commands that the store gets, and the bytes that it keeps."""
    client = redis.Redis.from_url(server.url(4))
    say("commands a task")
    goals = _commands(server, client)
    grown, memory = _growth(server, client, quick, say)
    goals += memory
    largest = max(grown)
    goals.append(
        Goal.of(
            "6a",
            f"claim and complete at {largest:,} records to {_FEW:,}",
            grown[largest],
            "<=",
            1.05,
            ", ".join(f"{value.median:.3f} at {count:,}" for count, value in grown.items()),
        )
    )
    say("a thousand claims")
    goals.append(_heartbeat(server))
    say("import time")
    goals.append(_import_time(5 if quick else 15))
    curve = [{"records": count, "ratio": value.median} for count, value in grown.items()]
    return Section(goals, {"growth": curve})


def _commands(server: RedisServer, client: Any) -> list[Goal]:
    app = Celery("commands", broker="memory://", backend="cache+memory://")
    app.conf.update(idempotency_store_url=server.url(4), idempotency_journal=0)

    def body(number: int) -> int:
        return number

    task = app.task(
        base=IdempotentTask, idempotency_key="order:{number}", name="commands.task", shared=False
    )(body)
    task.apply((-1,))
    task.apply((-1,))

    # The client is connected already, so that no command of the connection is counted.
    ends = redis.Redis.from_url(server.url(4))
    ends.ping()

    def count(calls: Sequence[int]) -> float:
        with client.monitor() as monitor:
            for number in calls:
                task.apply((number,))
            ends.echo(_END)
            sent = 0
            for line in monitor.listen():
                if line["command"] == f"ECHO {_END}":
                    return sent / len(calls)
                # A command that a script calls did not come from a client.
                sent += line["client_type"] != "lua"
        raise AssertionError  # pragma: no cover

    return [
        Goal("4a", "commands of a first execution", count(range(50)), "<=", 2),
        Goal("4b", "commands of a replay", count([0] * 50), "<=", 1),
        _compressed(app, client),
    ]


def _compressed(app: Celery, client: Any) -> Goal:
    """Keep a result that repeats itself, as most do, and measure its record."""
    result = [{"order": number, "state": "shipped", "parcel": None} for number in range(80)]

    def body(number: int) -> Any:
        return result

    task = app.task(
        base=IdempotentTask, idempotency_key="order:{number}", name="commands.large", shared=False
    )(body)
    task.apply((1,))
    plain = len(json.dumps(result))
    kept = client.memory_usage("idempotent:{commands.large:order:1}", samples=0)
    return Goal(
        "5c",
        "bytes of a record with a large result, to the result's",
        kept / plain,
        "<=",
        1,
        f"{kept} bytes for one of {plain}: over 512 bytes it is compressed, if that is smaller",
    )


def _records(first: int, end: int) -> Iterable[tuple[str, bytes]]:
    for number in range(first, end):
        # Each call has its own id, as in production; key and arguments are readable and short.
        record = Record(
            State.SUCCEEDED,
            1_795_000_000_000_000 + number,
            owner=b"U" + number.to_bytes(16, "big"),
            fingerprint=(number * 7919).to_bytes(16, "big"),
            outcome=b"\1\1" + b'"' + b"x" * 62 + b'"',
        )
        yield f"idempotent:{{shop.charge:order:{number}}}", record.pack()


def _fill(client: Any, first: int, end: int) -> str:
    """Write finished records from one number up to another, and return the last key."""
    key = ""
    for start in range(first, end, _BATCH):
        pipe = client.pipeline(transaction=False)
        for key, packed in _records(start, min(start + _BATCH, end)):
            pipe.set(key, packed, px=_DAY_MS)
        pipe.execute()
    return key


def _say_growth(say: Say, size: int, text: str) -> None:
    say(f"growth: {size:,} records, {text}")


def _growth(
    server: RedisServer, client: Any, quick: bool, say: Say
) -> tuple[dict[int, Ratio], list[Goal]]:
    """Claim and complete in a small database and in one that grows, in turns.

    For each size it returns the median of the pairs (the time there divided by the time in the
    small one), and the memory of the records.
    """
    small, large = Bare(server.url(5)), Bare(server.url(4))
    few = redis.Redis.from_url(server.url(5))
    _fill(few, 0, _FEW)
    client.flushdb()
    before = client.info("memory")["used_memory"]
    found: dict[int, Ratio] = {}
    each = largest = 0.0
    there, numbers = 0, itertools.count(10**9, 1000)
    sizes = (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000)
    for size in sizes:
        say(f"growth: {size:,} records")
        key = _fill(client, there, size)
        there = size
        each = (client.info("memory")["used_memory"] - before) / size
        largest = max(largest, float(client.memory_usage(key, samples=0)))
        ratios = []
        effort = Effort(24, 4) if quick else Effort(500 if size == sizes[-1] else 150)
        for turn in effort.turns(partial(_say_growth, say, size)):
            start, pair = next(numbers), [small, large]
            timed = {
                one: one.timed_scripts(_TIMED, start)[0]
                for one in (pair if turn % 2 == 0 else reversed(pair))
            }
            ratios.append(timed[large] / timed[small])
            for database in (few, client):
                # Records that were written for the timing do not count.
                database.delete(*(f"bare:{{guard:s{start + n}}}" for n in range(_TIMED)))
        assert few.dbsize() == _FEW and client.dbsize() == size
        found[size] = Ratio.of(ratios)
    client.flushdb()
    return found, [
        Goal("5a", "bytes of a finished record, by MEMORY USAGE", largest, "<=", 300),
        Goal("5b", f"bytes of a record, by used_memory over {there:,}", each, "<=", 300),
        memory_on_paper(each),
    ]


def _heartbeat(server: RedisServer) -> Goal:
    """Hold a thousand leases, and count the round trips of the first two turns of renewals."""

    class Counting(RedisStore):
        trips: ClassVar[Counter[int]] = Counter()

        def renew(self, renewals: Any) -> Any:
            self.trips[len(renewals)] += 1
            return super().renew(renewals)

    store = Counting.from_url(server.url(4))
    before, beat = threading.active_count(), Heartbeat()
    lease_ms, keep_ms = 3000, 60_000
    leases = []
    for number in range(1000):
        held = Record(State.RUNNING, number + 1, owner=Owner(str(number)).pack())
        leases.append(Lease(store, f"idempotent:{{beat:{number}}}", held, lease_ms, keep_ms))
        beat.add(leases[-1])
    began = time.monotonic()
    time.sleep(2.5)
    turns = (time.monotonic() - began) / (lease_ms / 3000)
    threads = threading.active_count() - before
    for lease in leases:
        beat.remove(lease)
    trips = sum(Counting.trips.values())
    return Goal(
        "6b",
        "round trips a third of a lease for 1,000 claims",
        trips / turns,
        "<=",
        1.5,
        f"{threads} thread, {trips} round trips in {turns:.1f} thirds of a lease",
    )


def _import_time(times: int) -> Goal:
    """Time the import of the library, and what its task class adds to an app that has Celery."""
    celery = "import celery.app.task, celery.app.base, celery.canvas, celery.utils.log"
    program = (
        "import time; a = time.perf_counter(); import celery_idempotent; b = time.perf_counter();"
        f"{celery}; c = time.perf_counter();"
        "from celery_idempotent import IdempotentTask; d = time.perf_counter();"
        "print((b - a) / (c - b), (d - c) / (c - b))"
    )
    looked_up, with_task = [], []
    for _ in range(times):
        out = subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        )
        first, second = map(float, out.stdout.split())
        looked_up.append(first)
        with_task.append(second)
    return Goal(
        "6c",
        "time of `from celery_idempotent import IdempotentTask` after Celery, to Celery's import",
        statistics.median(with_task),
        "<=",
        0.3,
        "`import celery_idempotent` alone, which looks its names up when they are asked for: "
        f"{statistics.median(looked_up):.4f}",
    )
