"""What happens to deliveries, kept in this process until the heartbeat gives it to the store.

A delivery only appends to a queue in memory. Half a second after the first event, and never while
a task waits for it, the heartbeat thread sends all that came together since: one command for some
hundred events. Where the store is away the queue is bounded; what falls out of it is counted, and
the journal says how much is missing. Nothing here can fail, hold or slow a task.

An event carries how old it was when it was sent. Together with the store's own time of storing it,
that tells when it happened by the store's clock; no worker's clock is asked.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping
from time import monotonic, monotonic_ns
from typing import Any, Final, NamedTuple

from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.run.runner import BOOT_ID
from celery_idempotent.stores.base import Store
from celery_idempotent.stores.journal import JournalStore

__all__ = ["ENDINGS", "Event", "Journal"]

log = logging.getLogger("celery_idempotent")

#: What ends a run: an event "claimed" that is still unsent then tells nothing more.
ENDINGS: Final = frozenset(
    ("succeeded", "failed", "released", "retrying", "interrupted", "unknown", "compensating")
)

#: Made once: json.dumps() makes an encoder for each call that isn't quite plain.
_encode: Final = json.JSONEncoder(separators=(",", ":"), default=str).encode

_BOUND: Final = 10_000
_BATCH: Final = 200
_NEVER: Final = float("inf")
#: After so many seconds without word of it, a turn of the heartbeat is taken as lost.
_STALE_S: Final = 120.0


class Event(NamedTuple):
    """One event that is not sent yet."""

    #: When it happened, on this process's monotonic clock.
    at: float
    what: str
    #: The record's name.
    key: str
    task: str
    task_id: str | None
    more: Mapping[str, Any]


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
        self._waiting: deque[Event] = deque()
        self._batch: list[Event] = []
        self._dropped = 0
        self._sent = 0
        # Until then, a turn of the heartbeat is known to come.
        self._expected = 0.0

    def add(self, what: str, key: str, task: str, task_id: str | None, **more: Any) -> None:
        """Note an event; it is sent later, from another thread."""
        if not self.most:
            return
        if self._pid != os.getpid():
            self._reset()  # after a fork: the parent's events are the parent's
        now = monotonic()
        if len(self._waiting) >= _BOUND:
            self._dropped += 1
        else:
            self._waiting.append(Event(now, what, key, task, task_id, more))
        if now >= self._expected:
            self._expected = now + _STALE_S
            heartbeat.later(self._send, "the journal", _NEVER, must=False)

    def write(self, what: str, key: str, task: str, task_id: str | None, **more: Any) -> None:
        """Send an event now, from this thread: for what a person does, once in a while."""
        if self._store is None or not self.most:
            return
        event = Event(monotonic(), what, key, task, task_id, more)
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
                while self._next_batch():
                    self._send_batch()
            except StoreUnavailable:
                self._expected = monotonic() + _STALE_S
                raise
            except Exception:
                # Nobody's task: what can't be written now won't be written later.
                self._dropped += len(self._batch)
                self._batch = []
                log.debug("events could not be added to the journal", exc_info=True)
            self._expected = 0.0
            if self._waiting:
                # It came between the last look and that line, and counted on this turn.
                self._expected = monotonic() + _STALE_S
                heartbeat.later(self._send, "the journal", _NEVER, must=False)

    def _next_batch(self) -> list[Event]:
        """Give what is to be sent next: what was not accepted the last time, else what waits."""
        while self._waiting and len(self._batch) < _BATCH:
            self._batch.append(self._waiting.popleft())
        return self._batch

    def _send_batch(self) -> None:
        assert self._store is not None
        now, dropped = monotonic(), self._dropped
        numbered = list(enumerate(self._batch, self._sent))
        packed = [self._packed(event, now, n) for n, event in _without_ended_claims(numbered)]
        if dropped:
            missing = Event(now, "missing", "", "", None, {"events": dropped})
            packed.insert(0, self._packed(missing, now, self._sent - 1))
        self._store.append_events(self.name, packed, self.most)
        self._sent += len(self._batch) + 1
        self._dropped -= dropped
        self._batch = []

    def _packed(self, event: Event, now: float, number: int) -> bytes:
        fields: dict[str, Any] = {
            "event": event.what,
            "key": event.key,
            "task": event.task,
            "id": event.task_id,
            "age": max(0, int((now - event.at) * 1000)),
            # Whose event it is, and which: a reader drops what a lost answer made come twice.
            "by": f"{BOOT_ID}.{self._pid}.{number}",
            "pid": self._pid,
        }
        for name, value in event.more.items():
            if value:
                fields[name] = round(value, 3) if isinstance(value, float) else value
        return _encode(fields).encode("utf-8", "replace")


def _without_ended_claims(events: list[tuple[int, Event]]) -> list[tuple[int, Event]]:
    """Leave out the claims whose end is told in the same breath: the end says when they began."""
    kept: list[tuple[int, Event]] = []
    ended: set[tuple[str, object]] = set()
    for number, event in reversed(events):
        run = (event.key, event.more.get("token"))
        if event.what in ENDINGS:
            ended.add(run)
        elif event.what == "claimed" and run in ended:
            continue
        kept.append((number, event))
    return kept[::-1]
