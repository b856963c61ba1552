"""One library under test: its workers, callers, the copies of its messages, and what is seen."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from benchmarks.graveyard.adapters import Adapter
from benchmarks.playing.bench import (
    PATIENCE_S,
    POLL_S,
    SETTLED_S,
    BenchError,
    Call,
    PlayedBench,
)
from benchmarks.playing.process import PROJECT

__all__ = ["Bench", "Message", "Seen"]

#: How long it takes a published call at most to reach a worker.
MET_S = 8.0
LONG_S = 4.5
#: As many bodies as the situations hold at one time, and some.
CONCURRENCY = 12
#: A queue that no worker takes from: what is called there stays queued.
ASIDE = "aside"


def _effects(number: int) -> str:
    return f"{number} effect" if number == 1 else f"{number} effects"


@dataclass(frozen=True)
class Message:
    """A task's message, as it lies in the broker."""

    call: Call
    raw: dict[str, Any]


@dataclass
class Seen:
    """What one situation showed."""

    #: How often the order was charged.
    effects: int
    #: What each caller got, in words.
    callers: list[str]
    #: What is wrong with it; nothing, if it was right.
    faults: list[str] = field(default_factory=list)

    def must(self, holds: bool, fault: str) -> Seen:
        """Add a fault unless this holds."""
        if not holds:
            self.faults.append(fault)
        return self


