"""Records in PostgreSQL, MySQL, MariaDB or SQLite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from celery_idempotent.stores.base import Subscription, Transaction, TransactionalStore
from celery_idempotent.stores.deciding import DecidingStore
from celery_idempotent.stores.journal import JournalStore
from celery_idempotent.stores.notifications import NOTIFY, PostgresSubscription
from celery_idempotent.stores.outage import not_done
from celery_idempotent.stores.sql.engines import Engines
from celery_idempotent.stores.sql.journal import SqlJournals
from celery_idempotent.stores.sql.purge import PURGED_AT_ONCE, purge, tend
from celery_idempotent.stores.sql.rows import SqlRows
from celery_idempotent.stores.sql.schema import create_schema
from celery_idempotent.stores.sql.transaction import SqlTransaction

__all__ = ["SqlStore"]


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
        """Make the tables where they are not there yet (``celery -A app idempotency init-db``).

        Raises:
            StoreUnavailable: the database can't be reached, or doesn't allow it.
        """
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

    def purge(self, limit: int = PURGED_AT_ONCE) -> int:
        """Delete up to ``limit`` expired records, and as many notes; return how many rows went."""
        return purge(self.rows, limit)

    def tend(self) -> bool:
        """Delete what expired, for a moment; return whether there is more."""
        return tend(self.rows)

    def close(self) -> None:
        self.engines.close()
