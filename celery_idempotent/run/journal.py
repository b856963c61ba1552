"""What happens to deliveries, kept in this process until the heartbeat gives it to the store.

A delivery only appends to a queue in memory; the end of a run is put into words while the store
records it, since there is nothing else to do then. Half a second after the first event, and never
while a task waits for it, the heartbeat thread sends all that came together since: one command for
some hundred events. A run is told at its end, which says when it began; one that still runs at such
a turn is told as begun, too. Where the store is away the queue is bounded; what falls out of it is
counted, and the journal says how much is missing. Nothing here can fail, hold or slow a task.

An event carries how old it was when it was sent. Together with the store's own time of storing it,
that tells when it happened by the store's clock; no worker's clock is asked.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping
from operator import attrgetter
from time import monotonic, monotonic_ns
from typing import Any, Final, NamedTuple, Protocol

from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.run.process import BOOT_ID
from celery_idempotent.stores.base import Store
from celery_idempotent.stores.journal import JournalStore

__all__ = ["Journal", "Running", "UnsentEntry"]

log = logging.getLogger("celery_idempotent")

#: Made once: json.dumps() makes an encoder for each call that isn't quite plain.
_encode: Final = json.JSONEncoder(separators=(",", ":"), default=str).encode
_quoted: Final = json.encoder.encode_basestring_ascii
#: Larger numbers are written by _encode, in fewer digits.
_PLAIN: Final = 1e9

_BOUND: Final = 10_000
_BATCH: Final = 200
_NEVER: Final = float("inf")
#: After so many seconds without word of it, a turn of the heartbeat is taken as lost.
_STALE_S: Final = 120.0


class UnsentEntry(NamedTuple):
    """One event that is not sent yet."""

    #: When it happened, on this process's monotonic clock.
    at: float
    what: str
    #: The record's name.
    key: str
    task: str
    task_id: str | None
    more: Mapping[str, Any]


def _words(event: UnsentEntry) -> str:
    """Write an event as JSON, up to what is known when it is sent; what is empty is left out."""
    _, what, key, task, task_id, more = event
    parts = [f'{{"event":{_json(what)},"key":{_json(key)},"task":{_json(task)}']
    parts.append(f',"id":{_json(task_id)}')
    if "pid" not in more:  # what is told of another process says which
        parts.append(f',"pid":{os.getpid()}')
    for name, value in more.items():
        if value:
            parts.append(f',"{name}":{_json(value)}')
    return "".join(parts)


def _json(value: Any) -> str:
    """Write a value as JSON: the usual ones in a tenth of an encoder's time."""
    kind = type(value)
    if kind is str:
        return _quoted(value)
    if kind is int:
        return str(value)
    if kind is float:
        return f"{value:.3f}" if -_PLAIN < value < _PLAIN else _encode(value)
    return _encode(value)


class Running(Protocol):
    """A run that is under way."""

    def claimed(self) -> UnsentEntry:
        """Give the event of its beginning, if that is to be told."""


