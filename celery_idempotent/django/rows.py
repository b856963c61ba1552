"""One row of the store on the ORM's connection: read, decided on, written if nothing came between.

A record is read without a lock, decided on by the database's clock, and written by one statement
that finds the row only as it was read and locked by nobody. So no claim waits for a lock.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from django.db import Error, InterfaceError, OperationalError, ProgrammingError, transaction

from celery_idempotent.core.record import Label, Record
from celery_idempotent.core.transitions import KEEP_TTL, Write
from celery_idempotent.django import models
from celery_idempotent.errors import ConfigurationError, StoreError, StoreUnavailable
from celery_idempotent.stores.deciding import FRESH_US, Row, slip_of

__all__ = ["Row", "Rows", "fit", "is_cut", "is_passing", "unavailable"]

T = TypeVar("T")

_PAUSES_S: Final = (0.0, 0.002, 0.005, 0.01, 0.02, 0.04)
_PLAIN: Final = re.compile(rf"[!-~]{{1,{models.LONGEST}}}\Z")
_NAME: Final = re.compile(r"[^{]*\{([^:]*):(.*)\}\Z", re.DOTALL)
#: The database's clock when the statement runs, in microseconds since 1970.
_NOW_US: Final = {
    # Not now(): that is when the transaction began.
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)",
    "sqlite": "CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000",
}
#: Somebody has the row locked; the transaction was undone so that others could go on.
_PASSING: Final = frozenset(("55P03", "40001", "40P01"))


def fit(key: str) -> str:
    """Give the name under which a key is stored: itself, or, where it can't be, with a digest."""
    if _PLAIN.match(key):
        return key
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"{re.sub('[^!-~]', '?', key)[: models.LONGEST - 40]}~{digest}"


def is_passing(exc: BaseException) -> bool:
    """Whether an error of the database came of what others did, and may not come again."""
    cause: Any = exc.__cause__
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return code in _PASSING or (isinstance(exc, OperationalError) and "is locked" in str(exc))


def unavailable(alias: str, exc: Exception) -> StoreUnavailable:
    """Say in the library's words that the database can't work, and what to do about it."""
    hint = ""
    if isinstance(exc, ProgrammingError) or "no such table" in str(exc):
        hint = f": has manage.py migrate --database {alias} made its tables?"
    return StoreUnavailable(f"the store django://{alias} does not answer ({exc}){hint}")


