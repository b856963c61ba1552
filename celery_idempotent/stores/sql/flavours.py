"""How PostgreSQL, MySQL, MariaDB and SQLite differ: clock, statements and errors."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    URL,
    BigInteger,
    ColumnElement,
    Delete,
    Insert,
    Table,
    Update,
    bindparam,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from celery_idempotent.errors import ConfigurationError
from celery_idempotent.stores.sql.files import NO_FILE
from celery_idempotent.stores.sql.schema import notes, records


class Trouble(enum.Enum):
    """What an error of the database means for the operation that met it."""

    #: Somebody else has the row locked; nothing was changed.
    LOCKED = enum.auto()
    #: The transaction was undone because of a deadlock, and may be tried again.
    UNDONE = enum.auto()
    #: The row is there already.
    THERE = enum.auto()
    #: A table of the store, or a column, is missing.
    NO_TABLES = enum.auto()
    #: The file of an SQLite database is missing.
    NO_FILE = enum.auto()
    #: The connection is gone, and with it the answer.
    CUT = enum.auto()
    #: Anything else: the database can't work now.
    AWAY = enum.auto()


_POSTGRESQL: Final = {
    "55P03": Trouble.LOCKED,
    "40001": Trouble.UNDONE,
    "40P01": Trouble.UNDONE,
    "23505": Trouble.THERE,
    "42P01": Trouble.NO_TABLES,
    "42703": Trouble.NO_TABLES,
    "3F000": Trouble.NO_TABLES,
}
_MYSQL: Final = {
    1205: Trouble.LOCKED,
    3572: Trouble.LOCKED,
    1213: Trouble.UNDONE,
    1020: Trouble.UNDONE,
    1062: Trouble.THERE,
    1146: Trouble.NO_TABLES,
    1054: Trouble.NO_TABLES,
}
# By their texts: Python 3.10 does not give SQLite's error codes.
_SQLITE: Final = {
    "database is locked": Trouble.LOCKED,
    "database table is locked": Trouble.LOCKED,
    "UNIQUE constraint failed": Trouble.THERE,
    "no such table": Trouble.NO_TABLES,
    "no such column": Trouble.NO_TABLES,
    "has no column": Trouble.NO_TABLES,
    NO_FILE: Trouble.NO_FILE,
}


def trouble_of(exc: SQLAlchemyError) -> Trouble:
    """Return what an error means for the operation that met it."""
    if isinstance(exc, PoolTimeoutError) or not isinstance(exc, DBAPIError):
        return Trouble.AWAY
    original: Any = exc.orig
    if exc.connection_invalidated:
        # PyMySQL says "lost connection" when it stops waiting; the reason is the error's context.
        late = any(isinstance(why, TimeoutError) for why in (original, original.__context__))
        return Trouble.AWAY if late else Trouble.CUT
    first = original.args[0] if original is not None and original.args else None
    if isinstance(first, int):
        return _MYSQL.get(first, Trouble.AWAY)
    code = getattr(original, "sqlstate", None)
    if code is not None:
        return _POSTGRESQL.get(code, Trouble.AWAY)
    for words, trouble in _SQLITE.items():
        if words in str(first):
            return trouble
    return Trouble.AWAY


def is_refusal(exc: BaseException) -> bool:
    """Whether the database itself answered with this error, so that nothing was done."""
    if not isinstance(exc, DBAPIError) or exc.connection_invalidated:
        return False
    original: Any = exc.orig
    first = original.args[0] if original.args else None
    if isinstance(first, int):
        return not 2000 <= first < 3000  # those are of MySQL's client
    is_sqlite = type(original).__module__.startswith("sqlite3")
    return is_sqlite or getattr(original, "sqlstate", None) is not None


def is_silence(exc: BaseException) -> bool:
    """Whether the database did not answer, or let nobody connect."""
    return isinstance(exc, DBAPIError) and (exc.statement is None or not is_refusal(exc))


def hint_of(exc: BaseException) -> str:
    """Return what to do about an error whose own text does not say it, or an empty text."""
    state = getattr(getattr(exc, "orig", None), "sqlstate", None)
    if state in ("42P05", "26000"):  # a prepared statement that is there already, or isn't
        return (
            ". A pooler gives each transaction another connection: add ?prepare_threshold=0 to the "
            "URL, so that no statement is prepared"
        )
    return ""


@dataclass(frozen=True)
class Flavour:
    """One kind of database. Each statement is one round trip, and none waits for a row's lock."""

    #: What SQLAlchemy calls database and driver.
    driver: str
    #: The database's clock when the statement runs, in microseconds since 1970.
    now_us: ColumnElement[int]
    #: Begins a transaction that sees what others committed since.
    begin: str
    #: Whether a transaction that wrote keeps everybody else from writing anything.
    one_writer: bool = False

    def insert(self, table: Table) -> Insert:
        """Return a statement that writes a row where there is none, and nothing otherwise.

        Nor does it after ``deadline_us`` by the database's clock: it may have waited in a socket.
        """
        one = select(self.now_us.label("now_us")).subquery("one")
        row = (
            select(*(bindparam(column.name, type_=column.type) for column in table.c))
            .select_from(one)
            .where(one.c.now_us <= bindparam("deadline_us", type_=BigInteger))
        )
        names = [column.name for column in table.c]
        if self.driver.startswith("postgresql"):
            return postgresql.insert(table).from_select(names, row).on_conflict_do_nothing()
        if self.driver.startswith("sqlite"):
            return sqlite.insert(table).from_select(names, row).on_conflict_do_nothing()
        return insert(table).from_select(names, row)  # raises: IGNORE would ignore other errors

    def update_record(self) -> Update:
        """Return a statement that writes a record that is as it was read, and locked by nobody.

        Its parameters: ``at`` and ``seen`` (key and stamp that were read), ``deadline_us`` as in
        :meth:`insert`, and the new columns.
        """
        names = ("state", "token", "stamp", "record", "expires_ms")
        statement = update(records).values({name: bindparam(name) for name in names})
        as_read = (
            (records.c.record_key == bindparam("at"))
            & (records.c.stamp == bindparam("seen"))
            & (self.now_us <= bindparam("deadline_us", type_=BigInteger))
        )
        if self.one_writer:
            return statement.where(as_read)
        free = (
            select(records.c.record_key)
            .where(as_read)
            .with_for_update(skip_locked=True)
            .subquery("free")
        )
        return statement.where(records.c.record_key == free.c.record_key)

    def update_slip(self) -> Update:
        """Return a statement that writes a slip if it is as it was read, and in time.

        Its parameters: ``at``, ``seen`` and ``seen_ms`` (its key, bytes and expiry as read), and
        ``deadline_us``; ``slip`` and ``expires_ms`` are the new ones.
        """
        values: dict[str, Any] = {name: bindparam(name) for name in ("slip", "expires_ms")}
        return update(notes).values(values).where(self._is_slip_as_read())

    def delete_slip(self) -> Delete:
        """Return a statement that deletes a slip if it is as it was read, and in time.

        Its parameters: ``at``, ``seen``, ``seen_ms`` and ``deadline_us``, as above.
        """
        return delete(notes).where(self._is_slip_as_read())

    def _is_slip_as_read(self) -> ColumnElement[bool]:
        packed = notes.c.slip.type
        slip = func.coalesce(notes.c.slip, literal(b"", packed))
        return (
            (notes.c.note_key == bindparam("at"))
            & (slip == bindparam("seen", type_=packed))
            & (notes.c.expires_ms == bindparam("seen_ms", type_=BigInteger))
            & (self.now_us <= bindparam("deadline_us", type_=BigInteger))
        )

    def put(self, table: Table) -> Insert:
        """Return a statement that writes a whole row, there or not; its parameters: the columns."""
        keys = [column.name for column in table.primary_key.columns]
        values: dict[str, Any] = {column.name: bindparam(column.name) for column in table.columns}
        changed = {name: value for name, value in values.items() if name not in keys}
        if self.driver.startswith("mysql"):
            return mysql.insert(table).values(values).on_duplicate_key_update(changed)
        dialect = postgresql if self.driver.startswith("postgresql") else sqlite
        statement: Any = dialect.insert(table).values(values)
        upsert: Insert = statement.on_conflict_do_update(index_elements=keys, set_=changed)
        return upsert


