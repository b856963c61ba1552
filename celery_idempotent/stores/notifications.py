"""Hears from PostgreSQL that runs are over: one connection that listens (LISTEN and NOTIFY)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from celery_idempotent.errors import StoreUnavailable

#: The channel on which the keys are told, one for each database.
CHANNEL: Final = "celery_idempotent"
#: The statement that tells one, with the key as its only parameter.
NOTIFY: Final = f"SELECT pg_notify('{CHANNEL}', %s)"
#: How long it takes at most until something that was told is heard, in seconds.
_HEARD_WITHIN_S: Final = 2.0
#: How a key begins that is told only to try the connection: no record's key begins so.
_TRIAL: Final = "?"


class PostgresSubscription:
    """A :class:`.Subscription` on PostgreSQL.

    It hears the keys of all workers, and drops what nobody here waits for.

    Args:
        raw: a connection of psycopg (3 or 2), in autocommit, for this alone.
        tell: tells a key over another connection.
    """

    def __init__(self, raw: Any, tell: Callable[[str], None]) -> None:
        self._raw = raw
        self._tell = tell
        self._keys: set[str] = set()
        self._trial = ""
        self._trials: set[str] = set()
        #: What was heard and not read yet.
        self._ended: list[str] = []
        with raw.cursor() as cursor:
            cursor.execute(f"LISTEN {CHANNEL}")

    def sockets(self) -> Sequence[int]:
        return [self._raw.fileno()]

    def follow(self, keys: Sequence[str]) -> None:
        self._keys.update(keys)
        if not self._trial:
            # A pooler takes LISTEN, and loses what is told.
            self._try()
            until = time.monotonic() + _HEARD_WITHIN_S
            while self._trial not in self._trials:
                if time.monotonic() > until:
                    raise StoreUnavailable("what is told to the database does not come here")
                time.sleep(0.01)
                self._ended += self._receive()

    def unfollow(self, keys: Sequence[str]) -> None:
        self._keys.difference_update(keys)

    def read(self) -> list[str]:
        ended, self._ended = self._ended + self._receive(), []
        return ended

    def check(self) -> None:
        self._ended += self._receive()
        if self._trial not in self._trials:
            raise StoreUnavailable("the listening connection does not answer")
        self._try()

    def close(self) -> None:
        with suppress(Exception):
            self._raw.close()

    def _try(self) -> None:
        self._trials = set()
        self._trial = _TRIAL + os.urandom(8).hex()
        self._tell(self._trial)

    def _receive(self) -> list[str]:
        try:
            told = _told(self._raw)
        except Exception as exc:
            raise StoreUnavailable(f"the listening connection is broken: {exc}") from exc
        self._trials.update(key for key in told if key.startswith(_TRIAL))
        return [key for key in told if key in self._keys]


def _told(raw: Any) -> list[str]:
    """Return what has arrived at a connection, without waiting."""
    if not hasattr(raw, "pgconn"):  # psycopg2
        raw.poll()
        notices, raw.notifies[:] = list(raw.notifies), []
        return [notice.payload for notice in notices]
    raw.pgconn.consume_input()
    told = []
    while (notice := raw.pgconn.notifies()) is not None:
        told.append(notice.extra.decode("utf-8", "replace"))
    return told
