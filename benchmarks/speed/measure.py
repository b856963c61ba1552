"""How things are timed: contestants take turns, and what counts is the median of ratios."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Effort", "Goal", "Ratio", "Say", "Section", "Turn", "ratio", "rounds"]

Say = Callable[[str], None]
#: Does something so often. It may give the seconds a thing; else the whole turn is what it takes.
Turn = Callable[[int], float | None]

_LEAST = 5
_SAY_S = 3.0


@dataclass(frozen=True)
class Goal:
    """One goal: what was measured, what it has to be, and what the figure is made of."""

    number: str
    what: str
    figure: float | None
    #: ``">="`` or ``"<="``, and the bound; without one it is a figure and no goal.
    relation: str = ""
    bound: float | None = None
    #: How it came about, in words: the parts, the number of rounds.
    detail: str = ""
    #: Between what the figure lies with 95 %, where it is the median of many rounds.
    bounds: tuple[float, float] | None = None

    @classmethod
    def of(
        cls, number: str, what: str, found: Ratio, relation: str, bound: float, detail: str = ""
    ) -> Goal:
        """Make one of a ratio."""
        return cls(number, what, found.median, relation, bound, detail, (found.low, found.high))

    @property
    def holds(self) -> bool | None:
        """Whether it does; ``None`` where it wasn't measured, or has no bound."""
        if self.figure is None or self.bound is None:
            return None
        return self.figure >= self.bound if self.relation == ">=" else self.figure <= self.bound


@dataclass(frozen=True)
class Effort:
    """How many rounds are played, and for how long at most: a slow machine plays fewer."""

    rounds: int
    #: Seconds; the last round may take longer, and the first five are played in any case.
    within: float = float("inf")

    def turns(self, say: Say) -> Iterator[int]:
        """Count the rounds, and say now and then how far it is."""
        began = said = time.monotonic()
        for turn in range(self.rounds):
            now = time.monotonic()
            if turn >= _LEAST and now - began >= self.within:
                return
            if turn == 0 or now - said >= _SAY_S:
                say(f"round {turn + 1} of {self.rounds}")
                said = now
            yield turn


class Ratio(NamedTuple):
    """The median of ratios, and the bounds between which the true one lies with 95 %."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, found: Sequence[float]) -> Ratio:
        """Work it out from the ratios of all rounds.

        The bounds are two of the ratios: how many of them lie below the true median is a matter of
        tossing coins (W. J. Conover, Practical Nonparametric Statistics, 3.2).
        """
        ordered, count = sorted(found), len(found)
        at = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)) - 1)
        return cls(statistics.median(ordered), ordered[at], ordered[count - 1 - at])


@dataclass(frozen=True)
class Section:
    """What one part of the benchmark found: its goals, and the tables behind them, by name."""

    goals: list[Goal]
    tables: dict[str, Any] = field(default_factory=dict)


def rounds(
    contestants: Mapping[str, Turn],
    count: int,
    effort: Effort,
    say: Say,
) -> dict[str, list[float]]:
    """Let each contestant do ``count`` things, in turns, round after round; seconds a thing.

    Short turns and many of them: what else the machine does lasts for longer than a turn, and falls
    on those next to it alike. Each round has another order, since who comes after whom counts, too:
    a server that has idled for a turn is slow to begin.
    A turn of each before that warms up, and isn't counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    shuffled = random.Random(0).shuffle
    for name in names:
        contestants[name](max(1, count // 2))
    # What is there stays: collecting between the turns then takes no time.
    gc.collect()
    gc.freeze()
    try:
        for turn in effort.turns(say):
            # An order, and then its reverse.
            if turn % 2 == 0:
                shuffled(names)
            for name in names if turn % 2 == 0 else reversed(names):
                gc.collect()
                began = time.perf_counter()
                itself = contestants[name](count)
                took = (time.perf_counter() - began) / count
                seconds[name].append(took if itself is None else itself)
    finally:
        gc.unfreeze()
    return seconds


def ratio(top: list[float], bottom: list[float], base: list[float] | None = None) -> Ratio:
    """Give the median over rounds of ``(top - base) / (bottom - base)``, and how sure it is."""
    less = base or [0.0] * len(top)
    return Ratio.of([(a - c) / (b - c) for a, b, c in zip(top, bottom, less, strict=True)])
