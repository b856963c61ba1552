"""Two sides of one library: its own tasks and ours, each with a worker, played case by case."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from celery import Celery, signals
from celery.result import AsyncResult, EagerResult

from tests.support.ledger import Ledger
from tests.support.waiting import eventually
from tests.support.workers import Worker

#: Where both sides find their server; the process that plays sets it before it imports them.
SERVER_VARIABLE = "PEERS_SERVER_URL"
LEDGER_VARIABLE = "PEERS_LEDGER"
#: What a lock is given in cases where its time runs out.
SHORT_S = 2
#: Our lease in all cases: shorter than the locks of a side whose worker was killed.
LEASE_S = 5


def url(database: int) -> str:
    """A database of the private server."""
    return f"{os.environ.get(SERVER_VARIABLE, 'redis://127.0.0.1:1')}/{database}"


def make_app(name: str, first_database: int, **settings: Any) -> Celery:
    """Make the app of a side, with databases of its own."""
    app = Celery(name, broker=url(first_database), backend=url(first_database + 1))
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_transport_options={"visibility_timeout": 3600},
        peers_ledger=f"{os.environ.get(LEDGER_VARIABLE, '/nowhere/ledger')}-{name}",
        **settings,
    )
    app.set_current()
    return app


def ours(**settings: Any) -> Celery:
    """Make our app: a lock's window, so that the next call runs once the first has ended."""
    return make_app(
        "ours",
        4,
        idempotency_store_url=url(6),
        idempotency_ttl=0,
        idempotency_lease=LEASE_S,
        **settings,
    )


def work(task: Any, order: str, fails: bool = False) -> str:
    """Stand in for every body: it waits until the case lets it go on, and says who ran."""
    ledger = Ledger(task.app.conf.peers_ledger)
    ledger.write("start", order=order, id=task.request.id)
    try:
        if not task.request.called_directly:
            ledger.hold(order)
        if fails:
            raise ValueError("it failed")
        return str(task.request.id)
    finally:
        ledger.write("end", order=order, id=task.request.id)


@signals.worker_ready.connect
def _ready(sender: Any, **_: Any) -> None:
    if "peers_ledger" in sender.app.conf:
        Ledger(sender.app.conf.peers_ledger).write("ready", node=sender.hostname)


@dataclass(frozen=True)
class Call:
    """What a caller got at once."""

    #: "published", "attached" (the result of an earlier call), "refused", or "nothing".
    kind: str
    task_id: str | None = None
    error: Exception | None = None