class Bench(PlayedBench):
    """A library on a server of its own, with its adapter."""

    def __init__(self, server_url: str) -> None:
        # Not at the top: an app is made, and signals are connected.
        self.shop: Any = importlib.import_module("benchmarks.graveyard.shop")
        super().__init__("benchmarks.graveyard.shop", self.shop.app, self.shop.ledger, server_url)
        self.adapter: Adapter = self.shop.adapted
        #: When runs ended that could not say so, by run.
        self._killed: dict[str, float] = {}

    def refuses(self, error: str, at_the_call: bool) -> bool:
        """The adapter names the errors, whenever they come."""
        return error in self.adapter.refusals

    # -- workers -----------------------------------------------------------------------------------

    def start_worker(self, concurrency: int = CONCURRENCY) -> int:
        """Start a prefork worker, and return its pid once it takes messages."""
        return super().start_worker(concurrency)

    def kill_worker(self, pid: int) -> None:
        """SIGKILL a worker with its whole pool, as a lost machine would."""
        super().kill_worker(pid)
        now = time.monotonic()
        for run in self.ledger.runs():
            if run.worker_pid == pid and run.ended is None:
                self._killed[run.run_id] = now

    def strike(self, fault: str) -> None:
        """Let the fault strike that some situations wait for."""
        if fault == "time":
            # Longer than every lock's time, lease and visibility timeout of the suite.
            self.let_time_pass(LONG_S)
        else:
            self.kill_all()
            self.start_worker()

    @staticmethod
    def let_time_pass(seconds: float) -> None:
        """Let seconds pass: that is the situation, and nothing tells when it is there."""
        time.sleep(seconds)

    # -- calls -------------------------------------------------------------------------------------

    def script(self, order: str, **plan: Any) -> None:
        """Say what the bodies of an order do: ``work`` for seconds, and how many of the first
        runs end by ``retries``, ``fails`` or ``dies`` (SIGKILL), or call the task ``again``.
        """
        (self.ledger.directory / f"script-{order}").write_text(json.dumps(plan))

    def hold(self, order: str) -> None:
        """Let the bodies of an order wait."""
        self.ledger.switch(f"hold-{order}")

    def let(self, *orders: str) -> None:
        """Let the bodies of these orders go on."""
        for order in orders:
            self.ledger.switch(f"hold-{order}", on=False)

    def call(self, task: str, order: Any, *data: Any, **options: Any) -> Call:
        """Call a task, and record what the caller got at once."""
        args = (order, *data)
        return self.attempt(lambda: self.shop.tasks[task].apply_async(args, **options))

    def call_by_name(self, task: str, order: str) -> Call:
        """Call a task as a producer does that does not have its code."""
        name = f"graveyard.{task}"
        return self.attempt(lambda: self.app.send_task(name, (order,)))

    def call_at_once(self, count: int, task: str, order: str) -> list[Call]:
        """Make the same call so many times at one moment, each on a connection of its own."""
        # Not in forked processes: Celery's clean-up after a fork can wait for a lock for ever.
        barrier = threading.Barrier(count)

        def caller(_: int) -> Call:
            barrier.wait(PATIENCE_S)
            return self.call(task, order)

        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(caller, range(count)))

    def call_and_die(self, task: str, order: str) -> None:
        """Make a call in a process that dies as its message is about to be sent."""
        code = (
            "import os; from celery import signals; from benchmarks.graveyard import shop; "
            "signals.before_task_publish.connect(lambda **_: os._exit(7), weak=False); "
            f"shop.tasks[{task!r}].apply_async(({order!r},))"
        )
        command = [sys.executable, "-c", code]
        # Not to our own output, on which the run waits.
        caller = subprocess.run(command, cwd=PROJECT, stdout=subprocess.DEVNULL, timeout=PATIENCE_S)
        if caller.returncode != 7:
            raise BenchError("the caller did not die at its message")

    # -- messages ----------------------------------------------------------------------------------

    def call_aside(self, task: str, order: str, **options: Any) -> Message:
        """Make a call whose message no worker takes until it is delivered."""
        return self.take_aside(self.call(task, order, queue=ASIDE, **options))

    def take_aside(self, call: Call) -> Message:
        """Return a call's message from the queue that no worker takes from."""
        queued: Any = self._broker.lrange(ASIDE, 0, -1)
        for raw in queued:
            message = json.loads(raw)
            if message["headers"]["id"] == call.task_id:
                self._broker.lrem(ASIDE, 1, raw)
                return Message(call, message)
        raise BenchError(f"there is no message of {call}")

    def deliver(self, message: Message, copies: int = 1, redelivered: bool = False) -> None:
        """Put copies of a message into the queue that the worker takes from."""
        for _ in range(copies):
            raw = json.loads(json.dumps(message.raw))
            raw["properties"]["delivery_tag"] = str(uuid.uuid4())
            raw["properties"]["delivery_info"]["routing_key"] = "celery"
            if redelivered:
                raw["headers"]["redelivered"] = True
                raw["properties"]["delivery_info"]["redelivered"] = True
            self._broker.lpush("celery", json.dumps(raw))

    def empty_queue(self) -> None:
        """Delete what is queued aside, as an operator's purge does."""
        self._broker.delete(ASIDE)

    # -- what is seen ------------------------------------------------------------------------------

    def runs(self, order: str) -> int:
        """How many bodies began."""
        return len(self.ledger.runs(order))

    def wait_for_runs(self, order: str, count: int = 1) -> None:
        """Return once so many bodies began."""
        self.wait_for(lambda: self.runs(order) >= count, f"{count} runs of {order} began")

    def wait_until_met(self, *calls: Call) -> None:
        """Return once a worker has begun with each of these; not for ever, as some may be lost."""
        ids = {call.head_id or call.task_id for call in calls} - {None}
        deadline = time.monotonic() + MET_S
        while time.monotonic() < deadline:
            if ids <= {event["task_id"] for event in self.ledger.events("executing")}:
                break
            time.sleep(POLL_S)
        self.let_time_pass(0.5)

    def wait_until_over(self, order: str, count: int = 1) -> None:
        """Return once so many bodies ended, and what follows them is done."""

        def is_over() -> bool:
            return sum(run.ended is not None for run in self.ledger.runs(order)) >= count

        self.wait_for(is_over, f"{count} runs of {order} ended")
        self.let_time_pass(SETTLED_S)

    def most_at_once(self, order: str) -> int:
        """How many bodies of an order ran at one time."""
        runs = self.ledger.runs(order)
        ended = {run.run_id: run.ended for run in runs} | self._killed
        return max(
            (
                sum(run.begun <= start < (ended.get(run.run_id) or math.inf) for run in runs)
                for start in [run.begun for run in runs]
            ),
            default=0,
        )

    def judge(
        self,
        order: str,
        first: Call,
        *others: Call,
        effects: int | None = 1,
        fails: bool = False,
    ) -> Seen:
        """Wait for the answers, and see whether there were so many effects (None: any number) and
        all were answered.

        The first caller must get a result, or an error of the task's own if it is to fail; each
        other one a result, or be told that its call is a duplicate.
        """
        answers = self.answers(first, *others)
        charged = len(self.ledger.charges(order))
        seen = Seen(charged, [str(answer) for answer in answers])
        seen.must(effects in (None, charged), f"{_effects(charged)} instead of {effects}")
        wanted = ("error",) if fails else ("result",)
        seen.must(answers[0].kind in wanted, f"the first caller got {answers[0]}")
        for answer in answers[1:]:
            seen.must(answer.kind in ("result", "refused"), f"another caller got {answer}")
        return seen
