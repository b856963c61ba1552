"""Records in PostgreSQL, MySQL, MariaDB or SQLite: the store, and the tables for Alembic."""

from celery_idempotent.errors import missing_extra

try:
    import sqlalchemy  # noqa: F401
except ImportError as exc:
    raise missing_extra(exc, "the SQL stores need", "sql") from exc

from celery_idempotent.stores.sql.schema import create_schema, metadata
from celery_idempotent.stores.sql.store import SqlStore

__all__ = ["SqlStore", "create_schema", "metadata"]
