"""The transaction of a body: ``transaction.atomic()``, with its completion in it."""

from __future__ import annotations

import logging
from typing import Any

from django.db import Error, connections, transaction

from celery_idempotent.core.record import Record
from celery_idempotent.core.verdicts import Lost, Recorded, Renewal, Settle
from celery_idempotent.django.rows import DjangoRows, is_cut, is_passing, unavailable
from celery_idempotent.errors import ConfigurationError, StoreUnavailable
from celery_idempotent.stores.base import NotCommitted
from celery_idempotent.stores.deciding import DecidingStore, Row, read_back

log = logging.getLogger("celery_idempotent")


class DjangoTransaction:
    """An ``atomic()`` block of the thread's own connection; see :class:`.Transaction`."""

    def __init__(self, store: DecidingStore[Any], rows: DjangoRows) -> None:
        self._store = store
        self._rows = rows
        self._alias = rows.alias
        self._connection: Any = connections[rows.alias]
        #: In somebody else's block (a test's, an eager call's) it is a savepoint of that.
        self._nested = bool(self._connection.in_atomic_block)
        self._one_writer = self._connection.vendor == "sqlite"
        self._stepped = False
        self._committed = False
        self._side: Any = None
        try:
            self._begin()
        except Error as exc:
            if self._nested or not is_cut(exc):
                raise unavailable(rows.alias, exc) from exc
            self._connection.close()
            try:
                self._begin()  # the connection was stale
            except Error as again:
                raise unavailable(rows.alias, again) from again
        rows.set_body(self)

    def _begin(self) -> None:
        self._atomic: Any = transaction.atomic(using=self._alias)
        self._atomic.__enter__()
        try:
            if self._one_writer:
                self._rows.take_the_write_lock(self._connection)
            elif not self._nested:
                self._rows.read(self._connection)  # is it there?
            if not self._nested:
                # The first of all hooks: when it is called, the transaction is committed.
                transaction.on_commit(self._note_commit, using=self._alias)
        except BaseException as exc:
            self._atomic.__exit__(type(exc), exc, exc.__traceback__)
            raise

    def _note_commit(self) -> None:
        self._committed = True

    @property
    def session(self) -> Any:
        """The ORM's connection that the body works with."""
        return self._connection

    @property
    def is_lease(self) -> bool:
        return self._one_writer or self._nested or self._stepped

    def side_connection(self) -> Any:
        """Return a connection of its own to this database, for what is no part of the body."""
        if self._side is None:
            self._side = self._connection.copy(self._alias)
        return self._side

    def flush(self) -> None:
        """The ORM has told the database all that it was told."""

    def step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        answer = self._store.step_in(self._connection, one, name, packed)
        self._stepped = True
        return answer

    def commit_step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        if self._connection.atomic_blocks[-1] is not self._atomic:
            raise ConfigurationError(
                f"{one.key}: a checkpoint commits what the body wrote so far, and this one is in "
                "an atomic() block of the body's own: end that block first"
            )
        try:
            answer = self._store.step_in(self._connection, one, name, packed)
            if isinstance(answer, Lost):
                self.rollback()
                return answer
            self._end()
            self._stepped = self._committed = False
            self._begin()
            self._rows.set_body(self)
        except BaseException as exc:
            gone = isinstance(exc, Error) and _is_gone(self._connection)
            if self._connection.in_atomic_block and not self._nested:
                self.rollback()
            if isinstance(exc, StoreUnavailable) or is_passing(exc) or gone:
                raise NotCommitted(f"{one.key} stopped at a checkpoint: {exc}") from exc
            raise
        return answer

    def lost(self, key: str, token: int) -> Record | None:
        try:
            record = self._rows.read(self._connection, key).record
        except Error as exc:
            raise unavailable(self._alias, exc) from exc
        return record if record is not None and record.token != token else None

    def commit(self, key: str, event: Settle) -> Recorded | Lost:
        if self._connection.closed_in_transaction:
            # Run again, it would do the same.
            self.rollback()
            raise ConfigurationError(
                f"{key}: the body closed its database connection (close_old_connections(), "
                "connection.close()), and with it the transaction that it runs in: nothing of it "
                'is committed. Leave that out, or set idempotency_store_options = {"atomic": False}'
            )
        try:
            answer = self._store.settle_in(self._connection, key, event)
        except BaseException as exc:
            gone = isinstance(exc, Error) and _is_gone(self._connection)
            self.rollback()
            if isinstance(exc, StoreUnavailable) or is_passing(exc) or gone:
                raise NotCommitted(f"{key} could not be completed: {exc}") from exc
            raise
        if isinstance(answer, Lost):
            self.rollback()
            return answer
        try:
            self._end()
        except BaseException as exc:
            return self._find_out(key, event, answer, exc)
        return answer

    def commit_alone(self) -> None:
        self._end()

    def rollback(self) -> None:
        undo = _Undo()
        try:
            self._end(undo)
        except Exception as exc:
            log.warning("could not roll back, the connection is given up: %s", exc)
            if not self._nested:
                self._connection.close()

    def _end(self, exc: BaseException | None = None) -> None:
        self._rows.set_body(None)
        if self._side is not None:
            self._side.close()
        self._atomic.__exit__(None if exc is None else type(exc), exc, None)

    def _find_out(
        self, key: str, event: Settle, answer: Recorded | Lost, exc: BaseException
    ) -> Recorded | Lost:
        """Find out what became of a transaction whose COMMIT, or what came after it, raised."""
        if self._committed:
            if not isinstance(exc, Exception):
                raise exc
            log.error("%s is committed; what was to be done on_commit failed", key, exc_info=exc)
            return answer
        if is_passing(exc):
            raise NotCommitted(f"{key} could not be committed: {exc}") from exc
        if self._nested or not (isinstance(exc, Error) and is_cut(exc)):
            raise exc
        # No answer: the database may have committed it, or may be about to.
        self._connection.close()
        return read_back(key, event, self._look, exc)

    def _look(self, key: str) -> Row:
        try:
            with transaction.atomic(using=self._alias):
                if self._rows.is_being_written(self._connection, key):
                    raise StoreUnavailable("its row is locked")
                return self._rows.read(self._connection, key)
        except Error as exc:
            self._connection.close()
            raise unavailable(self._alias, exc) from exc


def _is_gone(connection: Any) -> bool:
    """Whether the database has ended the connection, and with it what was not committed."""
    return connection.connection is None or bool(getattr(connection.connection, "closed", False))


class _Undo(Exception):
    """Ends an ``atomic()`` block without its effects."""
