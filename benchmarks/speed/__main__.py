"""``make bench``: measures every goal and shows whether it holds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import redis
from rich.console import Console

from benchmarks.speed import enqueue, report
from benchmarks.speed.guard import measure_guard
from benchmarks.speed.load import measure_load
from benchmarks.speed.measure import Goal, Say, Section
from benchmarks.speed.peers import measure_peers
from benchmarks.speed.scale import measure_scale
from benchmarks.speed.store import measure_store
from benchmarks.speed.waiting import measure_waiting
from benchmarks.speed.worker import measure_worker
from celery_idempotent.testing.servers import RedisServer

_MEASURES: dict[str, Callable[[RedisServer, bool, Say], Section | list[Goal]]] = {
    "worker": measure_worker,
    "guard": measure_guard,
    "peers": measure_peers,
    "enqueue": enqueue.measure_enqueue,
    "store": measure_store,
    "scale": measure_scale,
    "waiting": measure_waiting,
    "load": measure_load,
}
_FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"


@click.command()
@click.option("--quick", is_flag=True, default=bool(os.environ.get("QUICK")), help="Fewer rounds.")
@click.option("--only", type=click.Choice(list(_MEASURES)), multiple=True, help="Measure a part.")
@click.option(
    "--write/--no-write",
    default=None,
    help="Write results and plots into docs/benchmarks; unless said, only a whole, full run does. "
    "A part's rows take the place of the last ones.",
)
def main(quick: bool, only: tuple[str, ...], write: bool | None) -> None:
    """Measure all goals side by side on a private server; exit with 1 if one does not hold."""
    console = Console()
    began = time.monotonic()
    found = Section([], {})
    version = ""
    for name, measure in _MEASURES.items():
        if only and name not in only:
            continue

        def say(text: str, name: str = name) -> None:
            console.print(f"{time.monotonic() - began:6.0f} s  {name}: {text}", highlight=False)

        with RedisServer() as server:
            version = version or _version(server)
            part = measure(server, quick, say)
        if not isinstance(part, Section):
            part = Section(part)
        found.goals.extend(part.goals)
        found.tables.update(part.tables)
    found.goals.sort(key=lambda goal: goal.number)
    said = report.conditions(quick, version)
    console.print(report.console_table(found.goals))
    console.print(said)
    if write if write is not None else not quick and not only:
        if "enqueue" in found.tables:
            enqueue.write(_FOLDER, found.tables["enqueue"], said)
        _write(*(report.joined(_FOLDER, found, said) if only else (found, said)), quick, console)
    if not all(goal.holds or goal.bound is None for goal in found.goals):
        sys.exit(1)


def _version(server: RedisServer) -> str:
    info = redis.Redis.from_url(server.url()).info("server")
    valkey = info.get("valkey_version")
    return f"Valkey {valkey}" if valkey else f"Redis {info['redis_version']}"


def _write(found: Section, said: str, quick: bool, console: Console) -> None:
    report.write(_FOLDER, found, said, quick)
    try:
        from benchmarks.speed.plots import draw
    except ImportError as exc:
        console.print(f"no plots: {exc} (pip install -e '.[bench]')")
        return
    draw(_FOLDER, found)
    console.print(f"written into {_FOLDER}", highlight=False)


if __name__ == "__main__":
    main()
