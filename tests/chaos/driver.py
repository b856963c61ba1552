"""Plays a plan: publishes the traffic, does the faults, and waits until everything is answered."""

from __future__ import annotations

import functools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import redis
from celery import Celery, chain, chord
from kombu.exceptions import OperationalError

from benchmarks.playing.process import lives
from tests.chaos.evidence import Answer, Evidence, Published
from tests.chaos.limits import Limits
from tests.chaos.plan import STALLS, VISIBILITY_TIMEOUT_S, Call, Fault, Plan
from tests.chaos.system import System

#: If nothing is answered for this long after the last fault, nothing more will be.
NO_PROGRESS_S = 45.0
#: The same where all that is missing has been lost: longer than Redis takes to deliver again.
GONE_S = 2.0 * VISIBILITY_TIMEOUT_S
_TURN_S = 0.5

Show = Callable[["Driver"], None]


class Driver:
    """One run of a plan on a system."""

    def __init__(self, plan: Plan, system: System) -> None:
        self.plan = plan
        self.system = system
        self.published: list[Published] = []
        self.answers: dict[str, Answer] = {}
        self.phase = "starting"
        self.began = time.monotonic()
        self.errors: list[BaseException] = []

    @property
    def now(self) -> float:
        """Seconds since the traffic began."""
        return time.monotonic() - self.began

    @property
    def calls(self) -> int:
        """How many calls have been published."""
        return sum(len(one.keys) for one in list(self.published))

    def play(self, show: Show) -> Evidence:
        """Play it, show how it goes now and then, and give what is known at the end."""
        self.system.start()
        self.began, self.phase = time.monotonic(), "faults"
        publishers = [functools.partial(self._publish, part.name) for part in self.plan.parts]
        stalls = [fault for fault in self.plan.faults if fault.act in STALLS]
        others = [fault for fault in self.plan.faults if fault.act not in STALLS]
        lanes = [functools.partial(self._harm, faults) for faults in (stalls, others)]
        threads = [
            # Daemons: whoever breaks it off does not wait for what is still planned.
            threading.Thread(target=self._safely, args=(lane,), daemon=True)
            for lane in publishers + lanes
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            self._turn(show)
            if self.errors:
                raise self.errors[0]
        self.phase = "draining"
        self._drain(show)
        return self._evidence()

    def _safely(self, lane: Callable[[], None]) -> None:
        try:
            lane()
        except BaseException as exc:
            self.errors.append(exc)

    def _turn(self, show: Show) -> None:
        time.sleep(_TURN_S)
        self.system.tail.read()
        self.system.supervise()
        self._ask()
        show(self)

    def _ask(self) -> None:
        wanted = [
            task_id
            for one in list(self.published)
            for task_id in one.keys
            if not self.answers.get(task_id, Answer("PENDING")).ready
        ]
        with suppress(redis.RedisError):
            self.answers.update(self.system.answers(wanted))

    @property
    def answered(self) -> int:
        """How many calls have an answer."""
        return sum(answer.ready for answer in self.answers.values())

    def _drain(self, show: Show) -> None:
        """Wait until every call is answered and every body over, or nothing goes on any more."""
        seen, since = -1, time.monotonic()
        while time.monotonic() - since < NO_PROGRESS_S:
            self._turn(show)
            # Deliveries don't count: a call that waits for a lost one is delivered for ever.
            progress = self.answered + self.system.tail.ended
            if self.answered >= self.calls and not self._running():
                return
            if progress != seen:
                seen, since = progress, time.monotonic()
            elif time.monotonic() - since > GONE_S and self._rest_is_gone():
                return

    def _rest_is_gone(self) -> bool:
        """Whether nothing is waited for but what Celery and kombu have lost."""
        limits = Limits(self._evidence())
        return all(
            self.answers.get(task_id, Answer("PENDING")).ready
            or limits.took(one)
            or limits.was_never_sent(one, task_id)
            for one in self.published
            for task_id in one.keys
        )

    def _running(self) -> bool:
        return any(map(lives, list(self.system.tail.busy)))

    def _evidence(self) -> Evidence:
        system = self.system
        return Evidence(
            entries=sorted(system.tail.entries, key=lambda entry: entry["at"]),
            faults=sorted(system.faults, key=lambda fault: fault.began),
            published=list(self.published),
            answers=dict(self.answers),
            rows=system.rows(),
            apart=system.apart(),
            lost=system.lost(),
        )

    # --- faults and traffic ----------------------------------------------------------------------

    def _until(self, at: float) -> None:
        time.sleep(max(0.0, at - self.now))

    def _harm(self, faults: list[Fault]) -> None:
        for fault in faults:
            self._until(fault.at)
            self.system.do(fault)

    def _publish(self, part: str) -> None:
        app = self.system.apps[part]
        app.set_current()
        # Nobody waits here for a result as it comes; an outage would hold up the subscription.
        app.backend.on_task_call = app.backend.remove_pending_result = lambda *_: None
        due = [
            (call.at + copy, call)
            for call in self.plan.calls
            if call.part == part
            for copy in call.copies
        ]
        for at, call in sorted(due, key=lambda item: item[0]):
            self._until(at)
            self.published.append(_insist(app, call))


def _insist(app: Celery, call: Call) -> Published:
    """Publish, as often as it takes until the broker has it."""
    publish = _publisher(app, call)
    while True:
        try:
            return Published(call.part, call.kind, publish(), time.monotonic())
        except (OperationalError, redis.RedisError, OSError):
            time.sleep(0.2)


def _publisher(app: Celery, call: Call) -> Callable[[], dict[str, str]]:
    def arguments(key: str) -> dict[str, Any]:
        return {"key": key, "before": call.before, "after": call.after}

    def charge(number: int, immutable: bool = False) -> Any:
        kwargs = arguments(f"{call.key}-{number}")
        return app.tasks["chaos.charge"].signature(kwargs=kwargs, immutable=immutable)

    tail = app.tasks["chaos.tail"].s
    if call.kind == "chain":

        def publish_chain() -> dict[str, str]:
            result = chain(charge(1), charge(2, immutable=True), tail(), app=app).apply_async()
            first, second = f"{call.key}-1", f"{call.key}-2"
            return {
                result.id: f"tail-{result.id}",
                result.parent.id: second,
                result.parent.parent.id: first,
            }

        return publish_chain
    if call.kind == "chord":

        def publish_chord() -> dict[str, str]:
            header = [charge(1), charge(2), charge(1)]
            result = chord(header, app=app)(tail())
            keys = (f"{call.key}-1", f"{call.key}-2", f"{call.key}-1")
            members: Iterator[Any] = iter(result.parent.results)
            ids = {member.id: key for member, key in zip(members, keys, strict=True)}
            return {result.id: f"tail-{result.id}", **ids}

        return publish_chord
    task_id = str(uuid.uuid4())
    kwargs = arguments(call.key)
    if call.kind == "flaky":
        kwargs["retries"] = call.retries

    def publish() -> dict[str, str]:
        app.tasks[f"chaos.{call.kind}"].apply_async(kwargs=kwargs, task_id=task_id)
        return {task_id: call.key}

    return publish
