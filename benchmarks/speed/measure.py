"""How things are timed: contestants take turns, and what counts is the median of ratios."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Goal", "Say", "Section", "ratio", "rounds"]

Say = Callable[[str], None]


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

    @property
    def holds(self) -> bool | None:
        """Whether it does; ``None`` where it wasn't measured, or has no bound."""
        if self.figure is None or self.bound is None:
            return None
        return self.figure >= self.bound if self.relation == ">=" else self.figure <= self.bound


@dataclass(frozen=True)
class Section:
    """What one part of the benchmark found: its goals, and the tables behind them, by name."""

    goals: list[Goal]
    tables: dict[str, Any] = field(default_factory=dict)


def rounds(
    contestants: Mapping[str, Callable[[int], object]],
    count: int,
    times: int,
    say: Say,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Let each contestant do ``count`` things, ``times`` times, in turns; seconds a thing.

    The order turns around with every round, so that drift falls on all alike; a round before them
    warms up and isn't counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for name in names:
        contestants[name](max(1, count // 10))
    # What is there stays: collecting between the rounds then takes no time, so that rounds may be
    # short, and those of a pair close together.
    gc.collect()
    gc.freeze()
    try:
        for turn in range(times):
            say(f"round {turn + 1} of {times}")
            for name in names if turn % 2 == 0 else reversed(names):
                gc.collect()
                began = clock()
                contestants[name](count)
                seconds[name].append((clock() - began) / count)
    finally:
        gc.unfreeze()
    return seconds


def ratio(top: list[float], bottom: list[float], base_top: list[float] | None = None) -> float:
    """Give the median over rounds of ``(top - base) / (bottom - base)``."""
    base = base_top or [0.0] * len(top)
    return statistics.median((a - c) / (b - c) for a, b, c in zip(top, bottom, base, strict=True))
