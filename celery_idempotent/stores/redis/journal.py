"""Journals in Redis or Valkey: capped streams, each on the one node that its name leads to.

Beside a journal, on the same node, is the list of the runs that are under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from celery_idempotent.core.record import HELD
from celery_idempotent.stores.journal import JOURNAL_TTL_MS, ListedRuns, StoredEvent, journal_key
from celery_idempotent.stores.redis.lists import RedisLists

_LAST: Final = 2**64 - 1


class RedisJournals(RedisLists):
    """A :class:`~celery_idempotent.stores.journal.JournalStore` over a wire."""

    def append_events(self, journal: str, events: Sequence[bytes], most: int) -> None:
        self._call("journal", (journal,), most, JOURNAL_TTL_MS, 0, *events)

    def append_with_runs(
        self, journal: str, events: Sequence[bytes], most: int, runs: ListedRuns
    ) -> None:
        # With the token: where another run has the key since, it has another entry.
        changes = [f"+{token} {key}" for key, token in runs.begun]
        changes += [f"-{token} {key}" for key, token in runs.ended]
        keys, sizes = (journal, _runs_of(journal)), (most, JOURNAL_TTL_MS, len(changes))
        self._call("journal", keys, *sizes, *changes, *events)

    def held(self, prefix: str) -> list[str]:
        return self._still_in(_runs_of(journal_key(prefix)), HELD)

    def read_events(self, journal: str, before: str | None, count: int) -> list[StoredEvent]:
        end = "+" if before is None else _just_before(before)
        answer: Any = self._wire.command("XREVRANGE", journal, end, "-", "COUNT", count)
        return [StoredEvent(place.decode(), fields[1]) for place, fields in answer]


def _runs_of(journal: str) -> str:
    """Where the list of runs is: in a cluster on the node of the journal, and no record's name."""
    return f"{journal}:runs{{{journal}}}"


def _just_before(place: str) -> str:
    # Servers before version 6.2 know no exclusive bounds.
    at, _, number = place.partition("-")
    return f"{at}-{int(number) - 1}" if int(number) else f"{int(at) - 1}-{_LAST}"
