"""Records in this process's memory: for eager tests, and as the model of every other store."""

from __future__ import annotations

import fnmatch
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar

from celery_idempotent.core import transitions
from celery_idempotent.core.record import Record, State
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.transitions import (
    Claim,
    Claimed,
    ClaimVerdict,
    Lost,
    Note,
    Recorded,
    Resolve,
    Settle,
    Write,
)
from celery_idempotent.errors import StoreError
from celery_idempotent.stores.base import GIVEN_UP_MS, Renewal
from celery_idempotent.stores.journal import MemoryJournals

__all__ = ["MemoryStore"]


def _clock_us() -> int:
    return time.time_ns() // 1000


def _unescaped(pattern: str) -> str:
    """Turn Redis's ``\\*`` for a plain star into fnmatch's ``[*]``."""
    return re.sub(r"\\(.)", lambda m: f"[{m[1]}]" if m[1] in "*?[" else m[1], pattern)


class MemoryStore(MemoryJournals):
    """A :class:`~celery_idempotent.stores.base.Store` in a dictionary.

    Args:
        clock: gives the time in microseconds; a test may move it.
    """

    _shared: ClassVar[dict[str, MemoryStore]] = {}
    #: It never was away.
    failed_at = -math.inf

    def __init__(self, clock: Callable[[], int] = _clock_us) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.RLock()
        # Packed, as everywhere: what a test sees here has been through the stored form.
        self._records: dict[str, tuple[bytes, int]] = {}
        self._slips: dict[str, tuple[bytes, int]] = {}
        self._steps: dict[str, dict[str, bytes]] = {}

    @classmethod
    def shared(cls, url: str) -> MemoryStore:
        """Give the store of that URL in this process: every app that names it gets the same."""
        return cls._shared.setdefault(url, cls())

    def _read(self, key: str, now_us: int, token: int | None = None) -> Record | None:
        entry = self._records.get(key)
        if entry is None:
            return None
        packed, gone_ms = entry
        if now_us // 1000 >= gone_ms:
            del self._records[key]
            self._steps.pop(key, None)
            return None
        return Record.unpack(packed, token)

    def _read_slip(self, slip_key: str, now_us: int) -> Slip | None:
        packed, gone_ms = self._slips.get(slip_key, (b"", 0))
        return Slip.unpack(packed) if now_us // 1000 < gone_ms else None

    def _write(self, key: str, write: Write | None, now_us: int, slip_key: str = "") -> bool:
        if write is None:
            return False
        now_ms = now_us // 1000
        if write.record is not None:
            gone_ms = now_ms + write.ttl_ms
            if write.ttl_ms == transitions.KEEP_TTL:
                gone_ms = self._records[key][1]
            self._records[key] = (write.record.pack(), gone_ms)
        if write.slip is not None:
            gone_ms = now_ms + write.slip_ttl_ms
            if write.slip_ttl_ms == transitions.KEEP_TTL:
                gone_ms = self._slips[slip_key][1]
            self._slips[slip_key] = (write.slip.pack(), gone_ms)
        elif write.slip_ttl_ms == 0:
            self._slips.pop(slip_key, None)
        return True

    def claim(self, key: str, ask: Claim) -> ClaimVerdict:
        with self._lock:
            now = self._clock()
            slip = self._read_slip(ask.slip_key, now)
            awaited = self._read_slip(ask.awaited_key, now)
            record = self._read(key, now)
            verdict, write = transitions.claim(record, ask, now, slip=slip, awaited=awaited)
            self._write(key, write, now, ask.slip_key)
            if isinstance(verdict, Claimed) and record is not None and record.has_steps:
                return replace(verdict, steps=dict(self._steps.get(key, {})))
            return verdict

    def settle(self, key: str, event: Settle) -> Recorded | Lost:
        with self._lock:
            now = self._clock()
            record = self._read(key, now, event.record.token)
            slip = self._read_slip(event.slip_key, now)
            verdict, write = transitions.settle(record, event, now, slip=slip)
            self._write(key, write, now, event.slip_key)
            return verdict

    def renew(self, renewals: Sequence[Renewal]) -> list[Recorded | Lost | StoreError]:
        with self._lock:
            now = self._clock()
            return [self._renew_one(one, now) for one in renewals]

    def _renew_one(self, one: Renewal, now: int) -> Recorded | Lost | StoreError:
        try:
            record = self._read(one.key, now, one.held.token)
        except StoreError as exc:
            return exc
        slip = self._read_slip(one.slip_key, now)
        verdict, write = transitions.renew(
            record, one.held, one.lease_ms, one.keep_ms, now, slip=slip
        )
        self._write(one.key, write, now)
        return verdict

    def step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        with self._lock:
            now = self._clock()
            record = self._read(one.key, now, one.held.token)
            slip = self._read_slip(one.slip_key, now)
            verdict, write = transitions.step(
                record, one.held, one.lease_ms, one.keep_ms, now, slip=slip
            )
            if write is not None:
                if not (record or one.held).has_steps:
                    self._steps[one.key] = {}
                self._steps.setdefault(one.key, {})[name] = packed
            self._write(one.key, write, now)
            return verdict

    def resolve(self, key: str, event: Resolve) -> bool:
        with self._lock:
            now = self._clock()
            return self._write(key, transitions.resolve(self._read(key, now), event, now), now)

    def note(self, key: str, event: Note) -> None:
        with self._lock:
            now = self._clock()
            slip = self._read_slip(event.slip_key, now)
            write = transitions.note(self._readable(key, now), event, slip=slip)
            self._write(key, write, now, event.slip_key)

    def slip(self, slip_key: str) -> Slip | None:
        with self._lock:
            return self._read_slip(slip_key, self._clock())

    def end_lease(self, key: str, owner: bytes, process: bytes, slip_key: str = "") -> bool:
        with self._lock:
            now = self._clock()
            slip, record = self._read_slip(slip_key, now), self._readable(key, now)
            write = transitions.end_lease(record, owner, process, now, slip=slip)
            return self._write(key, write, now, slip_key)

    def _readable(self, key: str, now_us: int) -> Record | None:
        with suppress(StoreError):
            return self._read(key, now_us)
        return None

    def abandon(self, key: str, given_up: Record, ttl_ms: int) -> None:
        with self._lock, suppress(StoreError):
            now = self._clock()
            write = transitions.abandon(self._read(key, now), given_up, ttl_ms, GIVEN_UP_MS, now)
            self._write(key, write, now)

    def forget(self, key: str, ttl_ms: int) -> bool:
        with self._lock:
            now = self._clock()
            try:
                record = self._read(key, now)
            except StoreError:
                record = Record(State.RELEASED, 0)  # unreadable: freed all the same
            self._steps.pop(key, None)
            return self._write(key, transitions.forget(record, ttl_ms, now), now)

    def get(self, key: str) -> Record | None:
        with self._lock:
            return self._read(key, self._clock())

    def get_many(self, keys: Sequence[str]) -> list[Record | StoreError | None]:
        return [self._in_list(key) for key in keys]

    def _in_list(self, key: str) -> Record | StoreError | None:
        try:
            return self.get(key)
        except StoreError as exc:
            return exc

    def now_ms(self) -> int:
        return self._clock() // 1000

    def peek(self, key: str) -> tuple[Record | None, int]:
        with self._lock:
            now = self._clock()
            return self._read(key, now), now // 1000

    def steps(self, key: str) -> dict[str, bytes]:
        with self._lock:
            return dict(self._steps.get(key, {})) if self.ttl(key) else {}

    def ttl(self, key: str) -> float | None:
        with self._lock:
            left = self._records.get(key, (b"", 0))[1] - self._clock() // 1000
            return left / 1000 if left > 0 else None

    def scan(self, pattern: str) -> Iterator[str]:
        with self._lock:
            now = self._clock()
            keys = [key for key in self._records if self._records[key][1] > now // 1000]
        wanted = _unescaped(pattern)
        return (key for key in keys if fnmatch.fnmatchcase(key, wanted))

    def ping(self) -> None:
        """Memory always answers."""

    def close(self) -> None:
        """Nothing is held."""
