"""Shows how a run goes, and what came out of it."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tests.chaos.evidence import Verdict
from tests.chaos.plan import Act, Plan

if TYPE_CHECKING:
    from tests.chaos.driver import Driver

#: What is required, as a row of its own even where it is 0.
REQUIRED = (
    ("overlap", "overlapping lease holders"),
    ("lost", "lost"),
    ("unanswered", "unanswered"),
    ("accepted twice", "keys accepted twice"),
    ("repeated effect", "effects repeated without a fault"),
    ("repeated row", "session or keyed insert with a second row"),
    ("differing answers", "keys with differing answers"),
    ("failed", "calls that failed"),
    ("promise", "promises broken, by the history"),
)
#: How many of each sort are printed in full.
TOLD = 5
_PLAIN_EVERY_S = 5.0


class Progress:
    """A line that changes, on a terminal; elsewhere a line every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._last = 0.0

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, driver: Driver) -> None:
        """Show where it is."""
        line = _line(driver)
        if self._live is not None:
            self._live.update(line)
        elif time.monotonic() - self._last >= _PLAIN_EVERY_S:
            self._last = time.monotonic()
            self._console.print(line, highlight=False, soft_wrap=True)


def _line(driver: Driver) -> str:
    acts = Counter(fault.act for fault in driver.system.faults)
    events = Counter(entry["event"] for entry in driver.system.tail.entries)
    kills = acts[Act.KILL_CHILD] + acts[Act.KILL_WORKER]
    stops = acts[Act.STOP_CHILD] + acts[Act.STOP_WORKER]
    server = acts[Act.KILL_SERVER] + acts[Act.PAUSE_SERVER]
    return (
        f"{driver.now:5.0f} s of {driver.plan.seconds:.0f}  {driver.phase}: "
        f"{driver.answered} of {driver.calls} calls answered, "
        f"{events['received']} deliveries, {events['effect']} effects; "
        f"{kills} kills, {stops} stops, {server} of the server, {acts[Act.CUT]} cuts"
    )


def announce(console: Console, plan: Plan, missing: list[str]) -> None:
    """Say what is going to be done."""
    console.print(f"chaos, seed {plan.seed}, {plan.seconds / 60:g} minutes", highlight=False)
    for part in plan.parts:
        console.print(
            f"  {part.name}: {part.workers} workers of {part.concurrency} on {part.broker}, "
            f"records in {part.store}",
            highlight=False,
        )
    for line in missing:
        console.print(f"  left out: {line}", highlight=False, soft_wrap=True)
    calls = sum(len(call.copies) for call in plan.calls)
    console.print(
        f"  planned: {len(plan.calls)} calls, published {calls} times; {len(plan.faults)} faults",
        highlight=False,
    )


def conclude(console: Console, plan: Plan, verdict: Verdict, notes: list[str]) -> None:
    """Show the figures, and give a precise account of each violation."""
    console.print()
    console.print(_kinds(verdict))
    console.print(_figures(verdict))
    for note, times in Counter(notes).items():
        console.print(f"{times} x {note}", highlight=False, markup=False, soft_wrap=True)
    told: Counter[str] = Counter()
    for violation in verdict.violations:
        told[violation.what] += 1
        if told[violation.what] <= TOLD:
            console.print(f"\n{violation.what}: {violation.key}", style="red", markup=False)
            console.print(violation.account, highlight=False, markup=False, soft_wrap=True)
    for what, count in told.items():
        if count > TOLD:
            console.print(f"\n... and {count - TOLD} more: {what}", style="red")
    if verdict.holds:
        console.print("\nAll that is required holds.", style="green")
    else:
        again = f"make chaos SEED={plan.seed} MINUTES={plan.seconds / 60:g}"
        console.print(f"\n{len(verdict.violations)} violations; again: {again}", style="red")


def _kinds(verdict: Verdict) -> Table:
    columns = ("keys", "published", "calls", "bodies", "effects")
    table = Table("traffic", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, counts in sorted(verdict.by_kind.items()):
        table.add_row(name, *(str(counts[column]) for column in columns))
    return table


def _figures(verdict: Verdict) -> Table:
    table = Table("what", "count", "required")
    table.columns[1].justify = "right"
    for name, count in verdict.figures.items():
        table.add_row(name, str(count), "")
    table.add_section()
    for what, name in REQUIRED:
        count = verdict.count(what)
        table.add_row(name, str(count), "0", style="red" if count else "")
    return table
