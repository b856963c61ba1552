"""Lists of records in Redis or Valkey that are found without a search of all records.

A record is on the node of its own hash tag, so that no script can write to it and to a list of all
records at once. An entry says only where to look: a reader asks the record itself, and deletes an
entry whose record was settled, forgotten, or has expired.

The client that is told that an outcome is unknown, or tells so, adds the record to the list of
these; ordinary runs never touch it. If that client dies first, its message comes again, and is told
the same. The list of what is running is kept with the journal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Final

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import UNKNOWN_TTL_MS
from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.stores.redis.wire import ScriptCall, Wire, load_script

GetMany = Callable[[Sequence[str]], list[Record | StoreError | None]]

#: So many records are asked for at once.
_BATCH: Final = 1000

log = logging.getLogger("celery_idempotent")


class UnknownRecords:
    """The list of unknown outcomes, over a wire."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._list = load_script("list_unknown")

    def add(self, key: str, token: int) -> None:
        """Add a record. If that fails, whoever is told of the outcome next adds it."""
        try:
            self.try_to_add(key, token)
        except StoreError as exc:
            log.debug("%s is unknown, and could not be listed as such: %s", key, exc)

    def try_to_add(self, key: str, token: int) -> None:
        """Add a record.

        Raises:
            StoreUnavailable: the store refuses it, or does not answer.
        """
        # With the token: a record that is unknown again later is another entry.
        listed = _list_of(key.partition(":{")[0])
        self._wire.call(ScriptCall(self._list, (listed,), (f"{token} {key}", UNKNOWN_TTL_MS)))

    def read(self, prefix: str, get_many: GetMany) -> list[str]:
        """Return the keys of those that are unknown still; delete the entries of all others.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        return read_list(self._wire, _list_of(prefix), (State.UNKNOWN,), get_many)


def read_list(wire: Wire, listed: str, states: Collection[State], get_many: GetMany) -> list[str]:
    """Return the listed keys whose records are in one of these states still; delete the others.

    Args:
        listed: a sorted set of entries, each of which is a record's token and its key.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    entries: list[bytes] = wire.command("ZRANGE", listed, 0, -1)
    keys = [entry.decode("utf-8", "surrogateescape").partition(" ")[2] for entry in entries]
    found: dict[str, None] = {}
    over: list[bytes] = []
    for start in range(0, len(keys), _BATCH):
        batch = keys[start : start + _BATCH]
        for entry, key, record in zip(entries[start:], batch, get_many(batch), strict=False):
            if isinstance(record, StoreUnavailable):
                raise record
            if isinstance(record, StoreError):
                continue  # it can't be read now; its entry stays
            if record is None or record.state not in states:
                over.append(entry)
            else:
                found[key] = None
    if over:
        with suppress(StoreError):  # whoever reads it next deletes them
            wire.command("ZREM", listed, *over)
    return list(found)


def _list_of(prefix: str) -> str:
    """Where the list of a prefix is: no record's name, nor beside one."""
    return f"{prefix}:unknown"
