"""The rows of the store on the ORM's connection: one statement reads, one writes."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from typing import Any, Final, Protocol, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db import (
    Error,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)
from django.db.utils import ConnectionDoesNotExist

from celery_idempotent.core.record import HELD, Label, Record, State
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.slip import Slip
from celery_idempotent.django import models
from celery_idempotent.django.isolation import check_isolation
from celery_idempotent.errors import ConfigurationError, StoreError, StoreUnavailable
from celery_idempotent.stores.base import Sample
from celery_idempotent.stores.deciding import Row, Rows, fit
from celery_idempotent.stores.notifications import NOTIFY

T = TypeVar("T")

_ATTEMPTS: Final = 3
_HELD: Final = tuple(map(str, HELD))
_NAME: Final = re.compile(r"[^{]*\{([^:]*):(.*)\}\Z", re.DOTALL)
#: The database's clock when the statement runs, in microseconds since 1970.
_NOW_US: Final = {
    # Not now(): that is when the transaction began.
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)",
    "sqlite": "CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000",
}
#: Somebody has the row locked; the transaction was undone so that others could go on.
_PASSING: Final = frozenset(("55P03", "40001", "40P01"))
#: A table, a column or a schema is missing.
_NO_TABLES: Final = frozenset(("42P01", "42703", "3F000"))


def is_passing(exc: BaseException) -> bool:
    """Whether an error of the database came of what others did, and may not come again."""
    is_locked = isinstance(exc, OperationalError) and "is locked" in str(exc)
    return is_locked or _code_of(exc) in _PASSING


def _code_of(exc: BaseException) -> str | None:
    cause: Any = exc.__cause__
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)


def migrate_command(alias: str) -> str:
    """Return the command that makes the tables in one of ``DATABASES``."""
    return f"manage.py migrate --database {alias}"


def unavailable(alias: str, exc: Exception) -> StoreUnavailable:
    """Return an error that says why the database can't work, and what to do about it."""
    if _code_of(exc) in _NO_TABLES or "no such table" in str(exc) or "no such column" in str(exc):
        to_run = migrate_command(alias)
        error = StoreUnavailable(f"the store django://{alias} lacks tables ({exc}): run {to_run}")
        error.to_run = to_run
        return error
    is_refusal = isinstance(exc, ProgrammingError)
    does = "refuses" if is_refusal else "does not answer"
    error = StoreUnavailable(f"the store django://{alias} {does} ({exc})")
    error.is_refusal = is_refusal
    return error


class Body(Protocol):
    """The transaction that a task's body has open in this thread."""

    @property
    def is_lease(self) -> bool:
        """Whether it keeps everybody else from writing the record."""

    def side_connection(self) -> Any:
        """Return a connection for what is no part of it."""


