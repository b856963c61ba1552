"""Records in PostgreSQL, MySQL, MariaDB or SQLite: the store, and the tables for Alembic."""

from celery_idempotent.stores.sql.schema import create_schema, metadata
from celery_idempotent.stores.sql.store import SqlStore

__all__ = ["SqlStore", "create_schema", "metadata"]
