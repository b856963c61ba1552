"""What a duplicate costs that is stopped at the enqueue, in each mode of each library that does so.

The broker is in this process, so that what is timed is the library's own part and its round trips.
Results are in Redis, where we look for the first call's: that counts for us.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.speed.contestants import DAY, Contestant
from benchmarks.speed.drive import Line
from benchmarks.speed.measure import Effort, Goal, Ratio, Say, Section, ratio, rounds
from benchmarks.speed.player import Player
from celery_idempotent import IdempotentTask
from celery_idempotent.settings import environment_of
from celery_idempotent.testing.servers import RedisServer

__all__ = ["MODES", "as_rst", "measure_enqueue", "write"]

#: What the first call does while its duplicates are made.
_STATES = ("queued", "running")
_CALLS = 40


@dataclass(frozen=True)
class Mode:
    """One library in one of its modes."""

    name: str
    #: The distribution whose version is printed.
    distribution: str
    #: Makes its task on a line, with its locks at a URL.
    task: Callable[[Line, str], None]
    #: What the caller of a duplicate gets.
    gets: str
    #: The name of the exception that ``apply_async`` raises.
    raises: tuple[str, ...] = ()

    def contestant(self, state: str) -> Contestant:
        """Return what a player plays: each has a queue of its own in this process."""
        return Contestant(
            f"{self.name}, {state}",
            self.distribution,
            partial(self._make, f"enqueue-{self.name}-{state}"),
            "enqueue",
            raises=self.raises,
        )

    def _make(self, name: str, url: str) -> Line:
        line = Line(name)
        line.app.conf.result_backend = url
        self.task(line, url)
        return line


def _ours(how: str, line: Line, url: str) -> None:
    line.app.conf.idempotency_store_url = url
    line.task(base=IdempotentTask, idempotency_key="order:{order_id}", idempotency_on_enqueue=how)
    line.settle = environment_of(line.app).journal._send


def _once(graceful: bool, line: Line, url: str) -> None:
    from celery_once import QueueOnce  # type: ignore[import-untyped,import-not-found,unused-ignore]

    line.app.conf.ONCE = {
        "backend": "celery_once.backends.Redis",
        "settings": {"url": url, "default_timeout": DAY},
    }
    line.task(base=QueueOnce, once={"keys": ["order_id"], "graceful": graceful})


def _singleton(raises: bool, line: Line, url: str) -> None:
    from celery_singleton import Singleton  # type: ignore[import-untyped,import-not-found,unused-ignore]

    line.app.conf.singleton_backend_url = url
    line.app.conf.singleton_lock_expiry = DAY
    line.task(base=Singleton, unique_on=["order_id"], raise_on_duplicate=raises)


def _forget_the_last_server() -> None:
    """Two peers keep the client of a process in their modules, whatever app asks for it later."""
    once: Any = importlib.import_module("celery_once.backends.redis")
    singleton: Any = importlib.import_module("celery_singleton.backends")
    once.redis = singleton._backend = None


_ATTACH, _RAISE = "celery-idempotent, attach", "celery-idempotent, raise"
MODES = (
    Mode(
        _ATTACH,
        "celery-idempotent",
        partial(_ours, "attach"),
        "the first call's ``AsyncResult``",
    ),
    Mode(
        _RAISE,
        "celery-idempotent",
        partial(_ours, "raise"),
        "``IdempotencyInProgress``, with the first call's id and ``AsyncResult``",
        ("IdempotencyInProgress",),
    ),
    Mode(
        "celery-once, raise",
        "celery-once",
        partial(_once, False),
        "``AlreadyQueued``, with the time that the lock has left",
        ("AlreadyQueued",),
    ),
    Mode(
        "celery-once, graceful",
        "celery-once",
        partial(_once, True),
        "an ``EagerResult`` without an id",
    ),
    Mode(
        "celery-singleton, attach",
        "celery-singleton",
        partial(_singleton, False),
        "the first call's ``AsyncResult``",
    ),
    Mode(
        "celery-singleton, raise",
        "celery-singleton",
        partial(_singleton, True),
        "``DuplicateTaskError``, with the first call's id",
        ("DuplicateTaskError",),
    ),
)
#: The peers that give a caller what ours gives.
_RIVALS = {
    _ATTACH: ("celery-once, graceful", "celery-singleton, attach"),
    _RAISE: ("celery-once, raise", "celery-singleton, raise"),
}


class Queued(Player):
    """A player whose first call stays in its queue."""

    def _begin(self) -> None:
        self._publish(self._same)

    def check(self) -> None:
        """Check that a duplicate isn't published.

        Raises:
            AssertionError: it is.
        """
        self._publish(self._same)
        found = self.line.is_empty(), self.line.is_empty()
        assert found == (False, True), f"{self.contestant.name}: one message is queued: {found}"


@dataclass
class Row:
    """The figures of one mode."""

    name: str
    version: str
    gets: str
    #: Microseconds of a duplicate, by what the first call does.
    duplicate_us: dict[str, float] = field(default_factory=dict)
    #: Its time divided by that of ours which gives its caller the same, with the 95 % interval.
    ratios: dict[str, Ratio] = field(default_factory=dict)
    #: Round trips to Redis of a duplicate, by what the first call does.
    trips: dict[str, float] = field(default_factory=dict)
    #: Those of a call that is published, and run.
    first_trips: float | None = None


def measure_enqueue(server: RedisServer, quick: bool, say: Say) -> Section:
    """Measure all modes in turns, while the first call is queued and while it runs."""
    _forget_the_last_server()
    rows = {one.name: Row(one.name, metadata.version(one.distribution), one.gets) for one in MODES}
    effort = Effort(8, 4) if quick else Effort(100)
    for number, state in enumerate(_STATES):
        kind = Queued if state == "queued" else Player
        players = {
            one.name: kind(one.contestant(state), server.url(number * len(MODES) + at))
            for at, one in enumerate(MODES)
        }
        timed = rounds(
            {name: player.duplicates for name, player in players.items()},
            _CALLS,
            effort,
            partial(_say, say, state),
        )
        for name, seconds in timed.items():
            ours = next((it for it, peers in _RIVALS.items() if name in peers), None)
            rows[name].duplicate_us[state] = statistics.median(seconds) * 1e6
            if ours is not None:
                rows[name].ratios[state] = ratio(seconds, timed[ours])
            rows[name].trips[state] = players[name].trips(players[name].duplicates)
        for name, player in players.items():
            player.check()
            if state == "running":
                player.end()
                rows[name].first_trips = player.trips(player.first)
            player.close()
    found = list(rows.values())
    return Section(
        [
            _goal(number, ours, state, rows)
            for number, (ours, state) in zip(
                ("3e", "3f", "3g", "3h"),
                [(ours, state) for ours in _RIVALS for state in _STATES],
                strict=True,
            )
        ],
        {"enqueue": [asdict(row) for row in found]},
    )


def _say(say: Say, state: str, text: str) -> None:
    say(f"{state}: {text}")


def _goal(number: str, ours: str, state: str, rows: dict[str, Row]) -> Goal:
    peers = sorted(_RIVALS[ours], key=lambda it: rows[it].ratios[state].median)
    median, low, high = rows[peers[0]].ratios[state]
    told = ", ".join(f"{it} {rows[it].ratios[state].median:.2f}" for it in peers)
    return Goal(
        number,
        f"duplicate of a call that is {state}, stopped at the enqueue: the best peer's time to "
        f"{ours}",
        median,
        detail=f"{told}; ours looks into the result backend, too",
        bounds=(low, high),
    )


def write(folder: Path, rows: list[dict[str, Any]], said: str) -> None:
    """Write the table of the documentation."""
    folder.mkdir(exist_ok=True)
    (folder / "enqueue.inc").write_text(as_rst(rows, said), encoding="utf-8")


def as_rst(rows: list[dict[str, Any]], said: str) -> str:
    """Return the table of the documentation."""
    lines = [
        ".. Written by ``make bench``: run it again, don't edit it.",
        "",
        said,
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "   :stub-columns: 1",
        "   :widths: 24 28 12 12 12 12",
        "",
    ]
    head = (
        "",
        "The caller of a duplicate gets",
        "Its time, the first call queued",
        "The first call running",
        "Round trips of a duplicate",
        "Of a call that is published and runs",
    )
    cells = [
        (
            f"{row['name'].replace(', ', ' ' + row['version'] + ', ')}",
            row["gets"],
            *(f"{row['duplicate_us'][state]:.0f} µs" for state in _STATES),
            " / ".join(f"{row['trips'][state]:.0f}" for state in _STATES),
            f"{row['first_trips']:.0f}",
        )
        for row in rows
    ]
    for row in (head, *cells):
        lines += [f"   {'  -' if at else '* -'} {cell}".rstrip() for at, cell in enumerate(row)]
    return "\n".join(lines) + "\n"
