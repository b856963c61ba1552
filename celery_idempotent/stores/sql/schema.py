"""The tables of the SQL store: as metadata that Alembic can take, and made at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    inspect,
    literal_column,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.exc import DBAPIError

from celery_idempotent.stores.deciding import LONGEST
from celery_idempotent.stores.sql.files import sqlite_file

#: Keys are compared byte by byte: "Order:1" and "order:1" are two keys, whatever the database's
#: own collation says. On MySQL, in one-byte characters, they fit well inside an index.
_Key = (
    String(LONGEST)
    .with_variant(postgresql.VARCHAR(LONGEST, collation="C"), "postgresql")
    .with_variant(
        mysql.VARCHAR(LONGEST, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
    )
)
_Packed = LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
_Text = Text().with_variant(mysql.TEXT(charset="utf8mb4"), "mysql", "mariadb")

#: To be given to Alembic: ``target_metadata = [Base.metadata, sql_schema.metadata]``.
metadata = MetaData()

records = Table(
    "idempotency_records",
    metadata,
    Column("record_key", _Key, primary_key=True),
    Column("state", String(16), nullable=False, comment="as commands show it: running, succeeded"),
    Column("token", BigInteger, nullable=False, comment="the fencing token"),
    Column("expires_ms", BigInteger, nullable=False, comment="from then on it counts as absent"),
    Column("stamp", BigInteger, nullable=False, comment="another one with every write"),
    Column("record", _Packed, nullable=False, comment="all of it, packed"),
    Index("ix_idempotency_records_expires_ms", "expires_ms"),
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
)

#: What needs a person. Not a parameter: with one, a database doesn't use the index below.
is_unknown = records.c.state == literal_column("'unknown'")

# Where the database has partial indexes, only unknown records have an entry: others write none.
Index(
    "ix_idempotency_records_unknown",
    records.c.state,
    postgresql_where=is_unknown,
    sqlite_where=is_unknown,
)

steps = Table(
    "idempotency_steps",
    metadata,
    Column(
        "record_key", _Key, ForeignKey(records.c.record_key, ondelete="CASCADE"), primary_key=True
    ),
    Column("step_key", _Key, primary_key=True),
    Column("name", _Text, nullable=False),
    Column("step", _Packed, nullable=False, comment="what became of it, packed"),
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
)

notes = Table(
    "idempotency_notes",
    metadata,
    Column("note_key", _Key, primary_key=True),
    Column("expires_ms", BigInteger, nullable=False),
    Column("slip", _Packed, nullable=True, comment="what an owner was answered, packed"),
    Index("ix_idempotency_notes_expires_ms", "expires_ms"),
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
)

journal = Table(
    "idempotency_journal",
    metadata,
    # Not a sequence: that would need rights of its own.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    Column("journal_key", _Key, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("event", _Packed, nullable=False, comment="what became of a delivery, packed"),
    Index("ix_idempotency_journal_journal_key_id", "journal_key", "id"),
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
)


def create_schema(engine: Engine) -> list[str]:
    """Make the tables and columns that are missing, and nothing else; return their names."""
    made = create_missing(engine, metadata)
    _twice(lambda: made.extend(_add_slip(engine)))  # to tables that an earlier release made
    return made


def create_missing(engine: Engine, tables: MetaData) -> list[str]:
    """Make the tables and indexes that are missing; return the tables' names.

    Each is made by itself: a database may commit each of them (MySQL, MariaDB), and whoever makes
    them too, at the same moment, may be anywhere between the first and the last.
    """
    file = sqlite_file(engine.url)
    if file is not None:
        file.touch()
    there = inspect(engine)
    missing = [table.name for table in tables.sorted_tables if not there.has_table(table.name)]
    for table in tables.sorted_tables:
        _twice(partial(table.create, engine, checkfirst=True))
        for index in table.indexes:
            _twice(partial(index.create, engine, checkfirst=True))
    return missing


def _twice(create: Callable[[], None]) -> None:
    """Make one thing if it is missing; where that fails, look again whether it is."""
    try:
        create()
    except DBAPIError:
        create()  # somebody else has made it since the first look; else this fails again


def _add_slip(engine: Engine) -> list[str]:
    there = {column["name"] for column in inspect(engine).get_columns(notes.name)}
    if notes.c.slip.name in there:
        return []
    kind = notes.c.slip.type.compile(engine.dialect)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"ALTER TABLE {notes.name} ADD COLUMN {notes.c.slip.name} {kind}"
        )
    return [f"{notes.name}.{notes.c.slip.name}"]