class Side:
    """One library, or ours, as a case plays it.

    Args:
        app: its app; ``<module>:<attribute>`` is where a worker finds it.
        directory: its worker's log goes there.
    """

    def __init__(self, app: Celery, where: str, directory: Path) -> None:
        self.app = app
        self.is_ours = app.main == "ours"
        self.ledger = Ledger(app.conf.peers_ledger)
        self._where = where
        self._ids: dict[str, list[str]] = {}
        self._redis = redis.Redis.from_url(app.conf.result_backend)
        self.worker: Worker | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def start_worker(self) -> None:
        """Start a worker, and return once it takes messages."""
        settings = {"test_ledger": str(self.ledger.path)}
        self.worker = Worker(settings, app=self._where, concurrency=4).wait_until_ready()

    def kill_worker(self) -> None:
        """SIGKILL it with its pool, as a lost machine would."""
        assert self.worker is not None
        self.worker.kill()
        self.worker = None
        # What it held would come back after an hour, and no case waits for that.
        with redis.Redis.from_url(self.app.conf.broker_url) as broker:
            broker.delete("unacked", "unacked_index")

    def close(self) -> None:
        """End it all."""
        if self.worker is not None:
            self.worker.kill()
        self._redis.close()

    # -- calls -------------------------------------------------------------------------------------

    def call(self, task: str, order: str, /, **options: Any) -> Call:
        """Call a task for an order, and see what the caller gets at once."""
        arguments = options.pop("args", (order,))
        kwargs = options.pop("kwargs", {})
        try:
            result = self.app.tasks[task].apply_async(arguments, kwargs, **options)
        except Exception as error:
            return Call("refused", error=error)
        if result is None or (isinstance(result, EagerResult) and result.result is None):
            return Call("nothing")
        known = self._ids.setdefault(order, [])
        if result.id in known:
            return Call("attached", result.id)
        known.append(result.id)
        return Call("published", result.id)

    def let(self, *orders: str) -> None:
        """Let the bodies of these orders run to their ends, now or later."""
        for order in orders:
            self.ledger.open(order)

    def runs(self, order: str) -> int:
        """How many bodies began."""
        return self.ledger.count("start", order=order)

    def wait_for_runs(self, order: str, number: int = 1) -> None:
        """Return once so many bodies began."""
        self.ledger.wait_for("start", number, order=order)

    def wait_until_over(self, order: str, number: int = 1) -> None:
        """Return once so many runs have ended, and what follows the body is done."""
        self.ledger.wait_for("end", number, order=order)
        eventually(self._is_quiet, f"{order} is over")

    def get(self, call: Call) -> Any:
        """The answer that a caller gets in the end, or its exception."""
        return AsyncResult(call.task_id, app=self.app).get(timeout=60, propagate=False)

    def state(self, call: Call) -> str:
        """The state of a call in the result backend."""
        return str(AsyncResult(call.task_id, app=self.app).state)

    def most_at_once(self, order: str) -> int:
        """How many bodies ran at one time."""
        return self.ledger.most_at_once(order=order)

    # -- time and place ----------------------------------------------------------------------------

    def let_time_pass(self, seconds: float) -> None:
        """Return once the server has counted so many seconds."""
        self._redis.set("peers:clock", 1, px=int(seconds * 1000))
        eventually(lambda: not self._redis.exists("peers:clock"), "the time has passed", 60)

    def hold_queue(self) -> None:
        """Let the worker take no more messages: what is called now stays queued."""
        self.app.control.cancel_consumer("celery", reply=True, timeout=10)

    def release_queue(self) -> None:
        """Let it take them."""
        self.app.control.add_consumer("celery", reply=True, timeout=10)

    def _is_quiet(self) -> bool:
        # A message may be acknowledged before its body, and locks end after the body.
        busy = self.app.control.broadcast("active", reply=True, limit=1, timeout=5)
        if any(tasks for answer in busy or () for tasks in answer.values()):
            return False
        with redis.Redis.from_url(self.app.conf.broker_url) as broker:
            return not broker.hlen("unacked") and not broker.llen("celery")


# -- what is seen, in words ----------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What happened: the facts, and the names that each library has for its errors."""

    facts: tuple[str, ...]
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = f" (``{'``, ``'.join(self.names)}``)" if self.names else ""
        return "; ".join(self.facts) + named


def seen(*facts: str, calls: Sequence[Call] = ()) -> Seen:
    """Put facts together, with the names of what the calls were refused with."""
    names = dict.fromkeys(type(call.error).__name__ for call in calls if call.error is not None)
    return Seen(facts, tuple(names))


def says(call: Call, who: str = "the duplicate") -> str:
    """What a caller got at once, in words."""
    return {
        "published": f"{who} is published",
        "attached": f"{who} gets the first call's ``AsyncResult``",
        "refused": f"{who} is refused at once",
        "nothing": f"{who} gets nothing",
    }[call.kind]


def count_runs(number: int) -> str:
    """How many runs there were, in words."""
    return "1 run" if number == 1 else f"{number} runs"


@dataclass(frozen=True)
class Case:
    """One behaviour that a library documents."""

    #: What it documents, in our words.
    says: str
    play: Callable[[Side], Seen]
    #: Where the two sides differ: "better" or "different", and why.
    verdict: str = "same"
    why: str = ""


@dataclass
class Peer:
    """A library with its cases."""

    name: str
    distribution: str
    theirs: Celery
    ours: Celery
    module: str
    cases: Sequence[Case] = field(default_factory=tuple)

    def play(self, directory: Path) -> list[tuple[Case, Seen, Seen]]:
        """Play every case on both sides."""
        sides = [
            Side(app, f"{self.module}:{name}", directory)
            for app, name in ((self.theirs, "theirs"), (self.ours, "ours"))
        ]
        try:
            for side in sides:
                side.start_worker()
            found = []
            for case in self.cases:
                there, here = (_on(side, case) for side in sides)
                found.append((case, there, here))
            return found
        finally:
            for side in sides:
                side.close()


def _on(side: Side, case: Case) -> Seen:
    side.app.set_current()
    if side.worker is None:
        side.start_worker()
    try:
        return case.play(side)
    except Exception as error:
        raise AssertionError(f"{side.app.main}: {case.says}") from error
