"""Times contestants in turns; the figure is the median of the ratios."""

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
#: Does a thing so often. It may return the seconds for one; else the whole turn is timed.
Turn = Callable[[int], float | None]

_LEAST = 5
_SAY_S = 3.0


@dataclass(frozen=True)
class Goal:
    """One goal: the figure, its bound, and the parts of the figure."""

    number: str
    what: str
    figure: float | None
    #: ``">="`` or ``"<="``, and the bound; without one it is a figure and no goal.
    relation: str = ""
    bound: float | None = None
    #: Its origin in words: the parts, the number of rounds.
    detail: str = ""
    #: The interval in which the figure lies with 95 %, if it is the median of many rounds.
    bounds: tuple[float, float] | None = None

    @classmethod
    def of(
        cls, number: str, what: str, found: Ratio, relation: str, bound: float, detail: str = ""
    ) -> Goal:
        """Make a goal from a ratio."""
        return cls(number, what, found.median, relation, bound, detail, (found.low, found.high))

    @property
    def holds(self) -> bool | None:
        """Whether it holds; ``None`` if it was not measured, or has no bound."""
        if self.figure is None or self.bound is None:
            return None
        return self.figure >= self.bound if self.relation == ">=" else self.figure <= self.bound


@dataclass(frozen=True)
class Effort:
    """How many rounds are played, and how long at most: a slow machine plays fewer."""

    rounds: int
    #: Seconds; the last round may take longer, and the first five are played in any case.
    within: float = float("inf")

    def turns(self, say: Say) -> Iterator[int]:
        """Count the rounds, and print the progress now and then."""
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
    """The median of ratios, and the bounds of its 95 % interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, found: Sequence[float]) -> Ratio:
        """Compute it from the ratios of all rounds.

        The bounds are two of the ratios: the number of ratios below the true median has a binomial
        distribution (W. J. Conover, Practical Nonparametric Statistics, 3.2).
        """
        ordered, count = sorted(found), len(found)
        at = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)) - 1)
        return cls(statistics.median(ordered), ordered[at], ordered[count - 1 - at])


@dataclass(frozen=True)
class Section:
    """The findings of one part of the benchmark: its goals, and the tables behind them, by name."""

    goals: list[Goal]
    tables: dict[str, Any] = field(default_factory=dict)


def rounds(
    contestants: Mapping[str, Turn],
    count: int,
    effort: Effort,
    say: Say,
) -> dict[str, list[float]]:
    """Time each contestant for ``count`` things, in turns, round after round; seconds for a thing.

    The turns are short and many: other work of the machine lasts longer than a turn, and affects
    neighbouring turns equally. The order changes in each round, because it matters: a server that
    was idle for a turn is slow to begin. One turn of each before the first round is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    shuffled = random.Random(0).shuffle
    for name in names:
        contestants[name](max(1, count // 2))
    # Objects that exist now are never collected, so that collecting takes no time between turns.
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
    """Return the median over rounds of ``(top - base) / (bottom - base)``, with its interval."""
    less = base or [0.0] * len(top)
    return Ratio.of([(a - c) / (b - c) for a, b, c in zip(top, bottom, less, strict=True)])
