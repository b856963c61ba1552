"""Records in PostgreSQL, MySQL, MariaDB or SQLite."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Table, delete, select
from sqlalchemy.exc import SQLAlchemyError

from celery_idempotent.stores.base import Subscription, Transaction, TransactionalStore
from celery_idempotent.stores.deciding import DecidingStore
from celery_idempotent.stores.journal import JournalStore
from celery_idempotent.stores.notifications import NOTIFY, PostgresSubscription
from celery_idempotent.stores.outage import not_done
from celery_idempotent.stores.sql.engines import Engines
from celery_idempotent.stores.sql.journal import SqlJournals
from celery_idempotent.stores.sql.rows import SqlRows
from celery_idempotent.stores.sql.schema import create_schema, notes, records
from celery_idempotent.stores.sql.transaction import SqlTransaction

#: How many rows of a table one transaction deletes: a database deletes nothing by itself.
_PURGED_AT_ONCE: Final = 200
#: How long one turn may take, in seconds: the thread that does it also renews leases.
_TURN_S: Final = 0.1


class SqlStore(SqlJournals, DecidingStore[Connection]):
    """A :class:`~celery_idempotent.stores.base.Store` in a relational database."""

    needs_tending = True
    needs_schema = True
    rows: SqlRows

    def __init__(self, engines: Engines) -> None:
        super().__init__(SqlRows(engines))
        self.engines = engines

    @classmethod
    def from_url(cls, url: str, options: Mapping[str, Any] | None = None) -> SqlStore:
        """Make a store from a URL; it connects at the first operation."""
        return cls(Engines(url, options))

    def create_schema(self) -> Sequence[str]:
        """Make the tables where they are not there yet (``celery -A app idempotency init-db``)."""
        try:
            return create_schema(self.engines.sessions)
        except SQLAlchemyError as exc:
            raise self.rows.unavailable(exc) from exc
        except OSError as exc:
            raise not_done(f"the store at {self.engines.where} can't be made: {exc}") from exc

    @property
    def journals(self) -> JournalStore:
        return self

    @property
    def transactions(self) -> TransactionalStore:
        return self

    def subscribe(self) -> Subscription | None:
        if not self.rows.tells:
            return None

        def tell(key: str) -> None:
            with self.engines.own.connect() as connection:
                connection.exec_driver_sql(NOTIFY, (key,))

        try:
            pooled: Any = self.engines.own.raw_connection()
            raw = pooled.dbapi_connection
            pooled.detach()  # it is never given back
            raw.autocommit = True
            return PostgresSubscription(raw, tell)
        except SQLAlchemyError as exc:
            raise self.rows.unavailable(exc) from exc

    def begin(self) -> Transaction:
        """Begin a transaction on this database, for a body's effects and its completion."""
        return SqlTransaction(self, self.rows)

    def purge(self, limit: int = _PURGED_AT_ONCE) -> int:
        """Delete up to ``limit`` expired records, and as many notes; return how many rows went."""

        def work(connection: Connection) -> int:
            now_ms = self.rows.read(connection).now_ms
            return sum(self._purge(connection, table, now_ms, limit) for table in (records, notes))

        return self.rows.operate(work)

    def _purge(self, connection: Connection, table: Table, now_ms: int, limit: int) -> int:
        (key,) = table.primary_key.columns
        expired = select(key).where(table.c.expires_ms <= now_ms)
        expired = expired.order_by(table.c.expires_ms).limit(limit)
        if connection.execute(expired).first() is None:
            return 0
        with self.rows.transaction(connection):
            # What somebody is writing is left for the next time.
            names = list(connection.scalars(expired.with_for_update(skip_locked=True)))
            if not names:
                return 0
            gone: int = connection.execute(delete(table).where(key.in_(names))).rowcount
            return gone

    def tend(self) -> bool:
        until = time.monotonic() + _TURN_S
        while self.purge() >= _PURGED_AT_ONCE:
            if time.monotonic() >= until:
                return True
        return False

    def close(self) -> None:
        self.engines.close()
