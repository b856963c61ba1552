"""Journals in a database: rows in the order in which they came, the oldest of which are deleted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, delete, insert, select

from celery_idempotent.stores.deciding import fit
from celery_idempotent.stores.journal import StoredEvent
from celery_idempotent.stores.sql.rows import SqlRows
from celery_idempotent.stores.sql.schema import journal as table

#: A journal may grow by about this part before its oldest rows are deleted.
_SLACK: Final = 1 / 8


class SqlJournals:
    """A :class:`~celery_idempotent.stores.journal.JournalStore` in a database."""

    rows: SqlRows

    def append_events(self, journal: str, events: Sequence[bytes], most: int) -> None:
        key = fit(journal)
        at_ms = self.rows.engines.flavour.now_us // 1000

        def work(connection: Connection) -> None:
            added = [{"journal_key": key, "at_ms": at_ms, "event": event} for event in events]
            connection.execute(insert(table).values(added))
            # At random, so that there are no more deletions with more processes.
            if random.random() * most * _SLACK < len(events):
                _cut(connection, key, most)

        if events:
            self.rows.operate(work)

    def read_events(self, journal: str, before: str | None, count: int) -> list[StoredEvent]:
        wanted = select(table.c.at_ms, table.c.id, table.c.event)
        wanted = wanted.where(table.c.journal_key == fit(journal))
        if before is not None:
            wanted = wanted.where(table.c.id < int(before.partition("-")[2]))
        wanted = wanted.order_by(table.c.id.desc()).limit(count)
        return self.rows.operate(
            lambda connection: [
                StoredEvent(f"{at_ms}-{number}", bytes(event))
                for at_ms, number, event in connection.execute(wanted)
            ]
        )


def _cut(connection: Connection, key: str, most: int) -> None:
    mine = table.c.journal_key == key
    newest = select(table.c.id).where(mine).order_by(table.c.id.desc())
    last = connection.scalars(newest.offset(most).limit(1)).first()
    if last is not None:
        connection.execute(delete(table).where(mine, table.c.id <= last))
