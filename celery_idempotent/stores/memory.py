"""Records in this process's memory: for eager tests, and as the model of every other store."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, TypeVar

from celery_idempotent.core.record import Record
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.slip import Slip
from celery_idempotent.stores.deciding import DecidingStore, Row, Rows
from celery_idempotent.stores.journal import JournalStore, MemoryJournals

T = TypeVar("T")


def _clock_us() -> int:
    return time.time_ns() // 1000


class MemoryStore(DecidingStore[int], MemoryJournals, Rows[int]):
    """A :class:`~celery_idempotent.stores.base.Store` in a dictionary.

    It is its own rows. An operation works under a lock, at an instant of the clock.

    Args:
        clock: returns the time in microseconds; a test may move it.
    """

    _shared: ClassVar[dict[str, MemoryStore]] = {}
    is_shared = False
    #: It was never unreachable.
    failed_at = -math.inf

    def __init__(self, clock: Callable[[], int] = _clock_us) -> None:
        MemoryJournals.__init__(self)
        DecidingStore.__init__(self, self)
        self._clock = clock
        self._lock = threading.RLock()
        # Packed as in every store, so that a test sees what the stored form keeps.
        self._records: dict[str, tuple[bytes, int]] = {}
        self._slips: dict[str, tuple[bytes, int]] = {}
        self._steps: dict[str, dict[str, bytes]] = {}

    @classmethod
    def shared(cls, url: str) -> MemoryStore:
        """Return the store of that URL in this process: every app that names it gets the same."""
        return cls._shared.setdefault(url, cls())

    @classmethod
    def from_url(cls, url: str, options: Mapping[str, Any] | None = None) -> MemoryStore:
        """Return the store of that URL in this process; it takes no options."""
        return cls.shared(url)

    @property
    def journals(self) -> JournalStore:
        return self

    def operate(self, work: Callable[[int], T]) -> T:
        with self._lock:
            return work(self._clock())

    def transaction(self, at: int) -> AbstractContextManager[None]:
        return nullcontext()

    def read(
        self,
        at: int,
        key: str = "",
        slip_key: str = "",
        awaited_key: str = "",
        queued_key: str = "",
    ) -> Row:
        record = self._records.get(key)
        if record is not None and at // 1000 >= record[1]:
            del self._records[key]
            self._steps.pop(key, None)
            record = None
        packed, expires_ms = record or (None, None)
        stamp = None if record is None else 0
        beside: list[Any] = []
        for name in (slip_key, awaited_key, queued_key):
            beside += self._slips.get(name, (None, None))
        return Row.found(at, packed, stamp, None, expires_ms, *beside)

    def write_record(self, at: int, key: str, row: Row, record: Record, expires_ms: int) -> bool:
        self._records[key] = (record.pack(), expires_ms)
        return True

    def write_slip(
        self, at: int, slip_key: str, row: Row, slip: Slip | Reservation | None, expires_ms: int
    ) -> bool:
        if slip is None:
            self._slips.pop(slip_key, None)
        else:
            self._slips[slip_key] = (slip.pack(), expires_ms)
        return True

    def read_steps(self, at: int, key: str) -> dict[str, bytes]:
        return dict(self._steps.get(key, {}))

    def write_step(self, at: int, key: str, name: str, packed: bytes) -> None:
        self._steps.setdefault(key, {})[name] = packed

    def drop_steps(self, at: int, key: str, start: str = "") -> None:
        steps = self._steps.get(key, {})
        self._steps[key] = {name: it for name, it in steps.items() if not name.startswith(start)}

    def page(self, at: int, start: str, after: str, count: int) -> list[str]:
        live = (key for key, (_, expires_ms) in self._records.items() if expires_ms > at // 1000)
        return sorted(key for key in live if key.startswith(start) and key > after)[:count]

    def page_beside(self, at: int, start: str, after: str, count: int) -> list[str]:
        return sorted(key for key in self._slips if key.startswith(start) and key > after)[:count]
