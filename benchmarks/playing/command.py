"""What the commands of both have alike: options, and what becomes of a report."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import click

from benchmarks.playing.run import LIMIT_S, Run

__all__ = ["Wanted", "options"]

_FILE: Any = click.Path(path_type=Path)


class Written(Protocol):
    """A report, which is a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def rst(self) -> str:
        """The part of the documentation."""


R = TypeVar("R", bound=Written)
F = TypeVar("F", bound=Callable[..., Any])


def options(jobs: int) -> Callable[[F], F]:
    """Add the options to a command; they are the fields of :class:`Wanted`."""
    made = [
        click.option("--jobs", default=jobs, show_default=True, help="How many at a time."),
        click.option(
            "--limit", default=LIMIT_S, show_default=True, help="Seconds that each may take."
        ),
        click.option("--json", type=_FILE, help="Write all that was seen here."),
        click.option("--rst", type=_FILE, help="Write the documentation's part here."),
        click.option(
            "--logs",
            type=click.Path(path_type=Path, file_okay=False),
            help="Keep ledgers and logs in this directory, which has to be empty.",
        ),
        click.option(
            "--render",
            type=click.Path(path_type=Path, exists=True),
            metavar="JSON",
            help="Play nothing: read an earlier --json.",
        ),
    ]

    def add(command: F) -> F:
        for option in reversed(made):
            command = option(command)
        return command

    return add


@dataclass(frozen=True)
class Wanted:
    """What was asked for by these options."""

    jobs: int
    limit: float
    json: Path | None
    rst: Path | None
    logs: Path | None
    render: Path | None

    def report(self, kind: Callable[..., R], play: Callable[[Run], R]) -> R:
        """Play, or read what was seen earlier; write it where it is to be kept.

        Raises:
            UsageError: the directory for logs has some.
        """
        if self.logs and self.logs.exists() and any(self.logs.iterdir()):
            raise click.UsageError(f"{self.logs} is not empty: name a directory that is.")
        if self.render:
            report = kind(**json.loads(self.render.read_text()))
        else:
            with tempfile.TemporaryDirectory(prefix="played-") as private:
                report = play(Run(self.logs or Path(private), self.limit))
        if self.json:
            self.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
        if self.rst:
            self.rst.write_text(report.rst())
        return report
