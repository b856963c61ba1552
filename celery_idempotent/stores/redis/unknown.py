"""Lists the records in Redis or Valkey whose outcome is unknown, without a search of all records.

A record is on the node of its own hash tag, so that no script can write to it and to a list of all
records at once. The client that is told that an outcome is unknown, or tells so, adds the record
to the list; ordinary runs never touch it. If that client dies first, its message comes again, and
is told the same. An entry says only where to look: a reader asks the record itself, and deletes an
entry whose record was settled, forgotten, or has expired.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import UNKNOWN_TTL_MS
from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.stores.redis.wire import ScriptCall, Wire, load_script

__all__ = ["UnknownRecords"]

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
        listed = _list_of(prefix)
        entries: list[bytes] = self._wire.command("ZRANGE", listed, 0, -1)
        named = [entry.decode("utf-8", "surrogateescape").partition(" ") for entry in entries]
        found, over = [], []
        for start in range(0, len(named), _BATCH):
            batch = named[start : start + _BATCH]
            records = get_many([key for _, _, key in batch])
            for entry, (token, _, key), record in zip(
                entries[start:], batch, records, strict=False
            ):
                if isinstance(record, StoreUnavailable):
                    raise record
                if isinstance(record, StoreError):
                    continue  # it can't be read now; its entry stays
                if record is None or record.state is not State.UNKNOWN:
                    over.append(entry)
                elif str(record.token) == token:
                    found.append(key)
        if over:
            with suppress(StoreError):  # whoever reads it next deletes them
                self._wire.command("ZREM", listed, *over)
        return found


def _list_of(prefix: str) -> str:
    """Where the list of a prefix is: no record's name, nor beside one."""
    return f"{prefix}:unknown"
