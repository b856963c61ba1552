"""The rows of the SQL store: one statement reads them, one writes what is still as it was read.

Each statement is a transaction of its own: no process can be stopped while it holds a row's lock,
and none waits for one. Only where a slip is written with its record are there two statements in
one transaction.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, Final, TypeVar

from sqlalchemy import ColumnElement, Connection, Insert, bindparam, delete, func, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from celery_idempotent.core.record import HELD, Record
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.slip import Slip
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.stores.base import Sample
from celery_idempotent.stores.deciding import Row, Rows, fit
from celery_idempotent.stores.notifications import NOTIFY
from celery_idempotent.stores.outage import not_done
from celery_idempotent.stores.sql.engines import Engines
from celery_idempotent.stores.sql.flavours import (
    Flavour,
    Trouble,
    hint_of,
    is_refusal,
    is_silence,
    trouble_of,
)
from celery_idempotent.stores.sql.schema import is_unknown, notes, records, steps

T = TypeVar("T")

_INIT_DB: Final = "celery -A <your app> idempotency init-db"
_ATTEMPTS: Final = 3
_HELD: Final = tuple(map(str, HELD))
#: The parameters for the keys of what is read beside a record.
_BESIDE: Final = ("slip_key", "awaited_key", "queued_key")


class _Statements:
    """What is executed on one kind of database: building it takes longer than a claim."""

    def __init__(self, flavour: Flavour) -> None:
        now = select(flavour.now_us.label("now_us")).subquery("now")
        columns = (
            records.c.record,
            records.c.stamp,
            records.c.token,
            records.c.expires_ms,
        )
        # The clock is read even where there is no record.
        found = now.outerjoin(records, records.c.record_key == bindparam("key"))
        self.read = select(now.c.now_us, *columns).select_from(found)
        slips = [
            select(column).where(notes.c.note_key == bindparam(name)).scalar_subquery()
            for name in _BESIDE
            for column in (notes.c.slip, notes.c.expires_ms)
        ]
        self.read_with_slips = select(now.c.now_us, *columns, *slips).select_from(found)
        self.read_many = select(records.c.record_key, flavour.now_us, *columns).where(
            records.c.record_key.in_(bindparam("keys", expanding=True))
        )
        self.read_locked = self.read_many.with_for_update(nowait=True)
        self.insert = flavour.insert(records).execution_options(preserve_rowcount=True)
        self.insert_slip = flavour.insert(notes).execution_options(preserve_rowcount=True)
        self.update_slip = flavour.update_slip()
        self.delete_slip = flavour.delete_slip()
        self.update = flavour.update_record()
        self.put_step = flavour.put(steps)


_statements_of: Final = functools.lru_cache(maxsize=8)(_Statements)


class SqlRows(Rows[Connection]):
    """The rows of one database."""

    def __init__(self, engines: Engines) -> None:
        self.engines = engines
        self.where = engines.where
        self._statements = _statements_of(engines.flavour)

    def operate(self, work: Callable[[Connection], T]) -> T:
        # Again after a deadlock, and once more where the connection was stale.
        stale = False
        for attempt in range(_ATTEMPTS):
            try:
                with self.engines.own.connect() as connection:
                    answer = work(connection)
                self.outage.is_away = False
                return answer
            except SQLAlchemyError as exc:
                trouble = trouble_of(exc)
                if trouble in (Trouble.CUT, Trouble.AWAY):
                    self.outage.stumbled()
                if is_refusal(exc):
                    self.outage.is_away = False  # it answered
                again = trouble in (Trouble.UNDONE, Trouble.LOCKED) or (
                    trouble is Trouble.CUT and not stale
                )
                stale = stale or trouble is Trouble.CUT
                if not again or attempt == _ATTEMPTS - 1:
                    if is_silence(exc):
                        self.outage.begins()
                    raise self.unavailable(exc) from exc
        raise AssertionError("unreachable")

    @contextmanager
    def transaction(self, at: Connection) -> Iterator[None]:
        connection = at
        if connection.engine is not self.engines.own:
            with connection.begin_nested():  # it is in the transaction of a body
                yield
            return
        connection.exec_driver_sql(self.engines.flavour.begin)
        try:
            yield
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            if not connection.invalidated:
                connection.exec_driver_sql("ROLLBACK")
            raise

    def unavailable(self, exc: SQLAlchemyError) -> StoreUnavailable:
        """Return an error that says why the database can't work, and what to do about it."""
        where = f"the store at {self.engines.where}"
        trouble = trouble_of(exc)
        if trouble in (Trouble.NO_TABLES, Trouble.NO_FILE):
            lacks = "has no tables for idempotency records: run"
            if trouble is Trouble.NO_FILE:
                lacks = "has no such file: is the path right? To make it, run"
            missing = not_done(
                f"{where} {lacks} {_INIT_DB} (or have your migrations take "
                "celery_idempotent.stores.sql.metadata)"
            )
            missing.to_run = _INIT_DB
            return missing
        cause: object = exc
        if isinstance(exc, DBAPIError) and exc.orig is not None:
            cause = exc.orig
        does = "refuses" if is_refusal(exc) else "does not answer"
        error = not_done(f"{where} {does}: {cause or type(cause).__name__}{hint_of(exc)}")
        error.is_refusal = is_refusal(exc)
        # The connection broke, or the wait ended: the statement may have been carried out.
        error.may_have_arrived = isinstance(exc, DBAPIError) and exc.connection_invalidated
        return error

    def read(self, at: Connection, key: str = "", *beside: str) -> Row:
        wanted = {"key": fit(key)}
        if not any(beside):
            return Row.found(*at.execute(self._statements.read, wanted).one())
        for parameter, name in zip_longest(_BESIDE, beside, fillvalue=""):
            wanted[parameter] = fit(name) if name else ""
        return Row.found(*at.execute(self._statements.read_with_slips, wanted).one())

    def read_many(self, at: Connection, keys: Sequence[str]) -> list[Row]:
        names = [fit(key) for key in keys]
        found = {
            name: row for name, *row in at.execute(self._statements.read_many, {"keys": names})
        }
        return [Row.found(*found[name]) if name in found else Row(0) for name in names]

    def read_locked(self, at: Connection, key: str) -> Row:
        """Lock a record and read it; fail at once if it is locked."""
        for _, *row in at.execute(self._statements.read_locked, {"keys": [fit(key)]}):
            return Row.found(*row)
        return self.read(at, key)

    def write_record(
        self, at: Connection, key: str, row: Row, record: Record, expires_ms: int
    ) -> bool:
        values: dict[str, Any] = {
            "state": str(record.state),
            "token": record.token,
            "expires_ms": expires_ms,
            # Random, so that a row that was deleted and made anew never looks as it did before.
            "stamp": int.from_bytes(os.urandom(8), "big") >> 1,
            "record": record.pack(),
            "deadline_us": row.deadline_us,
        }
        if row.stamp is None:
            return _insert(at, self._statements.insert, {"record_key": fit(key), **values})
        values.update(at=fit(key), seen=row.stamp)
        return at.execute(self._statements.update, values).rowcount > 0

    def write_slip(
        self,
        at: Connection,
        slip_key: str,
        row: Row,
        slip: Slip | Reservation | None,
        expires_ms: int,
    ) -> bool:
        deadline = {"deadline_us": row.deadline_us}
        seen = {"at": fit(slip_key), "seen": row.slip_bytes, "seen_ms": row.slip_expires_ms}
        if slip is None:
            return at.execute(self._statements.delete_slip, {**seen, **deadline}).rowcount > 0
        values = {"slip": slip.pack(), "expires_ms": expires_ms, **deadline}
        if row.slip_bytes is None:
            return _insert(at, self._statements.insert_slip, {"note_key": fit(slip_key), **values})
        return at.execute(self._statements.update_slip, {**values, **seen}).rowcount > 0

    @property
    def tells(self) -> bool:  # type: ignore[override]
        """Whether the database tells those who listen."""
        return self.engines.flavour.driver.startswith("postgresql")

    def tell(self, at: Connection, key: str) -> None:
        at.exec_driver_sql("SAVEPOINT told")
        try:
            at.exec_driver_sql(NOTIFY, (key,))
            at.exec_driver_sql("RELEASE SAVEPOINT told")
        except DBAPIError as exc:
            if exc.connection_invalidated:
                raise
            # This user may not: those who wait look by themselves.
            at.exec_driver_sql("ROLLBACK TO SAVEPOINT told")

    def is_locked(self, at: Connection, exc: Exception) -> bool:
        return isinstance(exc, DBAPIError) and trouble_of(exc) is Trouble.LOCKED

    def read_steps(self, at: Connection, key: str) -> dict[str, bytes]:
        wanted = select(steps.c.name, steps.c.step).where(steps.c.record_key == fit(key))
        return {name: bytes(packed) for name, packed in at.execute(wanted)}

    def write_step(self, at: Connection, key: str, name: str, packed: bytes) -> None:
        values = {"step_key": fit(name), "name": name, "step": packed}
        at.execute(self._statements.put_step, {"record_key": fit(key), **values})

    def drop_steps(self, at: Connection, key: str, start: str = "") -> None:
        dropped = delete(steps).where(steps.c.record_key == fit(key))
        if start:
            dropped = dropped.where(steps.c.name.startswith(start, autoescape=True))
        at.execute(dropped)

    def page(self, at: Connection, start: str, after: str, count: int) -> list[str]:
        key = records.c.record_key
        wanted = self._live(at, start) & (key > after)
        return list(at.scalars(select(key).where(wanted).order_by(key).limit(count)))

    def page_beside(self, at: Connection, start: str, after: str, count: int) -> list[str]:
        key = notes.c.note_key
        wanted = _begins(key, start) & (key > after)
        return list(at.scalars(select(key).where(wanted).order_by(key).limit(count)))

    def draw(self, at: Connection, start: str, most: int) -> Sample:
        live = self._live(at, start)
        total = at.scalar(select(func.count()).select_from(records).where(live)) or 0
        if total > most:
            # Stamps are random numbers below 2**63.
            live &= records.c.stamp < (most << 63) // total
        keys = _keys(at, live)
        return Sample(keys, total if total > most else len(keys))

    def _live(self, at: Connection, start: str) -> ColumnElement[bool]:
        """Return what holds for records that are not expired, and whose keys begin so."""
        live = records.c.expires_ms > self.read(at).now_ms
        return live & _begins(records.c.record_key, start)

    def unknown_keys(self, at: Connection, start: str) -> list[str]:
        return _keys(at, is_unknown & self._live(at, start))

    def held_keys(self, at: Connection, start: str) -> list[str]:
        # There is no index for this: each run would have to write to it.
        return _keys(at, records.c.state.in_(_HELD) & self._live(at, start))


def _keys(at: Connection, wanted: ColumnElement[bool]) -> list[str]:
    return list(at.scalars(select(records.c.record_key).where(wanted)))


def _begins(key: ColumnElement[str], start: str) -> ColumnElement[bool]:
    """Return what holds for keys that begin so: up to others, in the order of bytes."""
    after = key >= start
    return after & (key < start[:-1] + chr(ord(start[-1]) + 1)) if start else after


def _insert(connection: Connection, insert: Insert, values: dict[str, Any]) -> bool:
    try:
        return connection.execute(insert, values).rowcount > 0
    except DBAPIError as exc:
        if trouble_of(exc) is Trouble.THERE:
            return False
        raise
