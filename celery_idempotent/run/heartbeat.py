"""One thread a process that keeps leases alive, and finishes what the store could not take at once.

It starts with the first lease, sleeps until one is older than a third of its length, and renews
all that are, in one round trip a node. A body that ends sooner costs it nothing. Leases that come
of age soon after wait for the next turn, a third of a lease later, so that their number does not
matter; none gets older than two thirds of its length.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from weakref import ref

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.transitions import Lost
from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.stores.base import Renewal, Store

__all__ = ["Heartbeat", "Lease", "heartbeat"]

log = logging.getLogger("celery_idempotent")

_NEVER: Final = float("inf")
_RETRY_S: Final = 0.5
_RETRY_MAX_S: Final = 5.0


_numbers: Final = itertools.count()


class Lease:
    """A lease that is held: of a run, or the delivery lease of its outcome."""

    __slots__ = (
        "__weakref__",
        "_lost",
        "keep_ms",
        "key",
        "lease_ms",
        "number",
        "on_lost",
        "record",
        "renewed",
        "slip_key",
        "store",
        "third",
    )

    def __init__(
        self,
        store: Store,
        key: str,
        record: Record,
        lease_ms: int,
        keep_ms: int,
        on_lost: Callable[[Lease], None] | None = None,
        slip_key: str = "",
    ) -> None:
        #: Tells it from every other lease of this process.
        self.number = next(_numbers)
        self.store = store
        self.key = key
        #: The record as its holder knows it; the token in it is what it holds.
        self.record = record
        self.lease_ms = lease_ms
        self.keep_ms = keep_ms
        #: A third of its length, in seconds.
        self.third = lease_ms / 3000
        self.on_lost = on_lost
        #: The key of its owner's slip; empty: none is kept.
        self.slip_key = slip_key
        #: When it was last known to be held, on this process's monotonic clock.
        self.renewed = time.monotonic()
        self._lost: Record | None = None

    @property
    def due(self) -> float:
        """When it wants to be renewed: after a third of its length."""
        return self.renewed + self.third

    @property
    def lost(self) -> Record | None:
        """What took its place, once that is known."""
        return self._lost

    def lose(self, record: Record, *, aside: bool = False) -> None:
        """Learn that it is gone. ``aside``: whoever wants to know must not hold up this thread."""
        if self._lost is not None:
            return
        self._lost = record
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is None:
            return
        if aside:
            threading.Thread(target=on_lost, args=(self,), daemon=True).start()
        else:
            on_lost(self)

    def renewal(self) -> Renewal:
        """Give what the store needs to prolong it."""
        return Renewal(self.key, self.record, self.lease_ms, self.keep_ms, self.slip_key)

    def renew(self) -> bool:
        """Renew now, in the caller's thread; whether it is still held."""
        asked = time.monotonic()
        self._take(self.store.renew([self.renewal()])[0], asked)
        return self._lost is None

    def _take(self, answer: object, asked: float, *, aside: bool = False) -> None:
        if isinstance(answer, Lost):
            if not self._is_own_end(answer.record):
                self.lose(answer.record, aside=aside)
        elif isinstance(answer, StoreError):
            raise answer
        else:
            self.renewed = asked

    def _is_own_end(self, record: Record) -> bool:
        # Its run released the key itself, while the renewal was under way.
        mine = self.record
        return (
            record.state is State.RELEASED
            and record.owner == mine.owner
            and record.token == mine.token + 1
        )


@dataclass(slots=True)
class _Job:
    """Something the store is still to be told."""

    tell: Callable[[], object]
    what: str
    until: float
    at: float
    must: bool = True
    pause: float = _RETRY_S


