"""One record as operators see it, in plain words and numbers, and which records are asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final
from urllib.parse import unquote

from celery_idempotent.core import record as records
from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import Label, Process, Record, State
from celery_idempotent.errors import StoreError
from celery_idempotent.ops.outcomes import kind_of

#: The state that is shown for a record which cannot be read.
UNREADABLE: Final = "unreadable"
#: The state that is shown for a key that has no record: it is reserved for a call in its queue.
QUEUED: Final = "queued"
#: All states, in the order of a record's life.
STATES: Final = (*(str(state) for state in State), UNREADABLE)
#: What a filter calls, beside the states, what is held by a lease that is over.
OVERDUE: Final = "lease-over"
#: What can be listed: records by their states and leases, and the calls that are queued.
LISTED: Final = (*STATES, OVERDUE, QUEUED)

#: The states that hold a key by a lease.
HELD: Final = tuple(map(str, records.HELD))
#: What is said of a lease that is over.
LEASE_OVER: Final = "over: the next delivery takes over"

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RecordView:
    """One record, in plain words and numbers."""

    #: The record's key in the store: what it is shown and forgotten by.
    name: str
    namespace: str
    #: The key, as readable as it was kept.
    key: str
    task: str
    #: One of :data:`STATES`, or :data:`QUEUED`.
    state: str
    #: The task id of the call that holds the key, or whose outcome it is, or for which it is
    #: reserved; ``None``: forgotten.
    owner_id: str | None = None
    #: Where it runs; ``None`` where nothing is running.
    host: str | None = None
    pid: int | None = None
    token: int = 0
    #: Which attempt of the owner it is, or was, from 1.
    attempt: int = 0
    interruptions: int = 0
    #: On the store's clock: when its lease ends, its retry is due, or a queued call stops no other
    #: any more; 0: none of them.
    until_ms: int = 0
    #: ``"result"``, ``"failure"``, ``"not kept"``; ``None``: there is no outcome.
    outcome: str | None = None
    #: Why it cannot be read; empty otherwise.
    problem: str = ""
    #: Whether the next call with the key runs.
    is_free: bool = False

    @property
    def freed(self) -> str:
        """That the key is free, and how its last run ended; empty where it is taken."""
        if not self.is_free:
            return ""
        if self.outcome is None:
            return "the key is free"
        ended = "failed" if self.outcome == "failure" else "succeeded"
        return f"the key is free, its last run {ended}"

    @property
    def stored_key(self) -> str:
        """The key as it stands in the name: a digest, where the readable one can't stand there."""
        return self.name.partition(":{")[2].partition(":")[2][:-1]

    @property
    def claimed_at(self) -> float | None:
        """When the key was claimed last, in seconds since 1970; ``None``: nobody has it.

        Tokens are made of the clock; that of a key that was freed tells when that was.
        """
        return self.token / 1e6 if self.token and self.owner_id is not None else None

    def lease_left(self, now_ms: int) -> float | None:
        """Seconds that it is still held, or waits for its retry; ``None``: neither, or over."""
        left = (self.until_ms - now_ms) / 1000
        return left if self.until_ms and left > 0 else None

    def is_lease_over(self, now_ms: int) -> bool:
        """Whether it counts as running though nobody keeps it alive any more."""
        return self.state in HELD and self.until_ms <= now_ms

    def as_dict(self, now_ms: int | None = None) -> dict[str, Any]:
        """Give what goes into JSON.

        Args:
            now_ms: the store's clock; ``None``: whether its lease is over is not said.
        """
        # Not asdict(), which copies in depth: lists are long, and nothing here is deep.
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["claimed_at"] = self.claimed_at
        return fields if now_ms is None else {**fields, "is_lease_over": self.is_lease_over(now_ms)}


@dataclass(frozen=True, slots=True)
class StepView:
    """One finished step of a record."""

    name: str
    state: str
    result: str
    #: Whether there is something that undoes it.
    compensated_by: bool


@dataclass(frozen=True, slots=True)
class QueuedCall:
    """A call that was published and not yet delivered: it stops others with its key."""

    task_id: str
    #: When its key was reserved, when it is due, and until when it stops others, in milliseconds
    #: since 1970 on the store's clock.
    since_ms: int
    due_ms: int
    until_ms: int
    #: Whether it was delivered, and waits to run next.
    waits: bool = False


