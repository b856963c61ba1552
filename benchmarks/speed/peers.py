"""Goal 3: first execution, duplicate and bytes a key, against six other libraries, in turns."""

from __future__ import annotations

import itertools
import statistics
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import redis

from benchmarks.speed.contestants import CONTESTANTS, Contestant
from benchmarks.speed.drive import BODY_RESULT, Line
from benchmarks.speed.measure import Goal, Say, Section, ratio, rounds
from celery_idempotent.stores.journal import journal_key
from celery_idempotent.testing.servers import RedisServer

__all__ = ["Row", "measure_peers"]

_JOURNAL = journal_key("idempotent").encode()

#: Order numbers of a usual length, and never the same one twice.
_NUMBERS = itertools.count(10_000_000)


@dataclass
class Row:
    """What was found of one contestant; ``None``: not measured, or it has no such thing."""

    name: str
    version: str
    duplicate_at: str
    duplicate: str
    keeps_outcome: bool
    fencing: str
    note: str
    #: Microseconds of a whole first execution, and what of it is more than plain Celery's.
    first_us: float | None = None
    first_added_us: float | None = None
    #: Microseconds of a whole duplicate: up to its answer, or to its refusal at the enqueue.
    duplicate_us: float | None = None
    #: Round trips to Redis.
    first_trips: float | None = None
    duplicate_trips: float | None = None
    #: Bytes in Redis while a call runs, and once it is done, by MEMORY USAGE.
    running_bytes: float | None = None
    kept_bytes: float | None = None
    #: Its time, or bytes, over ours: above 1 we are ahead.
    ratios: dict[str, float] = field(default_factory=dict)
    #: Why it could not be measured.
    missing: str = ""


class _Player:
    """One contestant at work on a database of its own."""

    def __init__(self, contestant: Contestant, url: str) -> None:
        self.contestant = contestant
        self.line: Line = contestant.make(url)
        self.database: Any = redis.Redis.from_url(url)
        self._task = self.line.app.tasks["bench.charge"]
        self._same = self.call()
        self._may_end = threading.Event()
        self._run: threading.Thread | None = None
        self._begin()

    def _begin(self) -> None:
        """Make the first call, of which there will be duplicates.

        Those that stop a duplicate at the enqueue all do so while the first call runs, so there it
        runs until :meth:`end`. Everywhere else a duplicate comes after its end.
        """
        self._publish(self._same)
        if self.contestant.duplicate_at != "enqueue":
            self.line.execute()
            return
        runs = threading.Event()

        def hold() -> None:
            self.line.during = None
            runs.set()
            self._may_end.wait()

        self.line.during = hold
        self._run = threading.Thread(target=self.line.execute, daemon=True)
        self._run.start()
        if not runs.wait(30):
            raise RuntimeError(f"{self.contestant.name}: the first call did not begin to run")

    def end(self) -> None:
        """Let the first call end."""
        self._may_end.set()
        if self._run is not None:
            self._run.join()

    @staticmethod
    def call() -> dict[str, Any]:
        """Give the arguments of a call that nobody made before."""
        return {"order_id": str(next(_NUMBERS)), "amount": 100}

    def first(self, count: int) -> None:
        """Publish and execute new calls."""
        for _ in range(count):
            self._publish(self.call())
            self.line.execute()
        self.line.settle()

    def duplicates(self, count: int) -> None:
        """Make the same call again and again."""
        at_worker = self.contestant.duplicate_at == "worker"
        for _ in range(count):
            self._publish(self._same)
            if at_worker:
                self.line.execute()
        self.line.settle()

    def _publish(self, call: dict[str, Any]) -> None:
        try:
            self._task.apply_async(kwargs=call)
        except Exception as exc:
            if type(exc).__name__ not in self.contestant.raises:
                raise

    def check(self) -> None:
        """See that it does what is said of it, before it is timed.

        Raises:
            AssertionError: it doesn't: the adapter is wrong.
        """
        name, runs = self.contestant.name, self.line.runs
        self._publish(self.call())
        assert self.line.execute() == BODY_RESULT, f"{name}: the result of a first execution"
        assert self.line.runs == runs + 1, f"{name}: a first execution runs the body"
        if not self.contestant.duplicate_at:
            return
        self._publish(self._same)
        if self.contestant.duplicate_at == "worker":
            assert self.line.execute() == BODY_RESULT, f"{name}: a duplicate gets the result"
        else:
            assert self.line.is_empty(), f"{name}: a duplicate isn't published"
        assert self.line.runs == runs + 1, f"{name}: a duplicate doesn't run the body"

    def trips(self, work: Callable[[int], None], count: int = 50) -> float:
        """Count what the server reads from its connections for each call."""
        work(1)
        before = self._reads()
        work(count)
        # The question itself is one of them. What comes of many calls together (our journal: one
        # command for up to two hundred events) is rounded off.
        return float(round((self._reads() - before - 1) / count))

    def _reads(self) -> int:
        return int(self.database.info("stats")["total_reads_processed"])

    def sizes(self, count: int = 50) -> tuple[float, float]:
        """Give the bytes that a call has in Redis while it runs, and once it is done."""
        self.end()
        self.database.flushdb()
        running: list[int] = []
        self.line.during = lambda: running.append(self._bytes())
        self._publish(self.call())
        self.line.execute()
        self.line.during = None
        self.database.flushdb()
        self.first(count)
        return float(running[0]), self._bytes() / count

    def close(self) -> None:
        """Give back the connections."""
        self.line.close()
        self.database.close()

    def _bytes(self) -> int:
        return sum(
            self.database.memory_usage(key, samples=0)
            for key in self.database.scan_iter(count=1000)
            # One stream for all, capped: no call has a part in it that stays.
            if key != _JOURNAL
        )