class DjangoRows(Rows[Any]):
    """The rows on one of the project's databases, and the connection for each operation."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.where = f"django://{alias}"
        self._is_checked = False
        self._local = threading.local()
        self._table = models.Record._meta.db_table
        self._notes = models.Note._meta.db_table

    @cached_property
    def vendor(self) -> str:
        """Which kind of database it is.

        Raises:
            ConfigurationError: the store is not tested with it, or Django is not set up for it.
        """
        try:
            vendor: str = connections[self.alias].vendor
        except ImproperlyConfigured as exc:
            raise ConfigurationError(f"{self.where} needs Django set up: {exc}") from exc
        except ConnectionDoesNotExist as exc:
            raise ConfigurationError(f"{self.where}: {exc}") from exc
        if vendor not in _NOW_US:
            raise ConfigurationError(
                f"{self.where} is a database of the kind {vendor}: the store knows PostgreSQL and "
                "SQLite; keep the records elsewhere (redis://), or under another alias"
            )
        return vendor

    @cached_property
    def now_us(self) -> str:
        """The database's clock, in SQL."""
        return _NOW_US[self.vendor]

    # --- connections -----------------------------------------------------------------------------

    def own_connection(self) -> Any:
        """Return the connection for what is no part of a transaction that a body has open."""
        connection = connections[self.alias]
        body: Body | None = getattr(self._local, "body", None)
        return connection if body is None or body.is_lease else body.side_connection()

    def set_body(self, body: Body | None) -> None:
        """Set which transaction this thread's body has open."""
        self._local.body = body

    def operate(self, work: Callable[[Any], T]) -> T:
        # Again after a deadlock, and once more where the connection was stale.
        self.vendor  # noqa: B018  (raises what is wrong with the configuration)
        stale = False
        for attempt in range(_ATTEMPTS):
            connection = self.own_connection()
            try:
                if not self._is_checked:
                    check_isolation(connection, self.alias)
                    self._is_checked = True
                if connection.in_atomic_block:
                    with transaction.atomic(using=self.alias):
                        answer = work(connection)
                else:
                    answer = work(connection)
                self.outage.is_away = False
                return answer
            except Error as exc:
                if is_cut(exc):
                    self.outage.stumbled()
                else:
                    self.outage.is_away = False  # it answered
                last = connection.in_atomic_block or attempt == _ATTEMPTS - 1
                if is_cut(exc) and not stale and not last:
                    stale = True
                    connection.close()
                elif last or not is_passing(exc):
                    if is_cut(exc):
                        self.outage.begins()
                    raise unavailable(self.alias, exc) from exc
        raise AssertionError("unreachable")

    def transaction(self, at: Any) -> AbstractContextManager[Any]:
        # Django's atomic() is for the thread's own connection, whichever is in the hand.
        if at is connections[at.alias]:
            return transaction.atomic(using=at.alias)
        return _savepoint(at) if not at.get_autocommit() else _transaction(at)

    @property
    def tells(self) -> bool:  # type: ignore[override]
        """Whether the database tells those who listen."""
        return self.vendor == "postgresql"

    def tell(self, at: Any, key: str) -> None:
        with suppress(ProgrammingError), self.transaction(at):
            self._execute(at, NOTIFY, [key])

    def is_locked(self, at: Any, exc: Exception) -> bool:
        locked = isinstance(exc, OperationalError) and is_passing(exc)
        return locked and not at.in_atomic_block

    # --- statements ------------------------------------------------------------------------------

    def read(self, at: Any, *keys: str) -> Row:
        sql = (
            f"SELECT one.now_us, r.record, r.stamp, r.token, r.expires_ms, "
            "own.slip, own.expires_ms, awaited.slip, awaited.expires_ms, "
            "queued.slip, queued.expires_ms "
            f"FROM (SELECT {self.now_us} AS now_us) one "
            f"LEFT JOIN {self._table} r ON r.record_key = %s "
            f"LEFT JOIN {self._notes} own ON own.note_key = %s "
            f"LEFT JOIN {self._notes} awaited ON awaited.note_key = %s "
            f"LEFT JOIN {self._notes} queued ON queued.note_key = %s"
        )
        names = [fit(key) if key else "" for key in (*keys, "", "", "", "")[:4]]
        with at.cursor() as cursor:
            cursor.execute(sql, names)
            return Row.found(*cursor.fetchone())

    def read_many(self, at: Any, keys: Sequence[str]) -> list[Row]:
        names = [fit(key) for key in keys]
        marks = ", ".join(["%s"] * len(names))
        sql = (
            f"SELECT record_key, {self.now_us}, record, stamp, token, expires_ms "
            f"FROM {self._table} WHERE record_key IN ({marks})"
        )
        with at.cursor() as cursor:
            cursor.execute(sql, names)
            found = {name: row for name, *row in cursor.fetchall()}
        return [Row.found(*found[name]) if name in found else Row(0) for name in names]

    def write_slip(
        self,
        at: Any,
        slip_key: str,
        row: Row,
        slip: Slip | Reservation | None,
        expires_ms: int,
    ) -> bool:
        as_read = (
            f"note_key = %s AND COALESCE(slip, %s) = %s AND expires_ms = %s AND {self.now_us} <= %s"
        )
        seen = [fit(slip_key), b"", row.slip_bytes, row.slip_expires_ms, row.deadline_us]
        if slip is None:
            return self._execute(at, f"DELETE FROM {self._notes} WHERE {as_read}", seen) > 0
        new = [slip.pack(), expires_ms]
        if row.slip_bytes is None:
            sql = (
                f"INSERT INTO {self._notes} (slip, expires_ms, note_key) "
                f"SELECT %s, %s, %s FROM (SELECT {self.now_us} AS now_us) one "
                "WHERE one.now_us <= %s ON CONFLICT DO NOTHING"
            )
            return self._execute(at, sql, [*new, fit(slip_key), row.deadline_us]) > 0
        sql = f"UPDATE {self._notes} SET slip = %s, expires_ms = %s WHERE {as_read}"
        return self._execute(at, sql, [*new, *seen]) > 0

    def write_record(self, at: Any, key: str, row: Row, record: Record, expires_ms: int) -> bool:
        task, readable = _words(key, record)
        values: dict[str, Any] = {
            "task": task[:255],
            "key": readable,
            "state": str(record.state),
            "owner_id": _owner_id(record)[:255],
            "token": record.token,
            # Random, so that a row that was deleted and made anew never looks as it did before.
            "stamp": int.from_bytes(os.urandom(8), "big") >> 1,
            "record": record.pack(),
            "expires_ms": expires_ms,
        }
        if row.stamp is None:
            names = ["record_key", *values]
            marks = ", ".join(["%s"] * len(names))
            sql = (
                f"INSERT INTO {self._table} ({', '.join(names)}) SELECT {marks} "
                f"FROM (SELECT {self.now_us} AS now_us) one WHERE one.now_us <= %s "
                "ON CONFLICT DO NOTHING"
            )
            return self._execute(at, sql, [fit(key), *values.values(), row.deadline_us]) > 0
        as_read = f"record_key = %s AND stamp = %s AND {self.now_us} <= %s"
        if self.vendor != "sqlite":
            as_read = (
                f"record_key = (SELECT record_key FROM {self._table} WHERE {as_read} "
                "FOR UPDATE SKIP LOCKED)"
            )
        changes = ", ".join(f"{name} = %s" for name in values)
        sql = f"UPDATE {self._table} SET {changes} WHERE {as_read}"
        seen = [fit(key), row.stamp, row.deadline_us]
        return self._execute(at, sql, [*values.values(), *seen]) > 0

    def read_steps(self, at: Any, key: str) -> dict[str, bytes]:
        rows = self.objects(models.Step).filter(record_key=fit(key))
        return {name: bytes(packed) for name, packed in rows.values_list("name", "step")}

    def write_step(self, at: Any, key: str, name: str, packed: bytes) -> None:
        self.objects(models.Step).update_or_create(
            record_key=fit(key), step_key=fit(name), defaults={"name": name, "step": packed}
        )

    def drop_steps(self, at: Any, key: str, start: str = "") -> None:
        self.objects(models.Step).filter(record_key=fit(key), name__startswith=start).delete()

    def page(self, at: Any, start: str, after: str, count: int) -> list[str]:
        rows = self._live(at, start).filter(record_key__gt=after)
        return list(rows.order_by("record_key").values_list("record_key", flat=True)[:count])

    def page_beside(self, at: Any, start: str, after: str, count: int) -> list[str]:
        rows = self.objects(models.Note).filter(note_key__startswith=start, note_key__gt=after)
        return list(rows.order_by("note_key").values_list("note_key", flat=True)[:count])

    def draw(self, at: Any, start: str, most: int) -> Sample:
        rows = self._live(at, start)
        total = rows.count()
        if total > most:
            # Stamps are random numbers below 2**63.
            rows = rows.filter(stamp__lt=(most << 63) // total)
        keys = list(rows.values_list("record_key", flat=True))
        return Sample(keys, total if total > most else len(keys))

    def unknown_keys(self, at: Any, start: str) -> list[str]:
        rows = self._live(at, start).filter(state=str(State.UNKNOWN))
        return list(rows.values_list("record_key", flat=True))

    def held_keys(self, at: Any, start: str) -> list[str]:
        # There is no index for this: each run would have to write to it.
        rows = self._live(at, start).filter(state__in=_HELD)
        return list(rows.values_list("record_key", flat=True))

    def _live(self, at: Any, start: str) -> Any:
        """Return the rows that are not expired, and whose keys begin so."""
        rows = self.objects(models.Record).filter(expires_ms__gt=self.read(at).now_ms)
        return rows.filter(record_key__startswith=start)

    def objects(self, model: Any) -> Any:
        """Return all rows of a model on this database."""
        return model._base_manager.using(self.alias)

    def is_being_written(self, connection: Any, key: str) -> bool:
        """Whether a transaction that is not over has written the record."""
        if self.vendor == "sqlite":
            return False
        sql = f"SELECT 1 FROM {self._table} WHERE record_key = %s"
        with connection.cursor() as cursor:
            cursor.execute(f"{sql} FOR UPDATE SKIP LOCKED", [fit(key)])
            free = cursor.fetchone()
            cursor.execute(sql, [fit(key)])
            return free is None and cursor.fetchone() is not None

    def take_the_write_lock(self, connection: Any) -> None:
        """Where there is one writer, be it from now on: a read first would only be in the way."""
        if self.vendor == "sqlite":
            self._execute(connection, f"DELETE FROM {self._notes} WHERE 1 = 0", [])

    @staticmethod
    def _execute(connection: Any, sql: str, values: list[Any]) -> int:
        with connection.cursor() as cursor:
            cursor.execute(sql, values)
            return int(cursor.rowcount)


@contextmanager
def _transaction(connection: Any) -> Iterator[None]:
    connection.set_autocommit(False)
    try:
        yield
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    finally:
        connection.set_autocommit(True)


@contextmanager
def _savepoint(connection: Any) -> Iterator[None]:
    name = connection.savepoint()
    try:
        yield
    except BaseException:
        connection.savepoint_rollback(name)
        raise
    connection.savepoint_commit(name)


def is_cut(exc: Error) -> bool:
    """Whether the connection may be gone, and with it the answer."""
    return isinstance(exc, (InterfaceError, OperationalError)) and not is_passing(exc)


def _words(key: str, record: Record) -> tuple[str, str]:
    """Return what people call a record: its task, and its readable key."""
    name = _NAME.match(key)
    namespace, plain = name.groups() if name else ("", key)
    label = Label.of(record)
    # A key that was forgotten has nothing but its name.
    task, readable = label.task.replace("\0", ""), label.readable or plain
    return task or namespace, readable.replace("\0", "")


def _owner_id(record: Record) -> str:
    try:
        return (record.owner_id or "").replace("\0", "")
    except StoreError:
        return ""
