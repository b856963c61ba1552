"""Records in PostgreSQL, MySQL, MariaDB or SQLite."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, delete, select
from sqlalchemy.exc import SQLAlchemyError

from celery_idempotent.core import transitions
from celery_idempotent.core.record import Record, State
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.transitions import (
    Busy,
    Claim,
    Claimed,
    ClaimVerdict,
    Lost,
    Note,
    Recorded,
    Resolve,
    Settle,
    Write,
)
from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.stores.base import GIVEN_UP_MS, Renewal
from celery_idempotent.stores.sql.engines import Engines
from celery_idempotent.stores.sql.journal import SqlJournals
from celery_idempotent.stores.sql.purge import PURGED_AT_ONCE, purge, tend
from celery_idempotent.stores.sql.rows import Row, Rows
from celery_idempotent.stores.sql.schema import create_schema, fit, records, steps
from celery_idempotent.stores.sql.transaction import SqlTransaction
from celery_idempotent.stores.transactions import Transaction

__all__ = ["SqlStore"]

T = TypeVar("T")

#: How long an operation looks again at a row that somebody has locked, in seconds; it is less where
#: others wait for the caller: the heartbeat, and the worker's parent process.
_PATIENT_S: Final = 2.0
_HASTY_S: Final = 0.25
_PAGE: Final = 1000


class SqlStore(SqlJournals):
    """A :class:`~celery_idempotent.stores.base.Store` in a relational database."""

    def __init__(self, engines: Engines) -> None:
        super().__init__(Rows(engines))
        self.engines = engines
        self._put_step = engines.flavour.put(steps)

    @classmethod
    def from_url(cls, url: str, options: Mapping[str, Any] | None = None) -> SqlStore:
        """Make a store from a URL; it connects at the first operation."""
        return cls(Engines(url, options))

    def create_schema(self) -> None:
        """Make the tables where they are not there yet (``celery -A app idempotency init-db``).

        Raises:
            StoreUnavailable: the database can't be reached, or doesn't allow it.
        """
        try:
            create_schema(self.engines.sessions)
        except SQLAlchemyError as exc:
            raise self.unavailable(exc) from exc

    def begin(self) -> Transaction:
        """Begin a transaction on this database, for a body's effects and its completion."""
        return SqlTransaction(self)

    def unavailable(self, exc: SQLAlchemyError) -> StoreUnavailable:
        """Say in the library's words that the database can't work, and what to do about it."""
        return self._rows.unavailable(exc)

    # --- operations ------------------------------------------------------------------------------

    @property
    def failed_at(self) -> float:
        return self._rows.failed_at

    def claim(self, key: str, ask: Claim) -> ClaimVerdict:
        has_steps = False

        def decide(row: Row) -> tuple[ClaimVerdict, Write | None]:
            nonlocal has_steps
            record = row.record
            has_steps = record is not None and record.has_steps
            return transitions.claim(record, ask, row.now_us, slip=row.slip, awaited=row.awaited)

        def if_locked(row: Row) -> ClaimVerdict | None:
            record = row.record
            if record is None or record.state is State.RELEASED:
                return None  # it is nobody's yet: no duplicate may be refused for that
            # Whoever has it locked holds it, as if by a lease.
            until_ms = max(record.until_ms, row.now_ms + ask.lease_ms)
            mine = record.owner == ask.candidate.owner
            return Busy(record._replace(until_ms=until_ms), mine, row.now_ms)

        def work(connection: Connection) -> ClaimVerdict:
            verdict = self._rows.change(
                connection,
                key,
                decide,
                _PATIENT_S,
                slip_key=ask.slip_key,
                awaited_key=ask.awaited_key,
                if_locked=if_locked,
            )
            if isinstance(verdict, Claimed) and has_steps:
                # Nobody else can write one any more.
                return replace(verdict, steps=_steps_of(connection, key))
            return verdict

        return self._rows.operate(work)

    def settle(self, key: str, event: Settle) -> Recorded | Lost:
        return self._rows.operate(
            lambda connection: self.settle_in(connection, key, event, within=False)
        )

    def settle_in(
        self, connection: Connection, key: str, event: Settle, *, within: bool = True
    ) -> Recorded | Lost:
        """Settle as a part of the transaction that ``connection`` is in; its row stays locked."""

        def decide(row: Row) -> tuple[Recorded | Lost, Write | None]:
            record = row.held(event.record.token)
            return transitions.settle(record, event, row.now_us, slip=row.slip)

        return self._rows.change(
            connection, key, decide, _PATIENT_S, slip_key=event.slip_key, within=within
        )

    def renew(self, renewals: Sequence[Renewal]) -> list[Recorded | Lost | StoreError]:
        if not renewals:
            return []
        return self._rows.operate(
            lambda connection: [self._renew_one(connection, one) for one in renewals]
        )

    def _renew_one(self, connection: Connection, one: Renewal) -> Recorded | Lost | StoreError:
        def decide(row: Row) -> tuple[Recorded | Lost, Write | None]:
            record = row.held(one.held.token)
            return transitions.renew(
                record, one.held, one.lease_ms, one.keep_ms, row.now_us, slip=row.slip
            )

        try:
            return self._rows.change(connection, one.key, decide, _HASTY_S, slip_key=one.slip_key)
        except StoreError as exc:
            return exc

    def step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        def work(connection: Connection) -> Recorded | Lost:
            with self._rows.transaction(connection):
                return self.step_in(connection, one, name, packed)

        return self._rows.operate(work)

    def step_in(
        self, connection: Connection, one: Renewal, name: str, packed: bytes
    ) -> Recorded | Lost:
        """Write a step as a part of the transaction that ``connection`` is in."""
        is_first = False

        def decide(row: Row) -> tuple[Recorded | Lost, Write | None]:
            nonlocal is_first
            record = row.held(one.held.token)
            is_first = not (record or one.held).has_steps
            return transitions.step(
                record, one.held, one.lease_ms, one.keep_ms, row.now_us, slip=row.slip
            )

        answer = self._rows.change(connection, one.key, decide, _PATIENT_S, slip_key=one.slip_key)
        if isinstance(answer, Recorded):
            if is_first:
                _drop_steps(connection, one.key)
            values = {"step_key": fit(name), "name": name, "step": packed}
            connection.execute(self._put_step, {"record_key": fit(one.key), **values})
        return answer

    def resolve(self, key: str, event: Resolve) -> bool:
        def decide(row: Row) -> tuple[bool, Write | None]:
            write = transitions.resolve(row.record, event, row.now_us)
            return write is not None, write

        return self._write(key, decide)

    def note(self, key: str, event: Note) -> None:
        def decide(row: Row) -> tuple[None, Write | None]:
            return None, transitions.note(row.readable, event, slip=row.slip)

        self._write(key, decide, slip_key=event.slip_key)

    def slip(self, slip_key: str) -> Slip | None:
        return self._rows.operate(lambda connection: self._rows.read_slip(connection, slip_key))

    def end_lease(self, key: str, owner: bytes, process: bytes, slip_key: str = "") -> bool:
        def decide(row: Row) -> tuple[bool, Write | None]:
            write = transitions.end_lease(row.readable, owner, process, row.now_us, slip=row.slip)
            return write is not None, write

        return self._write(key, decide, _HASTY_S, slip_key=slip_key)

    def abandon(self, key: str, given_up: Record, ttl_ms: int) -> None:
        def decide(row: Row) -> tuple[None, Write | None]:
            try:
                record = row.record
            except StoreError:
                return None, None
            write = transitions.abandon(record, given_up, ttl_ms, GIVEN_UP_MS, row.now_us)
            return None, write

        self._write(key, decide)

    def forget(self, key: str, ttl_ms: int) -> bool:
        def decide(row: Row) -> tuple[bool, Write | None]:
            try:
                record = row.record
            except StoreError:
                record = Record(State.RELEASED, row.token)  # unreadable: freed all the same
            write = transitions.forget(record, ttl_ms, row.now_us)
            return write is not None, write

        def work(connection: Connection) -> bool:
            found = self._rows.change(connection, key, decide, _PATIENT_S)
            if found:
                _drop_steps(connection, key)
            return found

        return self._rows.operate(work)

    def _write(
        self,
        key: str,
        decide: Callable[[Row], tuple[T, Write | None]],
        patience_s: float = _PATIENT_S,
        slip_key: str = "",
    ) -> T:
        return self._rows.operate(
            lambda connection: self._rows.change(
                connection, key, decide, patience_s, slip_key=slip_key
            )
        )

    # --- reading ---------------------------------------------------------------------------------

    def get(self, key: str) -> Record | None:
        return self._read(key).record

    def read_in(self, connection: Connection, key: str) -> Record | None:
        """Read a record in the transaction that ``connection`` is in."""
        return self._rows.read(connection, key).record

    def read_locked(self, key: str) -> Row:
        """Read a record that no transaction is writing.

        Raises:
            StoreUnavailable: one is, or the database doesn't answer.
        """
        return self._rows.operate(lambda connection: self._rows.read_locked(connection, key))

    def get_many(self, keys: Sequence[str]) -> list[Record | StoreError | None]:
        def work(connection: Connection) -> dict[str, Row]:
            found: dict[str, Row] = {}
            for start in range(0, len(keys), _PAGE):
                found.update(self._rows.read_many(connection, keys[start : start + _PAGE]))
            return found

        found = self._rows.operate(work)
        return [_in_list(found.get(fit(key))) for key in keys]

    def peek(self, key: str) -> tuple[Record | None, int]:
        row = self._read(key)
        return row.record, row.now_ms

    def steps(self, key: str) -> dict[str, bytes]:
        def work(connection: Connection) -> dict[str, bytes]:
            record = self._rows.read(connection, key).readable
            has_steps = record is not None and record.has_steps
            return _steps_of(connection, key) if has_steps else {}

        return self._rows.operate(work)

    def now_ms(self) -> int:
        return self._read("").now_ms

    def ttl(self, key: str) -> float | None:
        row = self._read(key)
        left = row.expires_ms - row.now_ms
        return left / 1000 if row.stamp is not None and left > 0 else None

    def scan(self, pattern: str) -> Iterator[str]:
        glob = re.sub(r"\\(.)", lambda m: f"[{m[1]}]" if m[1] in "*?[" else m[1], pattern)
        start = re.split(r"[*?\[\\]", pattern, maxsplit=1)[0]
        after = ""
        while True:
            page = self._page(start, after)
            yield from (key for key in page if fnmatch.fnmatchcase(key, glob))
            if len(page) < _PAGE:
                return
            after = page[-1]

    def _page(self, start: str, after: str) -> list[str]:
        key = records.c.record_key

        def work(connection: Connection) -> list[str]:
            now_ms = self._rows.read(connection).now_ms
            wanted = (key > after) & (key >= start) & (records.c.expires_ms > now_ms)
            if start:
                # Up to where keys with another start begin, in the order of bytes.
                wanted &= key < start[:-1] + chr(ord(start[-1]) + 1)
            return list(connection.scalars(select(key).where(wanted).order_by(key).limit(_PAGE)))

        return self._rows.operate(work)

    def ping(self) -> None:
        self._read("")

    def _read(self, key: str) -> Row:
        return self._rows.operate(lambda connection: self._rows.read(connection, key))

    # --- housekeeping ----------------------------------------------------------------------------

    def purge(self, limit: int = PURGED_AT_ONCE) -> int:
        """Delete at most ``limit`` expired records, and as many notes; how many rows went."""

        return purge(self._rows, limit)

    def tend(self) -> bool:
        """Delete what expired, for a moment; whether there is more."""
        return tend(self._rows)

    def close(self) -> None:
        self.engines.close()


def _steps_of(connection: Connection, key: str) -> dict[str, bytes]:
    wanted = select(steps.c.name, steps.c.step).where(steps.c.record_key == fit(key))
    return {name: bytes(packed) for name, packed in connection.execute(wanted)}


def _drop_steps(connection: Connection, key: str) -> None:
    connection.execute(delete(steps).where(steps.c.record_key == fit(key)))


def _in_list(row: Row | None) -> Record | StoreError | None:
    try:
        return None if row is None else row.record
    except StoreError as exc:
        return exc