class Journal:
    """The journal of one app's deliveries, as this process adds to it.

    Args:
        store: keeps it, if it can.
        name: its name there.
        most: about how many events are kept; 0: none are written.
    """

    def __init__(self, store: Store, name: str, most: int) -> None:
        self._store = store if isinstance(store, JournalStore) else None
        self.name = name
        #: About how many events are kept; 0: it is off, or this store keeps no journals.
        self.most = most if self._store is not None else 0
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._sending = threading.Lock()
        # Runs that began since the last turn, and go on.
        self._running: dict[int, Running] = {}
        self._waiting: deque[UnsentEntry] = deque()
        # What is being sent, or was not accepted the last time; each with its number.
        self._taken: list[tuple[int, UnsentEntry]] = []
        self._numbers = itertools.count()
        self._dropped = 0
        # Until then, a turn of the heartbeat is known to come.
        self._expected = 0.0

    def begin(self, run: Running) -> None:
        """Tell of a run's beginning, if it still goes on when the next turn comes."""
        if not self.most:
            return
        if self._pid != os.getpid():
            self._reset()  # after a fork: the parent's events are the parent's
        self._running[id(run)] = run
        now = monotonic()
        if now >= self._expected:
            self._expect(now)

    def ended(self, run: Running, *, silently: bool = False) -> None:
        """Let a run's beginning be: its end is told now.

        Args:
            silently: nothing is told of its end, so that its beginning has to be.
        """
        if self._running.pop(id(run), None) is not None and silently:
            self.put(run.claimed())

    def add(self, what: str, key: str, task: str, task_id: str | None, **more: Any) -> None:
        """Note what happens now; it is sent later, from another thread."""
        self.put(UnsentEntry(monotonic(), what, key, task, task_id, more))

    def put(self, event: UnsentEntry) -> None:
        """Note an event; it is sent later, from another thread."""
        if not self.most:
            return
        if self._pid != os.getpid():
            self._reset()
        if len(self._waiting) + len(self._taken) >= _BOUND:
            self._dropped += 1
        else:
            self._waiting.append(event)
        if event.at >= self._expected:
            self._expect(event.at)

    def _expect(self, now: float) -> None:
        """Have a turn of the heartbeat come."""
        self._expected = now + _STALE_S
        heartbeat.later(self._send, "the journal", _NEVER, must=False)

    def write(self, what: str, key: str, task: str, task_id: str | None, **more: Any) -> None:
        """Send an event now, from this thread: for what a person does, once in a while."""
        if self._store is None or not self.most:
            return
        event = UnsentEntry(monotonic(), what, key, task, task_id, more)
        try:
            packed = self._packed(event, event.at, monotonic_ns())
            self._store.append_events(self.name, [packed], self.most)
        except StoreError as exc:
            log.debug("the journal misses that %s was %s: %s", key, what, exc)

    def _send(self) -> None:
        """Send all that waits. Called by the heartbeat; called again if the store is away.

        Raises:
            StoreUnavailable: it is; nothing that was to be sent is lost by that.
        """
        with self._sending:
            try:
                self._take()
                while self._taken:
                    self._send_batch()
            except StoreUnavailable:
                self._expected = monotonic() + _STALE_S
                raise
            except Exception:
                # Nobody's task: what can't be written now won't be written later.
                self._dropped += sum(event.more.get("events", 1) for _, event in self._taken)
                self._taken = []
                log.debug("events could not be added to the journal", exc_info=True)
            self._expected = 0.0
            if self._waiting or self._running:
                # It came after the last look, and counted on this turn.
                self._expect(monotonic())

    def _take(self) -> None:
        """Take what is to be sent in this turn, in the order in which it happened."""
        taken: list[UnsentEntry] = []
        # First of all: a run that ends meanwhile has its end in what is taken after it.
        for number in list(self._running):
            run = self._running.pop(number, None)
            if run is not None:
                taken.append(run.claimed())
        while self._waiting:
            taken.append(self._waiting.popleft())
        taken.sort(key=attrgetter("at"))
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            taken.insert(0, UnsentEntry(monotonic(), "missing", "", "", None, {"events": dropped}))
        self._taken += [(next(self._numbers), event) for event in taken]

    def _send_batch(self) -> None:
        assert self._store is not None
        now = monotonic()
        packed = [self._packed(event, now, number) for number, event in self._taken[:_BATCH]]
        self._store.append_events(self.name, packed, self.most)
        del self._taken[:_BATCH]

    def _packed(self, event: UnsentEntry, now: float, number: int) -> bytes:
        age = max(0, int((now - event.at) * 1000))
        # By whom, and which: a reader drops what a lost answer made come twice.
        by = f"{BOOT_ID}.{self._pid}.{number}"
        return f'{_words(event)},"age":{age},"by":"{by}"}}'.encode()
