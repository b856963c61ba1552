"""Plays every scenario on every contender, and prints the findings as they come."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from rich.console import Console

import celery_idempotent
from benchmarks.compare.contenders import CONTENDERS, Contender
from benchmarks.compare.report import Report
from benchmarks.compare.scenarios import GROUPS, SCENARIOS, Group
from benchmarks.playing.command import Wanted, options
from benchmarks.playing.run import Play, Run

__all__ = ["main"]

_BY_NAME = {contender.name: contender for contender in CONTENDERS}


class Comparison:
    """A run: its plays, and the report."""

    def __init__(self, run: Run, contenders: Sequence[Contender]) -> None:
        self.report = Report(
            measured_on=run.measured_on,
            versions=run.versions,
            contenders={item.name: _version(item) for item in contenders},
        )
        self._run = run
        self._titles = {scenario.name: scenario.title for scenario in SCENARIOS}

    def play(self, contender: Contender, group: Group) -> Play:
        """A group of scenarios on a contender."""

        def note(line: dict[str, Any]) -> None:
            self._note(contender, line)

        environment = {
            "COMPARE_FAULTS": "1" if group.redelivers else "0",
            "COMPARE_ACKS_LATE": "1" if group.acks_late else "0",
        }
        command = ("benchmarks.compare.drive", contender.name, group.name)
        return Play(f"{contender.name}-{group.name}", command, environment, note)

    def _note(self, contender: Contender, line: dict[str, Any]) -> None:
        if line.pop("kind") == "unavailable":
            self.report.unavailable[contender.name] = str(line["error"])
            self._run.say(f"{contender.title}: could not be run: {line['error']}")
        else:
            scenario = str(line.pop("name"))
            self.report.findings.setdefault(contender.name, {})[scenario] = line
            self._run.say(f"{contender.title}, {self._titles[scenario]}: {line['text']}")


def _version(contender: Contender) -> str:
    try:
        return metadata.version(contender.distribution)
    except metadata.PackageNotFoundError:
        # Our own code also runs from a checkout; a missing peer is found when it is imported.
        ours = contender.distribution == "celery-idempotent"
        return celery_idempotent.__version__ if ours else "(not installed)"


@click.command(epilog="It ends with 0 if every cell could be measured.")
@click.argument("contenders", nargs=-1, type=click.Choice(list(_BY_NAME)), metavar="[CONTENDER]...")
@options(jobs=3)
@click.option(
    "--markdown", type=click.Path(path_type=Path), help="Write the short table here, as Markdown."
)
def main(contenders: tuple[str, ...], markdown: Path | None, **shared: Any) -> None:
    """Play every scenario on CONTENDER (default: on each), and print what is found as it comes."""
    wanted = Wanted(**shared)

    def play(run: Run) -> Report:
        chosen = [it for it in CONTENDERS if not contenders or it.name in contenders]
        comparison = Comparison(run, chosen)
        # The longest groups first, so that the end does not wait for one of them.
        plays = [comparison.play(item, group) for group in GROUPS for item in chosen]
        run.play_all(plays, wanted.jobs)
        return comparison.report

    report = wanted.report(Report, play)
    console = Console()
    # In a file or a pipe, without a width, a narrow table would be harder to read.
    report.print(console if console.is_terminal else Console(width=140))
    if markdown:
        markdown.write_text(report.markdown())
    if not report.complete:
        raise SystemExit(1)
