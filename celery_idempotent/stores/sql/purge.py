"""Deletes what expired in the SQL store, a little at a time: a database does not do it itself."""

from __future__ import annotations

import time
from typing import Final

from sqlalchemy import Connection, Table, delete, select

from celery_idempotent.stores.sql.rows import SqlRows
from celery_idempotent.stores.sql.schema import notes, records

__all__ = ["PURGED_AT_ONCE", "purge", "tend"]

#: Rows of a table that one transaction deletes.
PURGED_AT_ONCE: Final = 200
#: How long one turn may take, in seconds: the thread that does it also renews leases.
_TURN_S: Final = 0.1


def purge(rows: SqlRows, limit: int) -> int:
    """Delete at most ``limit`` expired records, and as many notes; how many rows went."""

    def work(connection: Connection) -> int:
        now_ms = rows.read(connection).now_ms
        return sum(_purge(rows, connection, table, now_ms, limit) for table in (records, notes))

    return rows.operate(work)


def tend(rows: SqlRows) -> bool:
    """Delete what expired, for a moment; whether there is more."""
    until = time.monotonic() + _TURN_S
    while purge(rows, PURGED_AT_ONCE) >= PURGED_AT_ONCE:
        if time.monotonic() >= until:
            return True
    return False


def _purge(rows: SqlRows, connection: Connection, table: Table, now_ms: int, limit: int) -> int:
    (key,) = table.primary_key.columns
    expired = select(key).where(table.c.expires_ms <= now_ms)
    expired = expired.order_by(table.c.expires_ms).limit(limit)
    if connection.execute(expired).first() is None:
        return 0
    with rows.transaction(connection):
        # What somebody is writing is left for the next time.
        names = list(connection.scalars(expired.with_for_update(skip_locked=True)))
        if not names:
            return 0
        gone: int = connection.execute(delete(table).where(key.in_(names))).rowcount
        return gone
