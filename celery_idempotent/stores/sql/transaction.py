"""The transaction in which a body's effects and its completion are committed together."""

from __future__ import annotations

import logging
from typing import Final

from sqlalchemy import Connection, RootTransaction
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from celery_idempotent.core.record import Record
from celery_idempotent.core.verdicts import Lost, Recorded, Renewal, Settle
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.stores.base import NotCommitted
from celery_idempotent.stores.deciding import DecidingStore, Row, read_back
from celery_idempotent.stores.sql.flavours import Trouble, is_refusal, trouble_of
from celery_idempotent.stores.sql.rows import SqlRows

log = logging.getLogger("celery_idempotent")

#: Errors that may not happen again if the transaction is repeated.
_PASSING: Final = (Trouble.LOCKED, Trouble.UNDONE, Trouble.CUT)


class SqlTransaction:
    """A transaction of a body, READ COMMITTED; see :class:`.Transaction`.

    The session works in a savepoint of it: whatever the body does with the session, its own
    ``commit()`` and ``rollback()`` included, nothing is durable before :meth:`commit`.
    """

    def __init__(self, store: DecidingStore[Connection], rows: SqlRows) -> None:
        self._store = store
        self._rows = rows
        self._stepped = False
        try:
            self._begin()
        except SQLAlchemyError as exc:
            if trouble_of(exc) is not Trouble.CUT:
                raise rows.unavailable(exc) from exc
            try:
                self._begin()  # the connection was stale, and so were those made before
            except SQLAlchemyError as again:
                raise rows.unavailable(again) from again

    def _begin(self) -> None:
        self._connection: Connection = self._rows.engines.sessions.connect()
        try:
            self._root: RootTransaction = self._connection.begin()
            self.session = Session(self._connection, join_transaction_mode="create_savepoint")
            self.session.connection()
        except BaseException:
            self._connection.close()
            raise

    @property
    def is_lease(self) -> bool:
        return self._rows.engines.flavour.one_writer or self._stepped

    def flush(self) -> None:
        try:
            self.session.commit()
        except BaseException as exc:
            self._undo(exc)
            raise

    def step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        answer = self._store.step_in(self._connection, one, name, packed)
        self._stepped = True
        return answer

    def commit_step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        self.flush()
        try:
            answer = self._store.step_in(self._connection, one, name, packed)
            if isinstance(answer, Lost):
                self.rollback()
                return answer
            self._root.commit()
            self._stepped = False
            self._root = self._connection.begin()
            self.session.connection()
        except BaseException as exc:
            # What was written before the step was committed with it, or rolled back with it.
            self._undo(exc)
            raise
        return answer

    def lost(self, key: str, token: int) -> Record | None:
        try:
            record = self._rows.read(self._connection, key).record
        except SQLAlchemyError as exc:
            raise self._rows.unavailable(exc) from exc
        return record if record is not None and record.token != token else None

    def commit(self, key: str, event: Settle) -> Recorded | Lost:
        try:
            answer = self._store.settle_in(self._connection, key, event)
        except BaseException as exc:
            self._undo(exc)
            raise
        if isinstance(answer, Lost):
            self.rollback()
            return answer
        try:
            self._root.commit()
        except BaseException as exc:
            return self._find_out(key, event, exc)
        self._close()
        return answer

    def commit_alone(self) -> None:
        try:
            self.session.commit()
            self._root.commit()
        except BaseException:
            self.rollback()
            raise
        self._close()

    def rollback(self) -> None:
        try:
            if not self._connection.invalidated:
                self._root.rollback()
        except Exception as exc:
            log.warning("could not roll back, the connection is given up: %s", exc)
            self._connection.invalidate()
        self._close()

    def _undo(self, exc: BaseException) -> None:
        self.rollback()
        passes = isinstance(exc, SQLAlchemyError) and trouble_of(exc) in _PASSING
        if passes or isinstance(exc, StoreUnavailable):
            raise NotCommitted(f"what the run wrote was rolled back: {exc}") from exc

    def _close(self) -> None:
        try:
            self.session.close()
            self._connection.close()
        except Exception:
            log.warning("could not give back a connection", exc_info=True)

    def _find_out(self, key: str, event: Settle, exc: BaseException) -> Recorded | Lost:
        """Find out what became of a transaction whose COMMIT raised."""
        if is_refusal(exc):
            self._undo(exc)
            raise exc
        # No answer: the database may have committed it, or may be about to.
        if not self._connection.invalidated:
            self._connection.invalidate()
        self._close()
        if not isinstance(exc, Exception):
            raise exc
        return read_back(key, event, self._look, exc)

    def _look(self, key: str) -> Row:
        # Once the row can be locked, the transaction has ended, one way or the other.
        row = self._rows.operate(lambda at: self._rows.read_locked(at, key))
        if row.stamp is None:
            raise StoreUnavailable("its record is not there")
        return row
