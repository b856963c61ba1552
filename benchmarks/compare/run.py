"""Plays every scenario on every contender, and prints the findings as they come."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from rich.console import Console

import celery_idempotent
from benchmarks.compare.contenders import CONTENDERS, Contender
from benchmarks.compare.report import Report
from benchmarks.compare.scenarios import GROUPS, SCENARIOS, Group
from celery_idempotent.testing.servers import RedisServer

__all__ = ["main"]

_PROJECT = Path(__file__).resolve().parents[2]


class Comparison:
    """One run: its report, which several threads fill, and its progress lines."""

    def __init__(self, console: Console, directory: Path) -> None:
        self.report = Report(
            measured_on=datetime.date.today().isoformat(),
            versions={
                "Python": platform.python_version(),
                "Celery": metadata.version("celery"),
                "kombu": metadata.version("kombu"),
                "redis-py": metadata.version("redis"),
            },
        )
        self._console = console
        self._directory = directory
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        self._titles = {scenario.name: scenario.title for scenario in SCENARIOS}

    def say(self, text: str) -> None:
        """Print one progress line."""
        seconds = time.monotonic() - self._begun
        self._console.print(
            f"{seconds:6.1f} s  {text}", markup=False, highlight=False, soft_wrap=True
        )

    def play(self, contender: Contender, group: Group) -> None:
        """Play a group on a contender, with a server and a process of its own."""
        directory = self._directory / f"{contender.name}-{group.name}"
        directory.mkdir(parents=True)
        with RedisServer() as server, open(directory / "driver.log", "w") as log:
            environment = {
                **os.environ,
                "COMPARE_SERVER_URL": server.url().rsplit("/", 1)[0],
                "COMPARE_LEDGER": str(directory),
                "COMPARE_FAULTS": "1" if group.redelivers else "0",
                "COMPARE_ACKS_LATE": "1" if group.acks_late else "0",
            }
            driver = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.compare.drive", contender.name, group.name],
                cwd=_PROJECT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            try:
                assert driver.stdout is not None
                for line in driver.stdout:
                    self._note(contender, json.loads(line))
            finally:
                driver.terminate()
                driver.wait()

    def _note(self, contender: Contender, line: dict[str, object]) -> None:
        with self._lock:
            kind = line.pop("kind")
            if kind == "server":
                name, version = str(line["version"]).split()
                self.report.versions[name] = version
            elif kind == "unavailable":
                self.report.unavailable[contender.name] = str(line["error"])
                self.say(f"{contender.title}: could not be run: {line['error']}")
            else:
                scenario = str(line.pop("scenario"))
                self.report.findings.setdefault(contender.name, {})[scenario] = line
                self.say(f"{contender.title}, {self._titles[scenario]}: {line['text']}")


def _version(contender: Contender) -> str:
    try:
        return metadata.version(contender.distribution)
    except metadata.PackageNotFoundError:
        # Our own code also runs from a checkout; a missing peer is found when it is imported.
        ours = contender.distribution == "celery-idempotent"
        return celery_idempotent.__version__ if ours else "(not installed)"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument(
        "contenders", nargs="*", metavar="CONTENDER", help=f"of {', '.join(names)} (default: all)"
    )
    parser.add_argument("--jobs", type=int, default=3, help="how many at a time (default: 3)")
    parser.add_argument("--json", type=Path, help="write all findings with their numbers here")
    parser.add_argument("--markdown", type=Path, help="write the short table here")
    parser.add_argument("--rst", type=Path, help="write the documentation's tables here")
    parser.add_argument("--logs", type=Path, help="keep ledgers and workers' logs here")
    parser.add_argument(
        "--render", type=Path, metavar="JSON", help="run nothing: the tables of an earlier --json"
    )
    arguments = parser.parse_args(argv)
    unknown = set(arguments.contenders) - set(names)
    if unknown:
        parser.error(f"no such contender: {', '.join(sorted(unknown))}")
    return arguments


def _measure(arguments: argparse.Namespace, console: Console) -> Report:
    chosen = [
        item for item in CONTENDERS if not arguments.contenders or item.name in arguments.contenders
    ]
    with tempfile.TemporaryDirectory(prefix="compare-") as private:
        comparison = Comparison(console, arguments.logs or Path(private))
        comparison.report.contenders = {item.name: _version(item) for item in chosen}
        # The longest groups first, so that the end does not wait for one of them.
        jobs = [(contender, group) for group in GROUPS for contender in chosen]
        with ThreadPoolExecutor(max_workers=arguments.jobs) as pool:
            try:
                for done in [pool.submit(comparison.play, *job) for job in jobs]:
                    done.result()
            except BaseException:
                # Ctrl-C reaches the drivers, too; after it no further one may begin.
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return comparison.report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if every cell could be measured."""
    arguments = _arguments(argv)
    console = Console()
    if arguments.render:
        report = Report(**json.loads(arguments.render.read_text()))
    else:
        report = _measure(arguments, console)
    # In a file or a pipe, without a width, a narrow table would be harder to read.
    report.print(console if console.is_terminal else Console(width=140))
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(report.markdown())
    if arguments.rst:
        arguments.rst.write_text(report.rst())
    return 0 if report.complete else 1
