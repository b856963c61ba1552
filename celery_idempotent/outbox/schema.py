"""The outbox's table, as metadata for Alembic, and a function that makes it."""

from __future__ import annotations

from celery_idempotent.errors import missing_extra
from celery_idempotent.outbox.message import LONGEST_ID
from celery_idempotent.stores.sql.schema import create_missing

try:
    from sqlalchemy import (
        BigInteger,
        Column,
        Engine,
        Identity,
        Index,
        Integer,
        MetaData,
        String,
        Table,
        Text,
    )
    from sqlalchemy.dialects import mysql
except ImportError as exc:
    raise missing_extra(exc, "the outbox needs", "sql") from exc

#: The case of ids matters, whatever the database's own collation is.
_Id = String(LONGEST_ID).with_variant(
    mysql.VARCHAR(LONGEST_ID, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)
_Text = Text().with_variant(mysql.LONGTEXT(charset="utf8mb4"), "mysql", "mariadb")

#: For Alembic: ``target_metadata = [Base.metadata, outbox.metadata]``.
metadata = MetaData()

outbox = Table(
    "idempotency_outbox",
    metadata,
    Column(
        "id",
        # On SQLite only an INTEGER increments by itself.
        BigInteger().with_variant(Integer, "sqlite"),
        Identity(),
        primary_key=True,
        comment="the order of sending",
    ),
    Column("task_id", _Id, nullable=False, unique=True),
    Column("task", String(255), nullable=False, comment="the task's name"),
    Column("message", _Text, nullable=False, comment="arguments and options, as JSON"),
    Column("created_us", BigInteger, nullable=False, comment="microseconds since 1970"),
    Column("due_us", BigInteger, nullable=False, server_default="0", comment="not sent before"),
    Column("attempts", Integer, nullable=False, server_default="0", comment="that failed"),
    Column("error", _Text, nullable=True, comment="of the last of them"),
    Index("ix_idempotency_outbox_due_us", "due_us"),
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
    sqlite_autoincrement=True,
)


def create_schema(engine: Engine) -> list[str]:
    """Make the table if it is not there; an existing one is left as it is.

    Returns:
        Its name if it was made, and nothing else.
    """
    return create_missing(engine, metadata)
