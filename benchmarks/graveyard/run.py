"""Plays the situations on each library, and prints what is seen as it comes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import click
from rich.console import Console

import celery_idempotent
from benchmarks.graveyard.adapters import NAMES
from benchmarks.graveyard.report import OURS, Report
from benchmarks.graveyard.situations import CLAIMS, SITUATIONS
from benchmarks.playing.command import Wanted, options
from benchmarks.playing.process import PROJECT
from benchmarks.playing.run import Play, Run

__all__ = ["main"]

#: What is asked of an adapter in a process of its own, since a library may be missing.
_ASK = (
    "import sys, json; from benchmarks.graveyard.adapters import adapter; "
    "a = adapter(sys.argv[1]); print(json.dumps([a.title, a.distribution]))"
)
_ANSWERS_WITHIN_S = 60.0


class Graveyard:
    """A run: what is asked of each library, its plays, and the report."""

    def __init__(self, run: Run, situations: Sequence[str]) -> None:
        self.report = Report(measured_on=run.measured_on, versions=run.versions)
        self._run = run
        self._situations = situations

    def add(self, library: str) -> bool:
        """Note a library's title and version; whether it is there."""
        self.report.libraries[library] = library
        try:
            asked = subprocess.run(
                [sys.executable, "-c", _ASK, library],
                cwd=PROJECT,
                capture_output=True,
                text=True,
                timeout=_ANSWERS_WITHIN_S,
            )
        except subprocess.TimeoutExpired:
            problem = f"its adapter was not imported within {_ANSWERS_WITHIN_S:g} s"
            self.report.unavailable[library] = problem
            return False
        if asked.returncode:
            self.report.unavailable[library] = asked.stderr.strip().rpartition("\n")[2]
            return False
        title, distribution = json.loads(asked.stdout)
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            # Our own code also runs from a checkout.
            version = celery_idempotent.__version__
        self.report.libraries[library] = f"{title} {version}"
        return True

    def play(self, library: str) -> Play:
        """All situations on a library."""

        def note(line: dict[str, Any]) -> None:
            self._note(library, line)

        command = ("benchmarks.graveyard.play", *self._situations)
        return Play(library, command, {"GRAVEYARD_LIBRARY": library}, note)

    def _note(self, library: str, line: dict[str, Any]) -> None:
        situation = str(line.pop("name"))
        del line["kind"]
        self.report.seen.setdefault(library, {})[situation] = line
        if line["verdict"] != "not claimed":
            faults = ": " + "; ".join(line["faults"]) if line["faults"] else ""
            self._run.say(f"{library}, {situation}: {line['verdict']}{faults}")


@click.command(
    epilog="It ends with 0 if everything could be played, and ours was right in all.",
)
@click.argument("libraries", nargs=-1, type=click.Choice(NAMES), metavar="[LIBRARY]...")
@click.option("-k", "only", metavar="TEXT", help="Only situations with this in name or report.")
@options(jobs=2)
@click.option("--list", "listed", is_flag=True, help="Print the situations, and play nothing.")
def main(
    libraries: tuple[str, ...],
    only: str | None,
    listed: bool,
    **shared: Any,
) -> None:
    """Play situations from public bug reports on LIBRARY (default: on each)."""
    chosen = [
        it for it in SITUATIONS if only is None or only.lower() in f"{it.name} {it.told}".lower()
    ]
    if not chosen:
        raise click.UsageError(f"no situation has {only!r} in its name or report")
    if listed:
        for situation in chosen:
            needs = ", ".join(CLAIMS[need] for need in situation.needs)
            click.echo(f"{situation.name}  {situation.address}\n  {situation.told}\n  [{needs}]")
        return
    wanted = Wanted(**shared)

    def play(run: Run) -> Report:
        graveyard = Graveyard(run, [it.name for it in chosen])
        plays = [graveyard.play(it) for it in libraries or NAMES if graveyard.add(it)]
        graveyard.report.unavailable |= run.play_all(plays, wanted.jobs)
        return graveyard.report

    report = wanted.report(Report, play)
    report.print(Console())
    if not report.is_good():
        if OURS in report.seen:
            right, claimed = report.score(OURS)
            click.echo(f"ours: {right} of {claimed}", err=True)
        raise SystemExit(1)
