"""Plays the situations on one library, in a process of its own; prints JSON lines."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from benchmarks.graveyard.bench import Bench, Seen
from benchmarks.graveyard.situations import SITUATIONS, STRIKES, Situation
from benchmarks.playing.player import end_with_the_run, say

__all__ = ["main"]


def _tell(situation: Situation, begun: float, seen: Seen | None, error: Exception | None) -> None:
    seconds = round(time.monotonic() - begun, 1)
    if seen is not None:
        verdict = "wrong" if seen.faults else "right"
        say("seen", name=situation.name, verdict=verdict, seconds=seconds, **asdict(seen))
        return
    traceback.print_exception(error)
    say("seen", name=situation.name, verdict="error", seconds=seconds, faults=[repr(error)])


def _begin(situation: Situation) -> float:
    say("begun", name=situation.name)
    return time.monotonic()


def _play(bench: Bench, situations: Sequence[Situation]) -> None:
    for situation in (it for it in situations if not it.strike):
        begun = _begin(situation)
        try:
            _tell(situation, begun, situation.play(bench, situation.name), None)  # type: ignore[arg-type]
        except Exception as error:
            _tell(situation, begun, None, error)
    for strike in STRIKES:
        _play_through(bench, strike, [it for it in situations if it.strike == strike])


def _play_through(bench: Bench, strike: str, situations: Sequence[Situation]) -> None:
    waiting = []
    for situation in situations:
        play: Any = situation.play(bench, situation.name)
        begun = _begin(situation)
        try:
            next(play)
            waiting.append((situation, play))
        except Exception as error:
            _tell(situation, begun, None, error)
    if not waiting:
        return
    bench.strike(strike)
    # All go on at one time: each holds bodies, and nothing is over before they are let go.
    with ThreadPoolExecutor(len(waiting)) as pool:
        for done in [pool.submit(_go_on, situation, play) for situation, play in waiting]:
            done.result()


def _go_on(situation: Situation, play: Any) -> None:
    begun = time.monotonic()
    try:
        next(play)
        raise AssertionError("a situation has one strike")
    except StopIteration as end:
        _tell(situation, begun, end.value, None)
    except Exception as error:
        _tell(situation, begun, None, error)


def main() -> int:
    """Entry: ``python -m benchmarks.graveyard.play NAME ...``, in a prepared environment."""
    chosen = [situation for situation in SITUATIONS if situation.name in sys.argv[1:]]
    with Bench(os.environ["PLAYED_SERVER_URL"]) as bench:
        end_with_the_run(bench.close)
        claims = bench.adapter.claims
        for situation in chosen:
            if not claims.issuperset(situation.needs):
                missing = [need for need in situation.needs if need not in claims]
                say("seen", name=situation.name, verdict="not claimed", faults=missing)
        say("server", version=bench.server_version())
        bench.start_worker()
        _play(bench, [it for it in chosen if claims.issuperset(it.needs)])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
