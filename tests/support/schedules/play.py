"""One schedule: drawn from a seed, played, and given as a history."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from celery.exceptions import Ignore, Reject, Retry

from celery_idempotent.core.keys import record_key
from celery_idempotent.settings import environment_of, everywhere
from tests.support.histories.checker import Terms, check
from tests.support.histories.operations import Operation
from tests.support.schedules import app as tasks
from tests.support.schedules.app import LEASE_S, app, played_in
from tests.support.schedules.system import Chances, System, call_of, shown
from tests.support.schedules.world import EPOCH_S, Killed, World

__all__ = ["Outcome", "broken", "play"]

#: For how long calls are made and faults happen, and for how long all may then come to its end.
_BUSY_S = 90.0
_QUIET_S = 600.0
#: Stalls and lost connections multiply copies: no schedule is played for longer than so many.
_MOST_DELIVERIES = 400
#: So many more are a circle: forty copies that wait for a body of a minute take 2,000.
_ENDLESS = 8000
#: Which part of all schedules is of tasks that fail open, give up, or have no window.
_OTHERS = 0.3
#: What histories call what hangs on a call's outcome.
_HANGS = {"link": "link", "errback": "link_error"}


@dataclass(frozen=True)
class Outcome:
    """What a schedule came to."""

    seed: int
    #: What was drawn, in a line.
    setting: str
    history: Sequence[Operation]
    deliveries: int
    #: Whether it went on without end.
    endless: bool = False
    terms: Terms = field(default_factory=Terms)


class _Failed(Exception):
    """What a body raises."""


class _Bodies:
    """What bodies do: drawn as they run."""

    def __init__(self, system: System, world: World, longest: float) -> None:
        self._system = system
        self._world = world
        self._longest = longest
        self._runs = 0
        #: How likely each end of a body is.
        self._ends = {
            "return": 5.0,
            "raise": world.random.choice((0.5, 3.0)),
            "retry": world.random.choice((0.0, 2.0)),
            "ignore": world.random.choice((0.0, 1.0)),
            "reject": world.random.choice((0.0, 1.0)),
            "replace": world.random.choice((0.0, 1.0)),
        }

    def __call__(self, task: Any, key: str) -> str:
        self._runs += 1
        run = f"run {self._runs}"
        system, chance = self._system, self._world.random
        call = call_of(task.request.id, task.request.replaced_task_nesting)
        about = {"call": call, "key": key, "run": run}
        token = task.idempotency.token
        if token is not None:
            call_key = task._key_of(task.request, (key,), {}, task.request.id)
            name = record_key(environment_of(app).prefix, call_key)
            system.runs[name, token] = run, call, key
        guarded = "" if token is not None else "open"
        system.note("began", value=str(task.request.retries), state=guarded, **about)
        parts = chance.choice((1, 2, 3))
        longest = self._longest if chance.random() < 0.5 else 1.0
        for _ in range(parts):
            self._world.pause(chance.uniform(0.0, longest / parts))
            system.point()
        end = chance.choices(list(self._ends), list(self._ends.values()))[0]
        if end == "replace":
            # Its replacement may be out before it is known how it ended.
            system.note("ended", state="replaced", value=run, **about)
        try:
            result = self._end(end, task, run)
        except BaseException as exc:
            if isinstance(exc, Killed) or (end == "replace" and isinstance(exc, Ignore)):
                raise
            system.note("ended", state=_word_for(exc), value=shown(exc), **about)
            raise
        system.note("ended", state="returned", value=run, **about)
        return result

    def _end(self, end: str, task: Any, run: str) -> str:
        if end == "raise":
            raise _Failed(run)
        if end == "retry":
            countdown = self._world.random.choice((0, 1, 5, 30))
            raise task.retry(countdown=countdown, exc=_Failed(run))
        if end == "ignore":
            raise Ignore(run)
        if end == "reject":
            raise Reject(run, requeue=False)
        if end == "replace":
            raise task.replace(app.tasks["schedules.other"].si(run))
        return run


def _word_for(exc: BaseException) -> str:
    if isinstance(exc, Retry):
        return "retried"
    if isinstance(exc, Ignore):
        return "ignored"
    if isinstance(exc, Reject):
        return "requeued" if exc.requeue else "rejected"
    return "raised"


def play(seed: int) -> Outcome:
    """Play the schedule of that seed: the same each time, on the same code."""
    world = World(seed)
    chance = world.random
    # Every fifth schedule is of calls that are refused.
    names = list(tasks.TASKS if seed % 5 else tasks.REFUSING)
    name = chance.choice(names)
    # By chance of its own: the other schedules are as they were before there were these tasks.
    other = random.Random(f"{seed} plays another task")
    if other.random() < _OTHERS:
        name = other.choice(list(tasks.OTHERS))
    task = app.tasks[f"schedules.{name}"]
    visibility = chance.choice((0.0, 8.0, 20.0, 40.0))
    chances = _chances(world, 2 * visibility or 3600.0)
    longest = chance.choice((2.0, 15.0, 60.0))
    plan = _plan(world)
    with _silently(), world.instead():
        system = System(world, app, visibility, chances, quiet=_BUSY_S)
        bodies = _Bodies(system, world, longest)
        with everywhere(system.store), played_in(system, bodies):
            for at, number, key, options in plan:
                world.at(at, lambda args=(number, key, options): _call(system, task, *args))
            endless = _is_endless(world, system)
            for number in range(len(plan)):
                _look(system, f"call {number + 1}")
    setting = (
        f"{task.name}, visibility {visibility:g}, bodies up to {longest:g} s, {len(plan)} calls, "
        f"{chances}"
    )
    options = tasks.OTHERS.get(name, {})
    terms = Terms(
        fails_open=options.get("idempotency_on_store_error") == "run",
        frees=options.get("idempotency_ttl") == 0,
        in_turn=options.get("idempotency_after_wait") == "run",
    )
    return Outcome(seed, setting, tuple(system.history), system.deliveries, endless, terms)


def broken(outcome: Outcome) -> list[str]:
    """Give which promises a schedule breaks."""
    found = [str(one) for one in check(outcome.history, LEASE_S, terms=outcome.terms)]
    return [*found, "its messages go round without end"] if outcome.endless else found


def _chances(world: World, horizon: float) -> Chances:
    def some(most: float) -> float:
        return world.random.choice((0.0, most / 4, most))

    return Chances(
        kill_child=some(0.02),
        kill_worker=some(0.005),
        stall=some(0.02),
        request_lost=some(0.04),
        answer_lost=some(0.04),
        refused=some(0.03),
        disconnect=some(0.004),
        freeze_store=world.random.choice((0.0, 0.0, 0.002)),
        published_twice=world.random.choice((0.0, 0.3)),
        # Not for so long that a copy comes when nothing is known of its call any more.
        stalls=world.random.choice(((0.5, LEASE_S), (LEASE_S, min(4 * LEASE_S, horizon * 0.75)))),
    )


def _plan(world: World) -> list[tuple[float, int, str, dict[str, Any]]]:
    """Draw the calls: when, which, of which key, and with what."""
    chance = world.random
    plan = []
    keys = chance.choice((1, 1, 2))
    within = chance.choice((0.0, 5.0, 60.0))
    for number in range(1, chance.choice((1, 2, 2, 3, 4)) + 1):
        options: dict[str, Any] = {}
        if chance.random() < 0.5:
            options["link"] = app.tasks["schedules.link"].s()
        if chance.random() < 0.5:
            options["link_error"] = app.tasks["schedules.errback"].s()
        if chance.random() < 0.15:
            options["countdown"] = chance.choice((5, 30, 60))
        at = chance.uniform(0.0, within)
        plan.append((at, number, f"key {chance.randint(1, keys)}", options))
    return plan


def _call(system: System, task: Any, number: int, key: str, options: dict[str, Any]) -> None:
    call = f"call {number}"
    hangs = [kind for kind, name in _HANGS.items() if name in options]
    system.note("published", call=call, key=key, value=" ".join(hangs), by="caller")
    task.apply_async((key,), task_id=call, **options)


def _is_endless(world: World, system: System) -> bool:
    """Let it happen until nothing is left to do; whether it does not come to that."""
    world.run(EPOCH_S + _BUSY_S, is_over=lambda: system.deliveries > _MOST_DELIVERIES)
    system.calm_down()
    until, most = world.now + _QUIET_S, system.deliveries + _ENDLESS
    while world.now < until and system.deliveries < most:
        if system.is_idle:
            world.run(world.now + 2 * LEASE_S)
            return False
        world.run(min(world.now + 5.0, until), is_over=lambda: system.deliveries >= most)
    return True


def _look(system: System, call: str) -> None:
    kept = system.results.get_task_meta(call, cache=False)
    system.note("left", call=call, state=kept["status"], value=shown(kept["result"]), by="caller")


@contextmanager
def _silently() -> Iterator[None]:
    """Log nothing of all that goes wrong."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
