"""Records in this process's memory: for eager tests, and as the model of every other store."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, ClassVar, TypeVar

from celery_idempotent.core.record import Record
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.slip import Slip
from celery_idempotent.stores.deciding import DecidingStore, Row, Rows
from celery_idempotent.stores.journal import JournalStore, StoredEvent

T = TypeVar("T")


def _clock_us() -> int:
    return time.time_ns() // 1000


class MemoryStore(DecidingStore[int], Rows[int]):
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
        super().__init__(self)
        self._clock = clock
        self._lock = threading.RLock()
        # Packed as in every store, so that a test sees what the stored form keeps.
        self._records: dict[str, tuple[bytes, int]] = {}
        self._slips: dict[str, tuple[bytes, int]] = {}
        self._steps: dict[str, dict[str, bytes]] = {}
        self._journals: dict[str, deque[StoredEvent]] = {}
        self._places = 0

    @classmethod
    def from_url(cls, url: str, options: Mapping[str, Any] | None = None) -> MemoryStore:
        """Return the store that each app of this process gets for that URL; it takes no options."""
        return cls._shared.setdefault(url, cls())

    @property
    def journals(self) -> JournalStore:
        return self

    def operate(self, work: Callable[[int], T]) -> T:
        with self._lock:
            return work(self._clock())

    def transaction(self, at: int) -> AbstractContextManager[None]:
        return nullcontext()

    def read(self, at: int, key: str = "", *beside: str) -> Row:
        record = self._records.get(key)
        if record is not None and at // 1000 >= record[1]:
            del self._records[key]
            self._steps.pop(key, None)
            record = None
        packed, expires_ms = record or (None, None)
        stamp = None if record is None else 0
        found: list[Any] = []
        for name in beside:
            found += self._slips.get(name, (None, None))
        return Row.found(at, packed, stamp, None, expires_ms, *found)

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

    def append_events(self, journal: str, events: Sequence[bytes], most: int) -> None:
        def append(at: int) -> None:
            kept = self._journals.get(journal)
            if kept is None or kept.maxlen != most:
                kept = self._journals[journal] = deque(kept or (), maxlen=most)
            for packed in events:
                self._places += 1
                kept.append(StoredEvent(f"{at // 1000}-{self._places}", packed))

        self.operate(append)

    def read_events(self, journal: str, before: str | None, count: int) -> list[StoredEvent]:
        with self._lock:
            newest_first = list(reversed(self._journals.get(journal, ())))
        end = _number(before) if before is not None else self._places + 1
        return list(islice((event for event in newest_first if _number(event.place) < end), count))


def _number(place: str) -> int:
    return int(place.partition("-")[2])