@dataclass(frozen=True, slots=True)
class RecordDetail:
    """One record, with what takes a look at it alone."""

    view: RecordView
    #: Seconds until its lease ends or its retry is due; ``None``: there is no such time.
    lease_left: float | None
    #: Seconds until the store lets it go: for an outcome, the rest of its window.
    window_left: float | None
    #: The result or the failure, bounded.
    result: str
    steps: tuple[StepView, ...] = ()
    #: Whether it counts as running though its lease has ended.
    is_lease_over: bool = False
    #: The call for which the key is reserved, if there is one.
    queued: QueuedCall | None = None

    def as_dict(self) -> dict[str, Any]:
        """Give what goes into JSON."""
        return {
            **self.view.as_dict(),
            "lease_left": self.lease_left,
            "is_lease_over": self.is_lease_over,
            "window_left": self.window_left,
            "result": self.result,
            "steps": [asdict(step) for step in self.steps],
            "queued": None if self.queued is None else asdict(self.queued),
        }


@dataclass(slots=True)
class Stats:
    """How many records there are, of which state and which task."""

    #: How many there are in all.
    total: int = 0
    #: How many were looked at.
    seen: int = 0
    #: Whether all of them were; else the numbers are estimates.
    is_exact: bool = True
    states: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)

    def add(self, views: Iterable[RecordView], weight: float = 1.0) -> None:
        """Count more of them; ``weight``: for how many each of them stands."""
        states, tasks = Counter[str](), Counter[str]()
        for view in views:
            self.seen += 1
            states[view.state] += 1
            tasks[view.task] += 1
        self.total += round(tasks.total() * weight)
        for counted, added in ((self.states, states), (self.tasks, tasks)):
            for name, number in added.items():
                counted[name] += round(number * weight)


class Filter:
    """Which records are asked for.

    Args:
        task: a task's name, or a pattern of it (``shop.*``).
        state: one of :data:`LISTED`.
        match: words which all have to be in the key, in any case: ``order 42`` finds ``order:42``.
            A word that is a task id stands for the records which that task owns.
        now_ms: the store's clock, by which a lease is over.
    """

    def __init__(
        self,
        task: str | None = None,
        state: str | None = None,
        match: str | None = None,
        now_ms: int = 0,
    ) -> None:
        self._now_ms = now_ms
        self.task = task or None
        self.state = state or None
        self.match = (match or "").strip()
        self._words = [word.lower() for word in (match or "").split()]
        self._by_name = not any(_UUID.match(word) for word in self._words)

    def admits_name(self, key: str) -> bool:
        """Whether a record may be meant, as far as its name tells; digests tell nothing."""
        if key.startswith("~") or not self._by_name:
            return True
        return all(word in key.lower() for word in self._words)

    def admits(self, view: RecordView) -> bool:
        """Whether a record is meant."""
        if not self.admits_kind(view):
            return False
        if not self._words:
            return True
        texts = f"{view.key}\n{view.stored_key}".lower()
        return all(word in texts or word == view.owner_id for word in self._words)

    def admits_kind(self, view: RecordView) -> bool:
        """Whether a record is of the state and the task that are meant."""
        if self.state == OVERDUE:
            if not view.is_lease_over(self._now_ms):
                return False
        elif self.state is not None and view.state != self.state:
            return False
        return self.task is None or fnmatchcase(view.task, self.task)


def parse_name(prefix: str, name: str) -> tuple[str, str] | None:
    """Read a record's name, ``<prefix>:{<namespace>:<key>}``: its namespace and its key.

    ``None`` for what is no record's name.
    """
    if not (name.startswith(f"{prefix}:{{") and name.endswith("}") and name.isascii()):
        return None
    namespace, colon, key = name[len(prefix) + 2 : -1].partition(":")
    if not (namespace and colon and key):
        return None
    return unquote(namespace), key


def view_of(name: str, namespace: str, key: str, record: Record | StoreError) -> RecordView:
    """Put a record, or why it cannot be read, into plain words."""
    if isinstance(record, StoreError):
        return RecordView(name, namespace, key, namespace, UNREADABLE, problem=str(record))
    label = Label.of(record)
    try:
        owner = Owner.unpack(record.owner)
        process = Process.unpack(record.process)
    except StoreError as exc:
        return RecordView(name, namespace, key, namespace, UNREADABLE, problem=str(exc))
    return RecordView(
        name=name,
        namespace=namespace,
        key=label.readable or key,
        task=label.task or namespace,
        state=str(record.state),
        owner_id=None if owner is None else owner.task_id,
        host=None if process is None else process.host,
        pid=None if process is None else process.pid,
        token=record.token,
        attempt=record.retries + 1,
        interruptions=record.interruptions,
        until_ms=record.until_ms,
        outcome=kind_of(record.outcome),
        is_free=record.state is State.RELEASED,
    )


def view_of_queued(name: str, namespace: str, key: str, queued: QueuedCall) -> RecordView:
    """Put a key that has nothing but a reservation into plain words."""
    return RecordView(
        name, namespace, key, namespace, QUEUED, queued.task_id, until_ms=queued.until_ms
    )
