"""Schedules of calls of which only the newest waits: each brings a later state of a thing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from celery_idempotent import IdempotentTask, OutcomeUnknown
from celery_idempotent.settings import everywhere
from tests.support.schedules.app import app, played_in
from tests.support.schedules.play import _is_endless, _silently
from tests.support.schedules.system import Chances, System
from tests.support.schedules.world import World

__all__ = ["Played", "broken", "play"]

_BUSY_S = 90.0
_ANSWERED = ("SUCCESS", "FAILURE")


@app.task(
    bind=True,
    base=IdempotentTask,
    name="schedules.newest",
    idempotency_key="{key}",
    idempotency_ttl=0,
    idempotency_after_wait="last",
    shared=False,
)
def newest(self: Any, key: str, version: int) -> Any:
    return _index(self, version)


app.finalize()
_index: Any = None


@dataclass
class Played:
    """What a schedule came to."""

    seed: int
    setting: str
    #: The calls in the order in which the store has seen them first.
    came: list[str] = field(default_factory=list)
    #: When each body began and ended, and its call; ``None``: it was killed.
    runs: list[tuple[float, float | None, str]] = field(default_factory=list)
    #: The state of each call at the end, and its result.
    states: dict[str, tuple[str, Any]] = field(default_factory=dict)
    deliveries: int = 0
    #: Whether a process that ran a body was killed, or its end was not recorded at once.
    is_hurt: bool = False
    endless: bool = False


class _Bodies:
    def __init__(self, world: World, system: System, longest: float, fails: float) -> None:
        self.world, self.system = world, system
        self.longest, self.fails = longest, fails
        self.runs: list[list[Any]] = []

    def __call__(self, task: Any, version: int) -> int:
        call = task.request.id
        run: list[Any] = [self.world.now, None, call]
        self.runs.append(run)
        for _ in range(3):
            self.world.pause(self.world.random.uniform(0.0, self.longest / 3))
            self.system.point()
        run[1] = self.world.now
        if self.world.random.random() < self.fails:
            raise ValueError(version)
        return version


def play(seed: int) -> Played:
    """Play the schedule of that seed."""
    global _index
    world = World(seed)
    chance = world.random
    kills = seed % 2 == 0

    def some(most: float) -> float:
        return chance.choice((0.0, most / 4, most))

    visibility = chance.choice((0.0, 8.0, 20.0))
    chances = Chances(
        kill_child=some(0.03) if kills else 0.0,
        kill_worker=some(0.01) if kills else 0.0,
        answer_lost=some(0.04),
        request_lost=some(0.04),
        refused=some(0.03),
        disconnect=some(0.004) if kills else 0.0,
    )
    longest = chance.choice((0.5, 3.0, 15.0))
    within = chance.choice((0.0, 2.0, 30.0))
    calls = chance.choice((2, 3, 4, 6))
    played = Played(seed, f"visibility {visibility:g}, bodies up to {longest:g} s, {chances}")
    with _silently(), world.instead():
        system = System(world, app, visibility, chances, quiet=_BUSY_S)
        bodies = _Bodies(world, system, longest, chance.choice((0.0, 0.3)))
        real = system.store.real.claim

        def claim(key: str, ask: Any) -> Any:
            verdict = real(key, ask)
            owner = ask.candidate.owner_id
            if owner not in played.came:
                played.came.append(owner)
            return verdict

        system.store.real.claim = claim  # type: ignore[method-assign]
        system.store.claim = system.store._over_the_wire("claim", claim)
        _index = bodies
        with everywhere(system.store), played_in(system, None):
            for number in range(calls):
                version = number + 1

                def call(version: int = version) -> None:
                    newest.apply_async(("thing", version), task_id=f"call {version}")

                world.at(chance.uniform(0.0, within), call)
            played.endless = _is_endless(world, system)
            for number in range(calls):
                meta = system.results.get_task_meta(f"call {number + 1}", cache=False)
                played.states[f"call {number + 1}"] = meta["status"], meta["result"]
    played.runs = [(begun, ended, call) for begun, ended, call in bodies.runs]
    played.deliveries = system.deliveries
    played.is_hurt = any(one.what == "killed" for one in system.history)
    return played


def broken(played: Played) -> list[str]:
    """Give which promises a schedule breaks."""
    found = ["its messages go round without end"] if played.endless else []
    for call, (state, _) in played.states.items():
        if state not in _ANSWERED:
            found.append(f"{call} is not answered: {state}")
    runs: Sequence[tuple[float, float | None, str]] = played.runs
    for (begun, ended, call), (next_begun, _, next_call) in pairwise(runs):
        # Of a run that was killed, the lease has to be over, unless its parent saw it die.
        if ended is not None and next_begun < ended:
            found.append(f"{next_call} began at {next_begun} while {call} ran until {ended}")
        assert begun <= next_begun
    if played.came:
        last = played.came[-1]
        unknown = isinstance(played.states[last][1], OutcomeUnknown)  # cut off too often
        if not unknown and last not in [call for _, _, call in runs]:
            found.append(f"{last} came last and did not run: {runs}")
        if not played.is_hurt and runs and runs[-1][2] != last:
            found.append(f"{last} came last, and {runs[-1][2]} ran last")
        places = [played.came.index(call) for _, _, call in runs]
        if not played.is_hurt and places != sorted(places):
            found.append(f"an older call ran after a newer one: {runs}")
    return found


def main(first: int, last: int) -> int:
    """Play the schedules of these seeds, and show the first that breaks a promise."""
    runs = calls = 0
    for seed in range(first, last + 1):
        played = play(seed)
        found = broken(played)
        runs, calls = runs + len(played.runs), calls + len(played.states)
        if found:
            sys.stdout.write("\n  ".join(map(str, (seed, played, *found, ""))))
            return 1
    sys.stdout.write(f"{last - first + 1} schedules, {calls} calls, {runs} runs, nothing found\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
