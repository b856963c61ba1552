"""Journals in Redis or Valkey: capped streams, each on the one node that its name leads to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from celery_idempotent.stores.journal import JOURNAL_TTL_MS, StoredEvent
from celery_idempotent.stores.redis.wire import ScriptCall, Wire, load_script

__all__ = ["RedisJournals"]

_LAST: Final = 2**64 - 1


class RedisJournals:
    """A :class:`~celery_idempotent.stores.journal.JournalStore` over a wire."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._journal = load_script("journal")

    def append_events(self, journal: str, events: Sequence[bytes], most: int) -> None:
        self._wire.call(ScriptCall(self._journal, (journal,), (most, JOURNAL_TTL_MS, *events)))

    def read_events(self, journal: str, before: str | None, count: int) -> list[StoredEvent]:
        end = "+" if before is None else _just_before(before)
        answer: Any = self._wire.command("XREVRANGE", journal, end, "-", "COUNT", count)
        return [StoredEvent(place.decode(), fields[1]) for place, fields in answer]


def _just_before(place: str) -> str:
    # Servers before version 6.2 have no word for it.
    at, _, number = place.partition("-")
    return f"{at}-{int(number) - 1}" if int(number) else f"{int(at) - 1}-{_LAST}"
