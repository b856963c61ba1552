"""One row of the SQL store: read, decided on, and written if nothing came between.

A record is read without a lock, :mod:`.transitions` decides by the database's clock, and one
statement writes, which finds the row only as it was read, in time, and locked by nobody; if it
finds none, all of that begins again. Each statement of the store is so a transaction of its own:
no process can be stopped while it holds a row's lock, and none waits for one. Only where a slip is
written with its record are there two statements in one transaction.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Insert, bindparam, delete, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from celery_idempotent.core.record import Record
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.transitions import KEEP_TTL, Write
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.stores.deciding import FRESH_US, Row, slip_of
from celery_idempotent.stores.sql.engines import Engines
from celery_idempotent.stores.sql.flavours import Trouble, hint_of, trouble_of
from celery_idempotent.stores.sql.schema import fit, notes, records

__all__ = ["Row", "Rows"]

T = TypeVar("T")

_PAUSES_S: Final = (0.0, 0.002, 0.005, 0.01, 0.02)
_LONGEST_PAUSE_S: Final = 0.04
#: How long a lock that is only passing may take, in seconds.
_BUSY_S: Final = 0.2
_ATTEMPTS: Final = 3


class Rows:
    """The rows of one database."""

    def __init__(self, engines: Engines) -> None:
        self.engines = engines
        flavour = engines.flavour
        now = select(flavour.now_us.label("now_us")).subquery("now")
        columns = (
            records.c.record,
            records.c.stamp,
            records.c.token,
            records.c.expires_ms,
        )
        # Where there is no record, the clock is told all the same.
        found = now.outerjoin(records, records.c.record_key == bindparam("key"))
        self._read = select(now.c.now_us, *columns).select_from(found)
        slips = [
            select(column).where(notes.c.note_key == bindparam(name)).scalar_subquery()
            for name in ("slip_key", "awaited_key")
            for column in (notes.c.slip, notes.c.expires_ms)
        ]
        self._read_with_slips = select(now.c.now_us, *columns, *slips).select_from(found)
        self._read_many = select(records.c.record_key, flavour.now_us, *columns).where(
            records.c.record_key.in_(bindparam("keys", expanding=True))
        )
        self._read_locked = self._read_many.with_for_update(nowait=True)
        self._insert = flavour.insert(records).execution_options(preserve_rowcount=True)
        self._insert_slip = flavour.insert(notes).execution_options(preserve_rowcount=True)
        self._update_slip = flavour.update_slip()
        self._update = flavour.update_record(keep_ttl=False)
        self._update_and_keep_ttl = flavour.update_record(keep_ttl=True)

        #: When the database last did not answer, on this process's monotonic clock.
        self.failed_at = -math.inf

    def operate(self, work: Callable[[Connection], T]) -> T:
        """Do one operation; again after a deadlock, and once more where the connection was stale.

        All that a store does is idempotent (a claim by its nonce), so that it may be done again
        where the answer was lost.
        """
        stale = False
        for attempt in range(_ATTEMPTS):
            try:
                with self.engines.own.connect() as connection:
                    return work(connection)
            except SQLAlchemyError as exc:
                trouble = trouble_of(exc)
                if trouble in (Trouble.CUT, Trouble.AWAY):
                    self.failed_at = time.monotonic()
                again = trouble in (Trouble.UNDONE, Trouble.LOCKED) or (
                    trouble is Trouble.CUT and not stale
                )
                stale = stale or trouble is Trouble.CUT
                if not again or attempt == _ATTEMPTS - 1:
                    raise self.unavailable(exc) from exc
        raise AssertionError("unreachable")

    @contextmanager
    def transaction(self, connection: Connection) -> Iterator[None]:
        """Make one transaction of what is done in the block."""
        connection.exec_driver_sql(self.engines.flavour.begin)
        try:
            yield
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            if not connection.invalidated:
                connection.exec_driver_sql("ROLLBACK")
            raise

    def unavailable(self, exc: SQLAlchemyError) -> StoreUnavailable:
        """Say in the library's words that the database can't work, and what to do about it."""
        if trouble_of(exc) is Trouble.NO_TABLES:
            return _not_done(
                f"the store at {self.engines.where} has no tables for idempotency records: run "
                "celery -A <your app> idempotency init-db (or have your migrations take "
                "celery_idempotent.stores.sql.metadata)"
            )
        cause: object = exc
        if isinstance(exc, DBAPIError) and exc.orig is not None:
            cause = exc.orig
        error = _not_done(
            f"the store at {self.engines.where} does not answer: {cause or type(cause).__name__}"
            f"{hint_of(exc)}"
        )
        # Cut off, or not waited for any longer: what was asked may have been done.
        error.may_have_arrived = isinstance(exc, DBAPIError) and exc.connection_invalidated
        return error

    def read(
        self, connection: Connection, key: str = "", slip_key: str = "", awaited_key: str = ""
    ) -> Row:
        """Read a record, its slips and the database's clock, in one round trip."""
        if not slip_key and not awaited_key:
            now_us, packed, stamp, token, expires_ms = connection.execute(
                self._read, {"key": fit(key)}
            ).one()
            if stamp is None:
                return Row(now_us)
            return Row(now_us, bytes(packed), stamp, token, expires_ms)
        wanted = {
            "key": fit(key),
            "slip_key": fit(slip_key) if slip_key else "",
            "awaited_key": fit(awaited_key) if awaited_key else "",
        }
        answer = connection.execute(self._read_with_slips, wanted)
        now_us, packed, stamp, token, expires_ms, slip, slip_ms, awaited, awaited_ms = answer.one()
        there = slip_ms is not None
        slips = (
            bytes(slip or b"") if there else None,
            slip_ms if there else 0,
            slip_of(awaited and bytes(awaited), awaited_ms, now_us // 1000),
        )
        if stamp is None:
            return Row(now_us, b"", None, 0, 0, *slips)
        return Row(now_us, bytes(packed), stamp, token, expires_ms, *slips)

    def read_slip(self, connection: Connection, slip_key: str) -> Slip | None:
        """Read a slip."""
        return self.read(connection, "", slip_key).slip

    def read_locked(self, connection: Connection, key: str) -> Row:
        """Read a record under its lock, which nobody may have."""
        values = {"keys": [fit(key)]}
        for _, now_us, packed, *rest in connection.execute(self._read_locked, values):
            return Row(now_us, bytes(packed), *rest)
        return self.read(connection, key)

    def read_many(self, connection: Connection, keys: Sequence[str]) -> dict[str, Row]:
        """Read those of some records that there are, by the names under which they are stored."""
        answer = connection.execute(self._read_many, {"keys": [fit(key) for key in keys]})
        return {
            key: Row(now_us, bytes(packed), stamp, token, expires_ms)
            for key, now_us, packed, stamp, token, expires_ms in answer
        }

    def change(
        self,
        connection: Connection,
        key: str,
        decide: Callable[[Row], tuple[T, Write | None]],
        patience_s: float,
        *,
        slip_key: str = "",
        awaited_key: str = "",
        within: bool = False,
        if_locked: Callable[[Row], T | None] | None = None,
    ) -> T:
        """Read, decide, and write if the row is still as it was read; else begin again.

        Args:
            within: the connection is in a transaction already.

        Where somebody has the row locked, ``if_locked`` is soon asked for an answer.

        Raises:
            StoreUnavailable: it has none, and the row is locked for longer than ``patience_s``.
        """
        began = time.monotonic()
        row: Row | None = None
        # Each pause is made, however slow the database is: what was slow need not be locked.
        for pause in itertools.chain(_PAUSES_S, itertools.repeat(_LONGEST_PAUSE_S)):
            try:
                row = self.read(connection, key, slip_key, awaited_key)
                verdict, write = decide(row)
                if write is None or self._write(connection, key, row, write, slip_key, within):
                    return verdict
            except DBAPIError as exc:
                if trouble_of(exc) is not Trouble.LOCKED:
                    raise
            if pause == _LONGEST_PAUSE_S:
                waited_s = time.monotonic() - began
                if waited_s >= _BUSY_S and row is not None and if_locked is not None:
                    answer = if_locked(row)
                    if answer is not None:
                        return answer
                if waited_s >= patience_s:
                    break
            time.sleep(pause)
        raise _not_done(
            f"the store at {self.engines.where} has {key} locked by another transaction"
        )

    def _write(
        self, connection: Connection, key: str, row: Row, write: Write, slip_key: str, within: bool
    ) -> bool:
        touches_slip = write.slip is not None or write.slip_ttl_ms == 0
        if write.record is None:
            return self._write_slip(connection, row, write, slip_key)
        if not touches_slip:
            return self._write_record(connection, key, row, write, write.record)
        if write.slip_first:
            return self._write_slip(connection, row, write, slip_key) and self._write_record(
                connection, key, row, write, write.record
            )
        if within:
            return self._write_record(
                connection, key, row, write, write.record
            ) and self._write_slip(connection, row, write, slip_key)
        with suppress(_NotAsRead), self.transaction(connection):
            if not (
                self._write_record(connection, key, row, write, write.record)
                and self._write_slip(connection, row, write, slip_key)
            ):
                raise _NotAsRead
            return True
        return False

    def _write_slip(self, connection: Connection, row: Row, write: Write, slip_key: str) -> bool:
        if write.slip is None:
            connection.execute(delete(notes).where(notes.c.note_key == fit(slip_key)))
            return True
        values: dict[str, Any] = {
            "slip": write.slip.pack(),
            "expires_ms": row.now_ms + write.slip_ttl_ms,
            "deadline_us": row.now_us + FRESH_US,
        }
        if write.slip_ttl_ms == KEEP_TTL:
            values["expires_ms"] = row.slip_expires_ms
        if row.slip_bytes is None:
            values["note_key"] = fit(slip_key)
            return self._insert_row(connection, values, self._insert_slip)
        seen = {"at": fit(slip_key), "seen": row.slip_bytes, "seen_ms": row.slip_expires_ms}
        return connection.execute(self._update_slip, {**values, **seen}).rowcount > 0

    def _write_record(
        self, connection: Connection, key: str, row: Row, write: Write, record: Record
    ) -> bool:
        values: dict[str, Any] = {
            "state": str(record.state),
            "token": record.token,
            "expires_ms": row.now_ms + write.ttl_ms,
            # By chance: a row that was deleted and made anew must never look as it did before.
            "stamp": int.from_bytes(os.urandom(8), "big") >> 1,
            "record": record.pack(),
            "deadline_us": row.now_us + FRESH_US,
        }
        if row.stamp is None:
            return self._insert_row(connection, {"record_key": fit(key), **values}, self._insert)
        statement = self._update
        if write.ttl_ms == KEEP_TTL:
            statement = self._update_and_keep_ttl
            del values["expires_ms"]
        values.update(at=fit(key), seen=row.stamp)
        return connection.execute(statement, values).rowcount > 0

    def _insert_row(self, connection: Connection, values: dict[str, Any], insert: Insert) -> bool:
        try:
            return connection.execute(insert, values).rowcount > 0
        except DBAPIError as exc:
            if trouble_of(exc) is Trouble.THERE:
                return False
            raise


class _NotAsRead(Exception):
    """What was to be written is not as it was read: the transaction is undone."""


def _not_done(message: str) -> StoreUnavailable:
    error = StoreUnavailable(message)
    error.may_have_arrived = False
    return error
