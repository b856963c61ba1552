"""One thread per process: it renews leases, and repeats what the store could not take at once.

It starts with the first lease, sleeps until a lease is older than a third of its length, and renews
all such leases in one round trip a node. A body that ends sooner costs nothing. Leases that are due
soon after wait for the next turn, a third of a lease later, so that their number does not matter;
none gets older than two thirds of its length.

Now and then it tends those stores of these leases that need it (``Store.needs_tending``).
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary, ref

from celery_idempotent.core.verdicts import Lost
from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.observers import OncePerSecond
from celery_idempotent.run.lease import Lease
from celery_idempotent.stores.base import Store

log = logging.getLogger("celery_idempotent")
_renewal_lines: Final = OncePerSecond()

_NEVER: Final = float("inf")
_RETRY_S: Final = 0.5
_RETRY_MAX_S: Final = 5.0
#: About how often each process tends a store that it uses, in seconds.
_TENDED_S: Final = 60.0
#: ... and how soon again, where a turn was not enough.
_TENDED_SOON_S: Final = 2.0


@dataclass(slots=True)
class _Job:
    """Something that the store still has to do."""

    do: Callable[[], object]
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
        # Weak: a lease that nobody holds any more is not renewed, however its run was cut off.
        self._leases: dict[int, ref[Lease]] = {}
        self._jobs: dict[int, _Job] = {}
        self._wake = threading.Event()
        self._wakes_at = 0.0
        self._next_turn = 0.0
        # The stores whose leases were added since the last look.
        self._used: set[Store] = set()
        # When each of them is tended next, and when the first one is due that has to come soon.
        self._turns: WeakKeyDictionary[Store, float] = WeakKeyDictionary()
        self._tends_at = _NEVER
        self._shortest = _NEVER
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def add(self, lease: Lease) -> None:
        """Renew a lease from now on."""
        if self._thread is None or self._pid != os.getpid():
            self._attend()
        self._leases[lease.number] = ref(lease)
        self._used.add(lease.store)
        if lease.third < self._shortest:
            self._shortest = lease.third
        if lease.renewed + lease.third < self._wakes_at:
            self._wake.set()

    def remove(self, lease: Lease) -> None:
        """Stop renewing a lease; a renewal that is under way still ends."""
        self._leases.pop(lease.number, None)

    def drop(self, lease: Lease) -> None:
        """Stop holding a lease: nobody is told of its loss any more."""
        self.remove(lease)
        lease.on_lost = None

    def later(
        self, do: Callable[[], object], what: str, for_s: float, *, must: bool = True
    ) -> None:
        """Call ``do`` in the background until it does not raise :class:`.StoreUnavailable`.

        Args:
            what: what is lost otherwise, for the log.
            for_s: for how many seconds at most.
            must: whether a process that ends waits for it.
        """
        self._attend()
        now = time.monotonic()
        job = _Job(do, what, now + for_s, now + _RETRY_S, must)
        self._jobs[id(job)] = job
        if job.at < self._wakes_at:
            self._wake.set()

    def leases(self) -> list[Lease]:
        """Return the leases that this process holds."""
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
        """Do now what waits for the store; return whether nothing is left."""
        until = time.monotonic() + for_s
        while self._pid == os.getpid() and self._jobs:
            self._work_off(time.monotonic(), at_once=True)
            if not self._must() or time.monotonic() >= until:
                break
            time.sleep(min(_RETRY_S, for_s))
        return self._pid != os.getpid() or not self._must()

    def finish(self, for_s: float) -> None:
        """Do what waits for the store, since this process ends; log what is lost."""
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
            used, self._used = self._used, set()
            self._wakes_at = upcoming = self._next(in_use=bool(used))
            pause = upcoming - time.monotonic()
            if pause > 0:
                self._wake.wait(None if upcoming == _NEVER else pause)
            self._wakes_at = 0.0
            try:
                if time.monotonic() >= upcoming:
                    self._renew(time.monotonic())
                self._work_off(time.monotonic())
                self.tend(used)
            except Exception:
                log.exception("the idempotency heartbeat went wrong; it goes on")

    def _next(self, *, in_use: bool) -> float:
        times = [
            min(max(lease.due, self._next_turn), lease.due + lease.third) for lease in self._held()
        ]
        times += [job.at for job in list(self._jobs.values())]
        times.append(self._tends_at)
        if in_use:
            # Short bodies come and go: look again in time for the next one, instead of being woken
            # by each. In an idle process the thread sleeps.
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
                    if isinstance(answer, Lost) and not lease.is_own_end(answer.record):
                        self.remove(lease)  # before on_lost, which may look
                    lease.take(answer, now, aside=True)
                except StoreError as exc:
                    pause = lease.third  # a record that can't be read now stays so for a while
                    if isinstance(exc, StoreUnavailable):
                        # Soon again: what is left of the lease is the time there is.
                        pause = min(_RETRY_S * 2, lease.lease_ms / 10_000)
                    lease.postponed = now + pause
                    self._next_turn = 0.0
                    end = _renewal_lines.turn()
                    if end is not None:
                        text = "cannot renew the lease of %s, trying again: %s%s"
                        log.warning(text, lease.key, exc, end)

    def tend(self, stores: Iterable[Store]) -> None:
        """Tend those of these stores that need it and whose turn has come."""
        now = time.monotonic()
        if now >= self._tends_at:
            self._tends_at = _NEVER
        for store in stores:
            if not store.needs_tending:
                continue
            # The first turn is not at once: the processes of a worker begin together.
            if now < self._turns.setdefault(store, now + _until_next_turn()):
                continue
            more = False
            try:
                more = store.tend()
            except StoreError as exc:
                log.info("what expired is deleted later: %s", exc)
            now = time.monotonic()
            self._turns[store] = now + (_TENDED_SOON_S if more else _until_next_turn())
            if more:
                self._tends_at = min(self._tends_at, now + _TENDED_SOON_S)

    def _work_off(self, now: float, *, at_once: bool = False) -> None:
        for name, job in list(self._jobs.items()):
            if job.at > now and not at_once:
                continue
            try:
                job.do()
            except StoreUnavailable as exc:
                if now < job.until:
                    job.at = time.monotonic() + job.pause
                    # An optional job must not delay the leases while the store hangs.
                    most = _RETRY_MAX_S if job.must else _RETRY_MAX_S * 12
                    job.pause = min(job.pause * 2, most)
                    if not job.must:
                        continue
                    return  # the others would fail, too: leases come first
                log.error("gave up telling the store: %s (%s)", job.what, exc)
            except Exception:
                log.exception("could not tell the store: %s", job.what)
            self._jobs.pop(name, None)


def _until_next_turn() -> float:
    return _TENDED_S * random.uniform(0.5, 1.5)


#: This process's heartbeat.
heartbeat = Heartbeat()