def measure_peers(server: RedisServer, quick: bool, say: Say) -> Section:
    """Measure all contestants in one process, each with a database of its own."""
    rows = {one.name: _row(one) for one in CONTESTANTS}
    players: dict[str, _Player] = {}
    for number, one in enumerate(CONTESTANTS):
        try:
            player = _Player(one, server.url(number))
            player.check()
        except Exception as exc:
            if one.distribution in ("celery", "celery-idempotent"):
                raise
            reason = "not installed" if isinstance(exc, ImportError) else "does not do its part"
            rows[one.name].missing = f"{reason}: {exc}"
            say(f"{one.name} is left out: {rows[one.name].missing}")
        else:
            players[one.name] = player
    timed = rounds(
        {
            **{f"first {name}": player.first for name, player in players.items()},
            **{
                f"duplicate {name}": player.duplicates
                for name, player in players.items()
                if player.contestant.duplicate_at
            },
        },
        12 if quick else 25,
        21 if quick else 61,
        say,
    )
    say("round trips and bytes")
    for name, player in players.items():
        _fill(rows[name], player, timed)
        player.close()
    found = list(rows.values())
    _compare(found, timed)
    return Section(_goals(found), {"peers": [asdict(row) for row in found]})


def _row(one: Contestant) -> Row:
    try:
        version = metadata.version(one.distribution)
    except metadata.PackageNotFoundError:
        version = "not installed"
    return Row(
        one.name,
        version,
        one.duplicate_at,
        one.duplicate,
        one.keeps_outcome,
        one.fencing,
        one.note,
    )


def _fill(row: Row, player: _Player, timed: dict[str, list[float]]) -> None:
    first, plain = timed[f"first {row.name}"], timed["first plain Celery"]
    row.first_us = statistics.median(first) * 1e6
    row.first_added_us = statistics.median(a - b for a, b in zip(first, plain, strict=True)) * 1e6
    row.first_trips = player.trips(player.first)
    if row.duplicate_at:
        row.duplicate_us = statistics.median(timed[f"duplicate {row.name}"]) * 1e6
        row.duplicate_trips = player.trips(player.duplicates)
    row.running_bytes, row.kept_bytes = player.sizes()


def _compare(rows: list[Row], timed: dict[str, list[float]]) -> None:
    """Set each peer's ratios to ours; plain Celery's time is taken off where a message ran."""
    ours = {row.name: row for row in rows}["celery-idempotent"]
    plain, kept = timed["first plain Celery"], ours.kept_bytes
    assert kept is not None
    for row in rows:
        if row.missing or not _is_peer(row):
            continue
        first, duplicate = timed[f"first {row.name}"], timed[f"duplicate {row.name}"]
        row.ratios["first"] = ratio(first, timed["first celery-idempotent"], plain)
        if row.duplicate_at == "worker":
            row.ratios["replay"] = ratio(duplicate, timed["duplicate celery-idempotent"], plain)
        else:
            attach = timed["duplicate celery-idempotent, attach"]
            row.ratios["enqueue"] = ratio(duplicate, attach)
        if row.keeps_outcome and row.kept_bytes is not None:
            row.ratios["bytes"] = row.kept_bytes / kept


def _is_peer(row: Row) -> bool:
    return bool(row.duplicate_at) and not row.name.startswith("celery-idempotent")


def _goals(rows: list[Row]) -> list[Goal]:
    peers = [row for row in rows if _is_peer(row)]
    return [
        _goal(
            "3a",
            "first execution: what the best peer adds to plain Celery, to what we add",
            peers,
            "first",
            _less(peers),
        ),
        _goal(
            "3b",
            "replay by the worker: what the best peer that has one adds, to what we add",
            [row for row in peers if row.duplicate_at == "worker"],
            "replay",
        ),
        _goal(
            "3c",
            "bytes of a finished key: the best peer's that keeps the outcome, to ours",
            [row for row in peers if row.keeps_outcome],
            "bytes",
            _lock_bytes(rows),
        ),
        _goal(
            "3d",
            "duplicate stopped at the enqueue: the best peer's time to ours with 'attach'",
            [row for row in peers if row.duplicate_at == "enqueue"],
            "enqueue",
            "all while the first call runs: while it is queued only the peers see it, after its "
            "end only we",
        ),
    ]


def _goal(number: str, what: str, peers: list[Row], which: str, more: str = "") -> Goal:
    missing = [f"{row.name}: {row.missing}" for row in peers if row.missing]
    found = sorted(
        (row.ratios[which], f"{row.name} {row.version}") for row in peers if which in row.ratios
    )
    detail = ", ".join(f"{name}: {value:.2f}" for value, name in found)
    # A peer that isn't there might have been ahead of us.
    figure = None if missing else found[0][0]
    return Goal(
        number, what, figure, ">=", 1, "; ".join([detail, *missing, *([more] * bool(more))])
    )


def _less(peers: list[Row]) -> str:
    """Say who does less than we do."""
    forgets = ", ".join(row.name for row in peers if not row.keeps_outcome)
    unfenced = ", ".join(row.name for row in peers if row.fencing == "none")
    return f"{forgets} keep no outcome; {unfenced} have no fencing"


def _lock_bytes(rows: list[Row]) -> str:
    """Say what those that keep nothing have in Redis, and for how long."""
    ours = next(row for row in rows if row.name == "celery-idempotent")
    locks = [
        f"{row.name} {row.running_bytes:.0f}"
        for row in rows
        if row.duplicate_at and not row.keeps_outcome and row.running_bytes is not None
    ]
    return (
        f"{', '.join(locks)} bytes of lock while a call runs (ours: {ours.running_bytes:.0f}), "
        "and nothing afterwards: they can't answer a duplicate then"
    )
