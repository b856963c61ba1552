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
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Final

from celery_idempotent.core.record import State
from celery_idempotent.core.verdicts import UNKNOWN_TTL_MS
from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.stores.base import Store
from celery_idempotent.stores.redis.wire import Script, ScriptCall, Wire, load_script

#: So many records are asked for at once.
_BATCH: Final = 1000

log = logging.getLogger("celery_idempotent")


class RedisLists(Store):
    """The list of unknown outcomes, and how scripts are called and lists are read over a wire."""

    _wire: Wire
    #: The command that tells those who wait that a run is over.
    _publish = "PUBLISH"

    def _script(self, name: str) -> Script:
        return load_script(name, self._publish)

    def _call(self, script: str, keys: tuple[str, ...], *args: bytes | str | int) -> Any:
        """Call a script that is not called for every delivery."""
        return self._wire.call(ScriptCall(self._script(script), keys, args))

    def try_listing(self, key: str, token: int = 0) -> None:
        # With the token: a record that is unknown again later is another entry.
        listed = _unknown_of(key.partition(":{")[0])
        self._call("list_unknown", (listed,), f"{token} {key}", UNKNOWN_TTL_MS)

    def _list_unknown(self, key: str, token: int) -> None:
        """List a record. If that fails, whoever is told of the outcome next lists it."""
        try:
            self.try_listing(key, token)
        except StoreError as exc:
            log.debug("%s is unknown, and could not be listed as such: %s", key, exc)

    def unknown(self, prefix: str) -> list[str]:
        return self._still_in(_unknown_of(prefix), (State.UNKNOWN,))

    def _still_in(self, listed: str, states: Collection[State]) -> list[str]:
        """Return the listed keys whose records are in these states still; delete the others.

        Args:
            listed: a sorted set of entries, each of which is a record's token and its key.
        """
        entries: list[bytes] = self._wire.command("ZRANGE", listed, 0, -1)
        keys = [entry.decode("utf-8", "surrogateescape").partition(" ")[2] for entry in entries]
        found: dict[str, None] = {}
        over: list[bytes] = []
        for start in range(0, len(keys), _BATCH):
            batch = keys[start : start + _BATCH]
            records = self.get_many(batch)
            for entry, key, record in zip(entries[start:], batch, records, strict=False):
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
                self._wire.command("ZREM", listed, *over)
        return list(found)


def _unknown_of(prefix: str) -> str:
    """Where the list of a prefix is: no record's name, nor beside one."""
    return f"{prefix}:unknown"
