"""Goal 3: first execution, duplicate and bytes a key, against six other libraries, in turns."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from importlib import metadata

from benchmarks.speed.contestants import CONTESTANTS, Contestant
from benchmarks.speed.measure import Effort, Goal, Say, Section, Turn, ratio, rounds
from benchmarks.speed.player import Player
from celery_idempotent.testing.servers import RedisServer

__all__ = ["Row", "measure_peers"]

_PLAIN, _OURS, _ATTACH = "plain Celery", "celery-idempotent", "celery-idempotent, attach"
#: Calls in a turn: few, so that other work of the machine affects all contestants; and enough that
#: one command of our journal has many of them, as in a worker, which writes it twice a second.
_CALLS = 40
_WORDS = {
    "first": "first execution",
    "replay": "replay by the worker",
    "enqueue": "duplicate stopped at the enqueue",
}


@dataclass
class Row:
    """The figures of one contestant; ``None``: not measured, or it has no such thing."""

    name: str
    version: str
    duplicate_at: str
    duplicate: str
    keeps_outcome: bool
    fencing: str
    note: str
    #: Microseconds of a whole first execution, and the part above plain Celery's (for ours and
    #: plain Celery: measured with the last peer; compare by ``ratios``).
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
    #: Its time or bytes divided by ours (above 1 ours is better), with the 95 % interval.
    ratios: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    #: Why it could not be measured.
    missing: str = ""


def measure_peers(server: RedisServer, quick: bool, say: Say) -> Section:
    """Measure all contestants in one process, each with a database of its own."""
    rows = {one.name: _row(one) for one in CONTESTANTS}
    players: dict[str, Player] = {}
    for number, one in enumerate(CONTESTANTS):
        try:
            player = Player(one, server.url(number))
            player.check()
        except Exception as exc:
            if one.distribution in ("celery", "celery-idempotent"):
                raise
            reason = "not installed" if isinstance(exc, ImportError) else "does not do its part"
            rows[one.name].missing = f"{reason}: {exc}"
            say(f"{one.name} is left out: {rows[one.name].missing}")
        else:
            players[one.name] = player
    peers = [name for name in players if _is_peer(rows[name])]
    rivals = {
        "first": peers,
        "replay": [name for name in peers if rows[name].duplicate_at == "worker"],
        "enqueue": [name for name in peers if rows[name].duplicate_at == "enqueue"],
    }
    for what, names in rivals.items():
        _measure(what, names, players, rows, quick, say)
    say("round trips and bytes")
    for name, player in players.items():
        _look(rows[name], player)
        player.close()
    found = list(rows.values())
    ours = rows[_OURS]
    for row in found:
        if _is_peer(row) and row.keeps_outcome and row.kept_bytes and ours.kept_bytes:
            row.ratios["bytes"] = row.kept_bytes / ours.kept_bytes
    return Section(_goals(found), {"peers": [asdict(row) for row in found]})


def _measure(
    what: str,
    names: list[str],
    players: dict[str, Player],
    rows: dict[str, Row],
    quick: bool,
    say: Say,
) -> None:
    """Compare ours with each peer, and longer with the closest one, which decides the goal.

    The closest of several peers had luck: it is measured again, and that figure counts. Then
    another peer may be the closest.
    """
    short, long = (Effort(8, 1.2), Effort(40, 2)) if quick else (Effort(40), Effort(200))
    for name in names:
        _duel(what, name, players, rows, short, say)
    again: set[str] = set()
    while names and (closest := min(names, key=lambda it: rows[it].ratios[what])) not in again:
        _duel(what, closest, players, rows, long, say)
        again.add(closest)


def _duel(
    what: str,
    name: str,
    players: dict[str, Player],
    rows: dict[str, Row],
    effort: Effort,
    say: Say,
) -> None:
    """Time one peer and ours in turns, and plain Celery, too, where messages run."""
    work = "first" if what == "first" else "duplicates"
    ours = _ATTACH if what == "enqueue" else _OURS
    contestants: dict[str, Turn] = {ours: getattr(players[ours], work)}
    if what != "enqueue":
        contestants[_PLAIN] = players[_PLAIN].first
    contestants[name] = getattr(players[name], work)
    timed = rounds(contestants, _CALLS, effort, lambda text: say(f"{_WORDS[what]}: {name}, {text}"))
    plain = timed.get(_PLAIN)
    found = ratio(timed[name], timed[ours], plain)
    rows[name].ratios[what], rows[name].bounds[what] = found.median, (found.low, found.high)
    for one, seconds in timed.items():
        micro = statistics.median(seconds) * 1e6
        if work == "duplicates" and one != _PLAIN:
            rows[one].duplicate_us = micro
        else:
            rows[one].first_us = micro
        if what == "first" and plain is not None:
            rows[one].first_added_us = (
                statistics.median(a - b for a, b in zip(seconds, plain, strict=True)) * 1e6
            )


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


def _look(row: Row, player: Player) -> None:
    """Count round trips and bytes."""
    row.first_trips = player.trips(player.first)
    if row.duplicate_at:
        row.duplicate_trips = player.trips(player.duplicates)
    row.running_bytes, row.kept_bytes = player.sizes()


def _is_peer(row: Row) -> bool:
    return row.name not in (_PLAIN, _OURS, _ATTACH)


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
            "all while the first call runs; after its end only ours finds it",
        ),
    ]


def _goal(number: str, what: str, peers: list[Row], which: str, more: str = "") -> Goal:
    missing = [f"{row.name}: {row.missing}" for row in peers if row.missing]
    found = sorted((row for row in peers if which in row.ratios), key=lambda it: it.ratios[which])
    detail = ", ".join(f"{row.name} {row.version}: {row.ratios[which]:.2f}" for row in found)
    detail = "; ".join([detail, *missing, *([more] * bool(more))])
    if missing:  # a missing peer might have been better than ours
        return Goal(number, what, None, ">=", 1, detail)
    closest = found[0]
    return Goal(number, what, closest.ratios[which], ">=", 1, detail, closest.bounds.get(which))


def _less(peers: list[Row]) -> str:
    """Return a sentence about the peers that do less than ours."""
    forgets = ", ".join(row.name for row in peers if not row.keeps_outcome)
    unfenced = ", ".join(row.name for row in peers if row.fencing == "none")
    return f"{forgets} keep no outcome; {unfenced} have no fencing"


def _lock_bytes(rows: list[Row]) -> str:
    """Return a sentence about the locks of peers that keep no outcome."""
    ours = next(row for row in rows if row.name == _OURS)
    locks = [
        f"{row.name} {row.running_bytes:.0f}"
        for row in rows
        if row.duplicate_at and not row.keeps_outcome and row.running_bytes is not None
    ]
    return (
        f"{', '.join(locks)} bytes of lock while a call runs (ours: {ours.running_bytes:.0f}), "
        "and nothing afterwards: they can't answer a duplicate then"
    )
