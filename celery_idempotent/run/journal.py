"""The journal of deliveries, kept in this process until the heartbeat sends it to the store.

A delivery only appends to a queue in memory. Half a second after the first entry, and never while a
task waits for it, the heartbeat thread sends all entries since: one command for some hundred. A run
has one entry, at its end, which says when it began; a run that goes on at such a turn gets an entry
of its beginning, too. In the same command a store lists such a run as under way, until its end is
sent: one that was cut off is found by that, and a short run costs nothing for it. While the store
is away the queue is bounded; entries that do not fit in are counted, and the journal says how many
are missing. Nothing here can fail, hold or slow a task.

An entry carries its age at the time of sending. Together with the store's own time of storing it,
that is the time when it happened by the store's clock; no worker's clock is used.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import threading
from collections import deque
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii as _quoted
from operator import attrgetter
from time import monotonic, monotonic_ns
from typing import Any, Final, NamedTuple, Protocol

from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.run.process import BOOT_ID
from celery_idempotent.stores.base import Store
from celery_idempotent.stores.journal import ListedRuns

log = logging.getLogger("celery_idempotent")

#: For what is neither text nor a number: it makes an encoder for each call.
_encode: Final = json.JSONEncoder(separators=(",", ":"), default=str).encode

_BOUND: Final = 10_000
_BATCH: Final = 200
_NEVER: Final = float("inf")
#: After so many seconds a turn of the heartbeat that did not come is requested again.
_STALE_S: Final = 120.0


class Subject(NamedTuple):
    """What an entry is about: one delivery."""

    #: The record's name.
    key: str
    #: The task's name, and the call's id.
    task: str
    task_id: str | None
    #: The key as operators read it, where that is another text than the key.
    label: str = ""
    #: The worker.
    node: str | None = None
    #: How often the message has waited.
    waits: int = 0


class UnsentEntry(NamedTuple):
    """An entry of the journal that is not sent yet."""

    #: When it happened, on this process's monotonic clock.
    at: float
    what: str
    subject: Subject
    details: Mapping[str, Any]


_NOBODY: Final = Subject("", "", None)


def _text(entry: UnsentEntry, age_ms: int, by: str) -> str:
    """Return an entry as JSON, without empty values.

    Put together here, because an encoder takes twice as long for it.

    Args:
        by: its sender and number: a reader drops an entry that a lost answer doubled.
    """
    _, what, (key, task, task_id, label, node, waits), details = entry
    told = [
        f'{{"event":{_quoted(what)},"key":{_quoted(key)},"task":{_quoted(task)}',
        f'"id":{_value(task_id)}',
    ]
    if "pid" not in details:
        told.append(f'"pid":{os.getpid()}')  # an entry of another process names it
    if label:
        told.append(f'"label":{_quoted(label)}')
    if node:
        told.append(f'"node":{_quoted(node)}')
    if waits:
        told.append(f'"waits":{waits}')
    for name, value in details.items():
        if value:
            told.append(f'"{name}":{_value(value)}')
    told.append(f'"age":{age_ms},"by":"{by}"}}')
    return ",".join(told)


def _value(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return _quoted(value)
    if kind is int:
        return str(value)
    if kind is float and math.isfinite(value):
        return f"{value:.3f}"
    return _encode(value)


class Running(Protocol):
    """A run that is under way."""

    @property
    def held(self) -> tuple[str, int]:
        """The key that it holds, and its token."""

    def claimed(self) -> UnsentEntry:
        """Make the entry of its beginning."""


class Journal:
    """The journal of one app's deliveries, to which this process adds.

    Args:
        store: keeps the journal, if it can.
        name: its name there.
        most: about how many entries are kept; 0: none are written.
    """

    def __init__(self, store: Store, name: str, most: int) -> None:
        self._store = store.journals
        self.name = name
        #: About how many entries are kept; 0: it is off, or this store keeps no journals.
        self.most = most if self._store is not None else 0
        self._lists = store.run_lists if self.most else None
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._sending = threading.Lock()
        # Runs that began since the last turn, and are under way.
        self._running: dict[int, Running] = {}
        # Runs to be listed as under way, and runs to be taken off that list.
        self._begun: deque[tuple[str, int]] = deque(maxlen=_BOUND)
        self._ended: deque[tuple[str, int]] = deque(maxlen=_BOUND)
        self._waiting: deque[UnsentEntry] = deque()
        # Entries that are being sent, or were not accepted the last time; each with its number.
        self._taken: list[tuple[int, UnsentEntry]] = []
        self._numbers = itertools.count()
        self._dropped = 0
        # Until then, a turn of the heartbeat is expected.
        self._expected = 0.0

    def begin(self, run: Running) -> None:
        """Note that a run begins; it becomes an entry if the run is under way at the next turn."""
        if not self.most:
            return
        if self._pid != os.getpid():
            self._reset()  # after a fork: the parent sends its own entries
        self._running[id(run)] = run
        now = monotonic()
        if now >= self._expected:
            self._expect(now)

    def ended(self, run: Running, *, cut_off: bool = False) -> bool:
        """Note that a run ended; return whether there is no entry of its beginning.

        Args:
            cut_off: whether the store has it as under way still.
        """
        is_short = self._running.pop(id(run), None) is not None
        if self._lists is not None and is_short == cut_off:
            (self._begun if cut_off else self._ended).append(run.held)
        return is_short

    def put(self, entry: UnsentEntry) -> None:
        """Add an entry; another thread sends it later."""
        if not self.most:
            return
        if self._pid != os.getpid():
            self._reset()
        if len(self._waiting) + len(self._taken) >= _BOUND:
            self._dropped += 1
        else:
            self._waiting.append(entry)
        if entry.at >= self._expected:
            self._expect(entry.at)

    def _expect(self, now: float) -> None:
        """Request a turn of the heartbeat."""
        self._expected = now + _STALE_S
        heartbeat.later(self._send, "the journal", _NEVER, must=False)

    def write(
        self,
        what: str,
        key: str,
        task: str,
        task_id: str | None,
        *,
        is_cut_off: bool = False,
        **more: Any,
    ) -> None:
        """Send an entry now, from this thread: for what a person does, once in a while.

        Args:
            is_cut_off: whether it tells of a run of another process that was cut off.
        """
        if self._store is None or not self.most:
            return
        entry = UnsentEntry(monotonic(), what, Subject(key, task, task_id), more)
        try:
            packed = self._packed(entry, entry.at, monotonic_ns())
            if is_cut_off and self._lists is not None:
                runs = ListedRuns([(key, 0)])
                self._lists.append_with_runs(self.name, [packed], self.most, runs)
            else:
                self._store.append_events(self.name, [packed], self.most)
        except StoreError as exc:
            log.debug("the journal misses that %s was %s: %s", key, what, exc)

    def _send(self) -> None:
        """Send all that waits. Called by the heartbeat; called again if the store is away.

        Raises:
            StoreUnavailable: it is; no entry is lost by that.
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
                # What can't be written now can't be written later: it is counted as missing.
                self._dropped += sum(entry.details.get("events", 1) for _, entry in self._taken)
                self._taken = []
                self._begun.clear()
                self._ended.clear()
                log.debug("entries could not be added to the journal", exc_info=True)
            self._expected = 0.0
            if self._waiting or self._running:
                # Something came after the last look, and relied on this turn.
                self._expect(monotonic())

    def _take(self) -> None:
        """Take the entries of this turn, in the order in which they happened."""
        taken: list[UnsentEntry] = []
        # These first: a run that ends meanwhile has its end among the entries taken after it.
        for number in list(self._running):
            run = self._running.pop(number, None)
            if run is not None:
                taken.append(run.claimed())
                if self._lists is not None:
                    self._begun.append(run.held)
        while self._waiting:
            taken.append(self._waiting.popleft())
        taken.sort(key=attrgetter("at"))
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            taken.insert(0, UnsentEntry(monotonic(), "missing", _NOBODY, {"events": dropped}))
        self._taken += [(next(self._numbers), entry) for entry in taken]

    def _send_batch(self) -> None:
        assert self._store is not None
        now = monotonic()
        packed = [self._packed(entry, now, number) for number, entry in self._taken[:_BATCH]]
        if self._lists is None or not (self._begun or self._ended):
            self._store.append_events(self.name, packed, self.most)
        else:
            # These first: what began and ended since has its end among those that are left out.
            ended = list(self._ended)
            begun = list(self._begun)
            self._lists.append_with_runs(self.name, packed, self.most, ListedRuns(begun, ended))
            for sent, waiting in ((begun, self._begun), (ended, self._ended)):
                for _ in sent:
                    waiting.popleft()
        del self._taken[:_BATCH]

    def _packed(self, entry: UnsentEntry, now: float, number: int) -> bytes:
        age_ms = max(0, int((now - entry.at) * 1000))
        return _text(entry, age_ms, f"{BOOT_ID}.{self._pid}.{number}").encode()
