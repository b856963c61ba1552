"""The journal as operators read it: what happened, newest first, to which call and which record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import islice
from typing import Any, Final

from celery_idempotent.errors import RecordCorrupt
from celery_idempotent.ops.records import read
from celery_idempotent.ops.views import Filter, RecordView, parse_name
from celery_idempotent.stores.base import Store
from celery_idempotent.stores.journal import StoredEvent, journal_key

_PAGE: Final = 1000
#: So many records are read at once while a list is made of the journal.
_BATCH: Final = 200
_KNOWN: Final = ("event", "key", "task", "id", "original", "label", "node", "pid", "age", "by")


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One event of the journal."""

    #: What: ``claimed``, ``succeeded``, ``failed``, ``released``, ``retrying``, ``interrupted``,
    #: ``unknown``, ``compensating``, ``deduplicated``, ``answered again``, ``waiting``,
    #: ``dropped``, ``refused``, ``mismatch``, ``superseded``, ``lost``, ``store away``,
    #: ``process lost``, ``ended``, ``forgotten``, ``resolved``, ``resumed``, ``missing``.
    what: str
    #: When, in milliseconds since 1970 on the store's clock.
    at_ms: int
    #: The record's name, and its key as readable as it was kept.
    name: str
    key: str
    task: str
    task_id: str | None
    #: The call that held the key, or whose outcome it was.
    original_id: str | None
    #: The worker, and its process.
    node: str
    pid: int
    #: What else is told of such an event: ``took``, ``delay``, ``error``, ``attempt``, ...
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def began_ms(self) -> int | None:
        """When the run began that this tells of; ``None``: it tells of none, or does not say."""
        if self.what == "claimed":
            return self.at_ms
        took = self.more.get("took")
        return None if took is None else self.at_ms - int(1000 * float(took))

    def as_dict(self) -> dict[str, Any]:
        """Give what goes into JSON."""
        return {
            "event": self.what,
            "at": when(self.at_ms),
            "name": self.name,
            "key": self.key,
            "task": self.task,
            "task_id": self.task_id,
            "original_id": self.original_id,
            "node": self.node,
            "pid": self.pid,
            **self.more,
        }


class History:
    """What the journal of a store knows.

    It is empty where the journal is off, or the store keeps none.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store.journals
        self._prefix = prefix
        self._journal = journal_key(prefix)

    def events(self) -> Iterator[JournalEntry]:
        """Give all that is known, newest first, read a page at a time as it is asked for.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        if self._store is None:
            return
        before: str | None = None
        seen: set[str] = set()
        while True:
            try:
                page = self._store.read_events(self._journal, before, _PAGE)
            except RecordCorrupt:
                return  # another program's key: the doctor says so
            for stored in page:
                told = self._read(stored, seen)
                if told is not None:
                    yield told
            if len(page) < _PAGE:
                return
            before = page[-1].place

    def of_record(self, name: str) -> list[JournalEntry]:
        """Give what happened to one record, oldest first."""
        return [told for told in self.events() if told.name == name][::-1]

    def duplicates(self, name: str, limit: int | None = None) -> list[JournalEntry]:
        """Give the calls that were answered with a record's outcome, newest first."""
        wanted = (t for t in self.events() if t.name == name and t.what == "deduplicated")
        return list(islice(wanted, limit))

    def names(self, since_ms: int = 0) -> Iterator[str]:
        """Give the names of records, the ones that something happened to last come first."""
        seen: set[str] = set()
        for told in self.events():
            if told.at_ms < since_ms:
                return
            if told.name and told.name not in seen:
                seen.add(told.name)
                yield told.name

    def _claimed_at(self, name: str) -> float | None:
        """Return when a record's last run began; ``None``: the journal doesn't say."""
        for told in self.events():
            if told.name == name and told.began_ms is not None:
                token = told.more.get("token")  # made of the store's clock when it claimed the key
                return token / 1e6 if isinstance(token, int) else told.began_ms / 1000
        return None

    def claimed_at(self, view: RecordView) -> float | None:
        """Return when a key was claimed, in seconds since 1970; ``None``: nobody has it.

        A token that a person gave it since, by ``resolve``, tells a later time.
        """
        if view.claimed_at is None:
            return None
        by_journal = self._claimed_at(view.name)
        return view.claimed_at if by_journal is None else by_journal

    def reaches_back_to(self) -> int | None:
        """Give the time of the oldest event; ``None``: there is none."""
        oldest = None
        for told in self.events():
            oldest = told.at_ms
        return oldest

    def _read(self, stored: StoredEvent, seen: set[str]) -> JournalEntry | None:
        """Read an event; ``None`` for what is none, or was sent twice."""
        try:
            fields = json.loads(stored.packed)
            by = str(fields["by"])
            name = str(fields["key"])
            told = JournalEntry(
                what=str(fields["event"]),
                at_ms=stored.stored_ms - int(fields.get("age", 0)),
                name=name,
                key=str(fields.get("label") or self._key_of(name)),
                task=str(fields.get("task", "")),
                task_id=fields.get("id"),
                original_id=fields.get("original"),
                node=str(fields.get("node", "")),
                pid=int(fields.get("pid", 0)),
                more={field: value for field, value in fields.items() if field not in _KNOWN},
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        if by in seen:
            return None
        seen.add(by)
        return told

    def _key_of(self, name: str) -> str:
        parts = parse_name(self._prefix, name)
        return name if parts is None else parts[1]


def newest_first(
    store: Store,
    prefix: str,
    wanted: Filter,
    *,
    since_ms: int = 0,
    gone_through: Callable[[int], object] = lambda number: None,
) -> Iterator[list[RecordView]]:
    """Give the records of the journal that are wanted, newest first, a list a batch.

    Args:
        since_ms: give only those that something happened to since then, on the store's clock.
        gone_through: called with the number of records in each batch, wanted or not.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    names = History(store, prefix).names(since_ms)
    while batch := list(islice(names, _BATCH)):
        yield read(store, prefix, batch, wanted)
        gone_through(len(batch))


def when(at_ms: int) -> str:
    """Give an instant as ISO 8601 in UTC, to the millisecond."""
    moment = datetime.fromtimestamp(at_ms / 1000, tz=timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
