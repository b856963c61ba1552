"""Run the rows and print a line a case: ``python -m tests.ecosystem``; ``--help`` has options."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.ecosystem import page
from tests.ecosystem.catalogue import NOT_RUN, ROWS, Row
from tests.ecosystem.environments import ROOT, python_of

#: A row that takes longer hangs.
LONGEST_S = 240
_printing = threading.Lock()


def main() -> int:
    """Return what the process is to end with."""
    options = _options()
    chosen = [
        row
        for row in ROWS
        if (options.all or options.k or row.usual)
        and (options.k or "").lower() in f"{row.adapter} {row.title}".lower()
    ]
    if not chosen:
        print(f"no row has {options.k!r} in its name: {', '.join(row.adapter for row in ROWS)}")
        return 2
    began = time.monotonic()
    pythons = _environments(sorted({row.group for row in chosen}))
    with ThreadPoolExecutor(options.jobs) as pool:
        answers = list(pool.map(lambda row: _show(row, pythons[row.group]), chosen))
    found = {row.adapter: answer for row, answer in zip(chosen, answers, strict=True)}
    for row in ROWS:
        if row not in chosen and not options.k:
            print(f"{_plain(row.title):42} left out here: make ecosystem ALL=1")
    for left in NOT_RUN:
        print(f"{_plain(left.title):42} not run: {left.why}")
    bad = [row for row in chosen if not page.is_right(found[row.adapter])]
    for row in bad:
        for case, outcome in found[row.adapter]["cases"].items():
            if outcome != "ok":
                print(f"NOT RIGHT: {row.adapter}, {case}: {outcome}")
    print(f"{len(chosen) - len(bad)} of {len(chosen)} in {time.monotonic() - began:.0f} s")
    if options.record:
        page.record(found)
    return bool(bad)


def _options() -> Any:
    parser = argparse.ArgumentParser(prog="python -m tests.ecosystem")
    parser.add_argument(
        "--all", action="store_true", help="also what is left out where time is short"
    )
    parser.add_argument("--record", action="store_true", help="write the page of the docs anew")
    parser.add_argument("-k", metavar="TEXT", help="only the rows that have this in their name")
    parser.add_argument("--jobs", type=int, default=2, help="how many rows at once")
    return parser.parse_args()


def _environments(groups: list[str]) -> dict[str, Path]:
    made = {}
    for group in groups:
        began = time.monotonic()
        made[group] = python_of(group)
        print(f"environment {group}: {time.monotonic() - began:.0f} s", flush=True)
    return made


def _show(row: Row, python: Path) -> dict[str, Any]:
    began = time.monotonic()
    answer = _run(row, python)
    with _printing:
        for case, outcome in answer["cases"].items():
            print(f"{_plain(row.title):42} {case:28} {outcome}", flush=True)
        print(f"{_plain(row.title):42} took {time.monotonic() - began:.0f} s", flush=True)
        if answer["log"]:
            print(answer["log"], flush=True)
    return answer


def _run(row: Row, python: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder, "result"), Path(folder, "log")
        command = [str(python), "-m", "tests.ecosystem.row", row.adapter, str(result)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        with log.open("wb") as output:
            started = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output
            )
            try:
                ended = f"it ended with {started.wait(LONGEST_S)} before its last case"
            except subprocess.TimeoutExpired:
                ended = f"it did not end within {LONGEST_S} s"
                started.send_signal(signal.SIGTERM)  # it ends what it has started
                started.wait()
        answer: dict[str, Any] = {"cases": {"the row": ended}, "versions": {}}
        if result.exists():
            answer = json.loads(result.read_text("utf-8"))
        right = page.is_right(answer)
        return {
            "version": answer["versions"].get(row.package, ""),
            "cases": answer["cases"],
            "log": "" if right else log.read_text("utf-8", "replace")[-8000:],
        }


def _plain(title: str) -> str:
    return title.replace("``", "")


if __name__ == "__main__":
    sys.exit(main())