class Rows:
    """The statements for one kind of database.

    Raises:
        ConfigurationError: the store is not tested with it.
    """

    def __init__(self, alias: str, vendor: str) -> None:
        if vendor not in _NOW_US:
            raise ConfigurationError(
                f"django://{alias} is a database of the kind {vendor}: the store knows PostgreSQL "
                "and SQLite; keep the records elsewhere (redis://), or under another alias"
            )
        self.alias = alias
        self.now_us = _NOW_US[vendor]
        self._one_writer = vendor == "sqlite"
        self._table = models.Record._meta.db_table
        self._notes = models.Note._meta.db_table

    def read(
        self, connection: Any, key: str = "", slip_key: str = "", awaited_key: str = ""
    ) -> Row:
        """Read a record, its slips and the database's clock, in one round trip."""
        sql = (
            f"SELECT one.now_us, r.record, r.stamp, r.token, r.expires_ms, "
            "own.slip, own.expires_ms, awaited.slip, awaited.expires_ms "
            f"FROM (SELECT {self.now_us} AS now_us) one "
            f"LEFT JOIN {self._table} r ON r.record_key = %s "
            f"LEFT JOIN {self._notes} own ON own.note_key = %s "
            f"LEFT JOIN {self._notes} awaited ON awaited.note_key = %s"
        )
        names = [fit(name) if name else "" for name in (key, slip_key, awaited_key)]
        with connection.cursor() as cursor:
            cursor.execute(sql, names)
            now_us, packed, stamp, token, expires_ms, *slips = cursor.fetchone()
        slip, slip_ms, awaited, awaited_ms = slips
        there = slip_ms is not None
        told = (
            bytes(slip or b"") if there else None,
            slip_ms if there else 0,
            slip_of(awaited and bytes(awaited), awaited_ms, now_us // 1000),
        )
        if stamp is None:
            return Row(now_us, b"", None, 0, 0, *told)
        return Row(now_us, bytes(packed), stamp, token, expires_ms, *told)

    def read_many(self, connection: Any, keys: Sequence[str]) -> dict[str, Row]:
        """Read those of some records that there are, by the names under which they are stored."""
        if not keys:
            return {}
        marks = ", ".join(["%s"] * len(keys))
        sql = (
            f"SELECT record_key, {self.now_us}, record, stamp, token, expires_ms "
            f"FROM {self._table} WHERE record_key IN ({marks})"
        )
        with connection.cursor() as cursor:
            cursor.execute(sql, [fit(key) for key in keys])
            return {
                key: Row(now_us, bytes(packed), stamp, token, expires_ms)
                for key, now_us, packed, stamp, token, expires_ms in cursor.fetchall()
            }

    def change(
        self,
        connection: Any,
        key: str,
        decide: Callable[[Row], tuple[T, Write | None]],
        patience_s: float,
        *,
        slip_key: str = "",
        awaited_key: str = "",
        if_locked: Callable[[Row], T | None] | None = None,
    ) -> T:
        """Read, decide, and write if the row is still as it was read; else begin again.

        Raises:
            StoreUnavailable: somebody has the row locked for longer than ``patience_s``, and
                ``if_locked`` has no answer for that.
        """
        until = time.monotonic() + patience_s
        pauses = iter(_PAUSES_S)
        pause = 0.0
        row: Row | None = None
        while True:
            try:
                row = self.read(connection, key, slip_key, awaited_key)
                verdict, write = decide(row)
                if write is None or self._write(connection, key, row, write, slip_key):
                    return verdict
            except OperationalError as exc:
                if connection.in_atomic_block or not is_passing(exc):
                    raise
            if time.monotonic() >= until:
                break
            pause = next(pauses, pause)
            time.sleep(pause)
        answer = None if row is None or if_locked is None else if_locked(row)
        if answer is None:
            raise StoreUnavailable(
                f"the store django://{self.alias} has {key} locked by another transaction"
            )
        return answer

    def _write(self, connection: Any, key: str, row: Row, write: Write, slip_key: str) -> bool:
        touches_slip = write.slip is not None or write.slip_ttl_ms == 0
        if write.record is None:
            return self._write_slip(connection, row, write, slip_key)
        if not touches_slip:
            return self._write_record(connection, key, row, write, write.record)
        if write.slip_first:
            return self._write_slip(connection, row, write, slip_key) and self._write_record(
                connection, key, row, write, write.record
            )
        with suppress(_NotAsRead), transaction.atomic(using=connection.alias):
            if not (
                self._write_record(connection, key, row, write, write.record)
                and self._write_slip(connection, row, write, slip_key)
            ):
                raise _NotAsRead
            return True
        return False

    def _write_slip(self, connection: Any, row: Row, write: Write, slip_key: str) -> bool:
        if write.slip is None:
            sql = f"DELETE FROM {self._notes} WHERE note_key = %s"
            self._execute(connection, sql, [fit(slip_key)])
            return True
        expires_ms = row.now_ms + write.slip_ttl_ms
        if write.slip_ttl_ms == KEEP_TTL:
            expires_ms = row.slip_expires_ms
        new = [write.slip.pack(), expires_ms, fit(slip_key)]
        deadline_us = row.now_us + FRESH_US
        if row.slip_bytes is None:
            sql = (
                f"INSERT INTO {self._notes} (slip, expires_ms, note_key) "
                f"SELECT %s, %s, %s FROM (SELECT {self.now_us} AS now_us) one "
                "WHERE one.now_us <= %s ON CONFLICT DO NOTHING"
            )
            return self._execute(connection, sql, [*new, deadline_us]) > 0
        sql = (
            f"UPDATE {self._notes} SET slip = %s, expires_ms = %s WHERE note_key = %s "
            f"AND COALESCE(slip, %s) = %s AND expires_ms = %s AND {self.now_us} <= %s"
        )
        seen = [b"", row.slip_bytes, row.slip_expires_ms, deadline_us]
        return self._execute(connection, sql, [*new, *seen]) > 0

    def _write_record(
        self, connection: Any, key: str, row: Row, write: Write, record: Record
    ) -> bool:
        task, readable = _words(key, record)
        values: dict[str, Any] = {
            "task": task[:255],
            "key": readable,
            "state": str(record.state),
            "owner_id": _owner_id(record)[:255],
            "token": record.token,
            # By chance: a row that was deleted and made anew must never look as it did before.
            "stamp": int.from_bytes(os.urandom(8), "big") >> 1,
            "record": record.pack(),
            "expires_ms": row.now_ms + write.ttl_ms,
        }
        deadline_us = row.now_us + FRESH_US
        if row.stamp is None:
            names = ["record_key", *values]
            marks = ", ".join(["%s"] * len(names))
            sql = (
                f"INSERT INTO {self._table} ({', '.join(names)}) SELECT {marks} "
                f"FROM (SELECT {self.now_us} AS now_us) one WHERE one.now_us <= %s "
                "ON CONFLICT DO NOTHING"
            )
            return self._execute(connection, sql, [fit(key), *values.values(), deadline_us]) > 0
        if write.ttl_ms == KEEP_TTL:
            del values["expires_ms"]
        as_read = f"record_key = %s AND stamp = %s AND {self.now_us} <= %s"
        if not self._one_writer:
            as_read = (
                f"record_key = (SELECT record_key FROM {self._table} WHERE {as_read} "
                "FOR UPDATE SKIP LOCKED)"
            )
        changes = ", ".join(f"{name} = %s" for name in values)
        sql = f"UPDATE {self._table} SET {changes} WHERE {as_read}"
        seen = [fit(key), row.stamp, deadline_us]
        return self._execute(connection, sql, [*values.values(), *seen]) > 0

    def is_locked(self, connection: Any, key: str) -> bool:
        """Whether a transaction that is not over has written the record."""
        if self._one_writer:
            return False
        sql = f"SELECT 1 FROM {self._table} WHERE record_key = %s"
        with connection.cursor() as cursor:
            cursor.execute(f"{sql} FOR UPDATE SKIP LOCKED", [fit(key)])
            free = cursor.fetchone()
            cursor.execute(sql, [fit(key)])
            return free is None and cursor.fetchone() is not None

    def take_the_write_lock(self, connection: Any) -> None:
        """Where there is one writer, be it from now on: a read first would only be in the way."""
        if self._one_writer:
            self._execute(connection, f"DELETE FROM {self._notes} WHERE 1 = 0", [])

    @staticmethod
    def _execute(connection: Any, sql: str, values: list[Any]) -> int:
        with connection.cursor() as cursor:
            cursor.execute(sql, values)
            return int(cursor.rowcount)


class _NotAsRead(Exception):
    """What was to be written is not as it was read: the transaction is undone."""


def is_cut(exc: Error) -> bool:
    """Whether the connection may be gone, and with it the answer."""
    return isinstance(exc, (InterfaceError, OperationalError)) and not is_passing(exc)


def _words(key: str, record: Record) -> tuple[str, str]:
    """Give what people call a record: its task, and its readable key."""
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