_FLAVOURS: Final = {
    "postgresql": Flavour(
        "postgresql+psycopg",
        # Not now(): that is when the transaction began.
        literal_column(
            "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)", BigInteger()
        ),
        "BEGIN ISOLATION LEVEL READ COMMITTED",
    ),
    "mysql": Flavour(
        "mysql+pymysql",
        # When the statement began, in UTC whatever the session's time zone is.
        literal_column(
            "TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6))", BigInteger()
        ),
        "START TRANSACTION",
    ),
    "sqlite": Flavour(
        "sqlite+pysqlite",
        # Milliseconds are all it has; many installed versions lack unixepoch('subsec').
        literal_column(
            "CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000",
            BigInteger(),
        ),
        "BEGIN IMMEDIATE",
        one_writer=True,
    ),
}
_ALIASES: Final = {"postgres": "postgresql", "mariadb": "mysql"}


def flavour_of(url: URL) -> Flavour:
    """Return the flavour of a URL.

    Raises:
        ConfigurationError: it names a driver that this store isn't tested with.
    """
    name, _, driver = url.drivername.lower().partition("+")
    flavour = _FLAVOURS[_ALIASES.get(name, name)]
    wanted = flavour.driver.partition("+")[2]
    if driver not in ("", wanted):
        raise ConfigurationError(
            f"idempotency_store_url names the driver {driver!r}: on {name} the store uses "
            f"{wanted}; write {name}+{wanted}://, or only {name}://"
        )
    return flavour
