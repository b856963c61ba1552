"""A lease: the claim that this process holds on a key for a while."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Final

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import Lost, Recorded, Renewal
from celery_idempotent.errors import StoreError
from celery_idempotent.stores.base import Store

_numbers: Final = itertools.count()


class Lease:
    """The lease of a run, or the delivery lease of its outcome."""

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
        #: Its number among the leases of this process.
        self.number = next(_numbers)
        self.store = store
        self.key = key
        #: The record as its holder knows it, with the token that it holds.
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
        #: Until when it is not tried again, on that clock: the store was away.
        self.postponed = 0.0
        #: Whether a copy of the run's message has answered its call, so far as is known.
        self.answered = False
        #: The record that replaced its own, once that is known.
        self.lost: Record | None = None
        # Whether it was once renewed too late, so that somebody may have taken over.
        self._ran_out = False

    @property
    def due(self) -> float:
        """When it is to be renewed: after a third of its length."""
        return max(self.renewed + self.third, self.postponed)

    @property
    def is_doubtful(self) -> bool:
        """Whether another run may have its key: it was not renewed in time, or is lost."""
        return self.lost is not None or not self.is_live

    @property
    def is_live(self) -> bool:
        """Whether it was held a moment ago, and has not run out since."""
        return time.monotonic() < self.renewed + self.lease_ms / 1000

    @property
    def is_unbroken(self) -> bool:
        """Whether nobody can have found it over, so that its call can have no answer yet.

        As far as this process's clock tells, and the answers to its renewals.
        """
        return not (self.lost or self.answered or self._ran_out) and self.is_live

    def lose(self, record: Record, *, aside: bool = False) -> None:
        """Note that it is gone. ``aside``: call ``on_lost`` in a thread of its own."""
        if self.lost is not None:
            return
        self.lost = record
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is None:
            return
        if aside:
            threading.Thread(target=on_lost, args=(self,), daemon=True).start()
        else:
            on_lost(self)

    def renewal(self) -> Renewal:
        """Return what the store needs to prolong it."""
        return Renewal(self.key, self.record, self.lease_ms, self.keep_ms, self.slip_key)

    def renew(self) -> bool:
        """Renew now, in the caller's thread; return whether it is still held."""
        asked = time.monotonic()
        self.take(self.store.renew([self.renewal()])[0], asked)
        return self.lost is None

    def take(self, answer: object, asked: float, *, aside: bool = False) -> None:
        """Note what the store answered to a renewal ``asked`` for at that time; raise an error."""
        if isinstance(answer, Lost):
            if not self.is_own_end(answer.record):
                self.lose(answer.record, aside=aside)
        elif isinstance(answer, StoreError):
            raise answer
        else:
            self.hold(asked)
            self.answered = isinstance(answer, Recorded) and answer.answered

    def hold(self, since: float) -> None:
        """Note that it was held at that time, on this process's clock."""
        self._ran_out = self._ran_out or not self.is_live
        self.renewed = since

    def is_own_end(self, record: Record) -> bool:
        """Whether its run released the key itself, while a renewal was under way."""
        mine = self.record
        return (
            record.state is State.RELEASED
            and record.owner == mine.owner
            and record.token == mine.token + 1
        )
