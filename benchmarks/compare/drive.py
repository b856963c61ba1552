"""Plays one group of scenarios on one contender, in a process of its own; prints JSON lines."""

from __future__ import annotations

import os
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from benchmarks.compare.bench import Bench
from benchmarks.compare.contenders import CONTENDERS
from benchmarks.compare.scenarios import GROUPS, SCENARIOS
from benchmarks.playing.player import end_with_the_run, say

__all__ = ["main"]


def _play(bench: Bench, names: tuple[str, ...]) -> None:
    scenarios = {scenario.name: scenario for scenario in SCENARIOS}
    for name in names:
        say("begun", name=name)
        begun = time.monotonic()
        try:
            found = asdict(scenarios[name].play(bench))
        except Exception as error:
            # A scenario that can't be played shows that in its cell; the others still run.
            traceback.print_exc()
            found = {
                "brief": "could not be measured",
                "text": f"could not be measured: {error}",
                "facts": {"error": repr(error)},
            }
        say("seen", name=name, seconds=round(time.monotonic() - begun, 1), **found)


def main() -> int:
    """Entry: ``python -m benchmarks.compare.drive CONTENDER GROUP``, in a prepared environment."""
    contender = next(item for item in CONTENDERS if item.name == sys.argv[1])
    group = next(item for item in GROUPS if item.name == sys.argv[2])
    directory = Path(os.environ["PLAYED_LEDGER"])
    try:
        bench = Bench(contender, directory, os.environ["PLAYED_SERVER_URL"])
    except Exception as error:
        # If a contender can't be imported with this Celery, that is a finding.
        traceback.print_exc()
        say("unavailable", error=f"{type(error).__name__}: {error}")
        return 0
    with bench:
        end_with_the_run(bench.close)
        say("server", version=bench.server_version())
        _play(bench, group.scenarios)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