class Heartbeat:
    """The leases of one process, and the thread that renews them."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        # Weak: a lease that nobody holds any more, however its run was cut off, is not renewed.
        self._leases: dict[int, ref[Lease]] = {}
        self._jobs: dict[int, _Job] = {}
        self._wake = threading.Event()
        self._wakes_at = 0.0
        self._next_turn = 0.0
        self._in_use = False
        self._shortest = _NEVER
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def add(self, lease: Lease) -> None:
        """Keep a lease alive from now on."""
        if self._thread is None or self._pid != os.getpid():
            self._attend()
        self._leases[lease.number] = ref(lease)
        self._in_use = True
        if lease.third < self._shortest:
            self._shortest = lease.third
        if lease.renewed + lease.third < self._wakes_at:
            self._wake.set()

    def remove(self, lease: Lease) -> None:
        """Let a lease be; no renewal of it is sent after this, save one that is under way."""
        self._leases.pop(lease.number, None)

    def later(
        self, tell: Callable[[], object], what: str, for_s: float, *, must: bool = True
    ) -> None:
        """Call ``tell`` until it raises no :class:`.StoreUnavailable`, for at most ``for_s``.

        ``what`` says, for the log, what would otherwise be lost; without ``must`` no process waits
        for it when it ends.
        """
        self._attend()
        now = time.monotonic()
        job = _Job(tell, what, now + for_s, now + _RETRY_S, must)
        self._jobs[id(job)] = job
        if job.at < self._wakes_at:
            self._wake.set()

    def leases(self) -> list[Lease]:
        """Give the leases held now in this process."""
        return self._held() if self._pid == os.getpid() else []

    def _held(self) -> list[Lease]:
        held = []
        # Copied in one step: another thread may add or remove a lease meanwhile.
        for number, found in list(self._leases.items()):
            lease = found()
            if lease is None:
                self._leases.pop(number, None)
            else:
                held.append(lease)
        return held

    def flush(self, for_s: float) -> bool:
        """Try now to tell the store all that is waiting; whether nothing is left."""
        until = time.monotonic() + for_s
        while self._pid == os.getpid() and self._jobs:
            self._work_off(time.monotonic(), at_once=True)
            if not self._must() or time.monotonic() >= until:
                break
            time.sleep(min(_RETRY_S, for_s))
        return self._pid != os.getpid() or not self._must()

    def finish(self, for_s: float) -> None:
        """Tell the store all that is waiting, since this process ends; log what it wasn't told."""
        if self.flush(for_s):
            return
        for name, job in list(self._jobs.items()):
            self._jobs.pop(name, None)
            if job.must:
                log.error(
                    "this process ends, and the store could not be told within %g s: %s",
                    for_s,
                    job.what,
                )

    def _must(self) -> bool:
        return any(job.must for job in list(self._jobs.values()))

    def _attend(self) -> None:
        if self._pid != os.getpid():
            self._reset()  # after a fork: the parent's leases are the parent's
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    thread = threading.Thread(
                        target=self._beat, name="idempotency-heartbeat", daemon=True
                    )
                    thread.start()
                    self._thread = thread  # only now: a thread that can't start is tried again

    def _beat(self) -> None:
        while True:
            # In this order, a lease that _next() doesn't see yet sets the event.
            self._wakes_at = _NEVER
            self._wake.clear()
            self._wakes_at = upcoming = self._next()
            pause = upcoming - time.monotonic()
            if pause > 0:
                self._wake.wait(None if upcoming == _NEVER else pause)
            self._wakes_at = 0.0
            try:
                if time.monotonic() >= upcoming:
                    self._renew(time.monotonic())
                self._work_off(time.monotonic())
            except Exception:
                log.exception("the idempotency heartbeat went wrong; it goes on")

    def _next(self) -> float:
        times = [
            min(max(lease.due, self._next_turn), lease.due + lease.third) for lease in self._held()
        ]
        times += [job.at for job in list(self._jobs.values())]
        if self._in_use:
            # Short bodies come and go: look again in time for the next one, instead of being woken
            # by each. A process in which nothing runs any more is left alone.
            self._in_use = False
            times.append(time.monotonic() + self._shortest)
        return min(times, default=_NEVER)

    def _renew(self, now: float) -> None:
        by_store: dict[int, list[Lease]] = {}
        for lease in self._held():
            if lease.due <= now:
                by_store.setdefault(id(lease.store), []).append(lease)
        for leases in by_store.values():
            self._next_turn = now + min(lease.third for lease in leases)
            try:
                answers = leases[0].store.renew([lease.renewal() for lease in leases])
            except StoreError as exc:
                answers = [exc] * len(leases)
            for lease, answer in zip(leases, answers, strict=True):
                try:
                    if isinstance(answer, Lost) and not lease._is_own_end(answer.record):
                        self.remove(lease)  # before anybody is told, who may look
                    lease._take(answer, now, aside=True)
                except StoreError as exc:
                    pause = lease.third  # what can't be read now can't be read at once after it
                    if isinstance(exc, StoreUnavailable):
                        # Soon again: what is left of the lease is the time there is.
                        pause = min(_RETRY_S * 2, lease.lease_ms / 10_000)
                    lease.renewed = now + pause - lease.third
                    self._next_turn = 0.0
                    log.warning("cannot renew the lease of %s, trying again: %s", lease.key, exc)

    def _work_off(self, now: float, *, at_once: bool = False) -> None:
        for name, job in list(self._jobs.items()):
            if job.at > now and not at_once:
                continue
            try:
                job.tell()
            except StoreUnavailable as exc:
                if now < job.until:
                    job.at = time.monotonic() + job.pause
                    # What need not be told must not keep the leases waiting for a store that hangs.
                    most = _RETRY_MAX_S if job.must else _RETRY_MAX_S * 12
                    job.pause = min(job.pause * 2, most)
                    if not job.must:
                        continue
                    return  # the others would find it away too: leases come first
                log.error("gave up telling the store: %s (%s)", job.what, exc)
            except Exception:
                log.exception("could not tell the store: %s", job.what)
            self._jobs.pop(name, None)


#: This process's heartbeat.
heartbeat = Heartbeat()
