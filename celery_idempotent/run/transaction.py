"""The transaction of one run: what its body writes is committed together with its completion."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from celery_idempotent.core.verdicts import Lost, Recorded, Renewal, Settle
from celery_idempotent.errors import ConfigurationError, StoreUnavailable, how_to_install
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.run.lease import Lease
from celery_idempotent.stores.base import NotCommitted, Store, Transaction

T = TypeVar("T")


def _begin(store: Store) -> Transaction:
    transactions = store.transactions
    if transactions is None:
        raise ConfigurationError(
            "self.idempotency.session is a session on the store's database, and this store is "
            "none: set idempotency_store_url = 'postgresql://...' (or mysql://, mariadb://, "
            f"sqlite:////...), to the database that holds your data; {how_to_install('sql')}"
        )
    return transactions.begin()


class BodyTransaction:
    """What the body of a run writes in the store's database.

    Args:
        over: the run has ended, so that nobody would commit it.
    """

    def __init__(self, lease: Lease, *, over: bool) -> None:
        self._lease = lease
        self._transaction: Transaction | None = None
        self._over = over
        #: Whether what the body wrote was not committed, though it returned.
        self.undone = False

    @property
    def is_open(self) -> bool:
        """Whether the body has opened it, and it is not over."""
        return self._transaction is not None

    def open_with_body(self) -> None:
        """Open it before the body begins.

        Raises:
            NotCommitted: the database does not answer, so the body is not run.
        """
        try:
            _ = self.session
        except StoreUnavailable as exc:
            raise NotCommitted(str(exc)) from exc

    @property
    def session(self) -> Any:
        """The session; it is opened at first use."""
        if self._over:
            raise _not_running()
        if self._transaction is None:
            self._transaction = _begin(self._lease.store)
            self._rest()
        return self._transaction.session

    def step(self, one: Renewal, name: str, packed: bytes) -> None:
        """Write a step; it is committed with all else."""
        assert self._transaction is not None
        answer = self._transaction.step(one, name, packed)
        if isinstance(answer, Lost):
            self._lease.lose(answer.record)
        self._rest()

    def checkpoint(self, one: Renewal, name: str, packed: bytes) -> None:
        """Write a step and commit it with what the body wrote so far; a new transaction begins.

        Where that fails, all that came after the last checkpoint is rolled back.
        """
        assert self._transaction is not None
        transaction, self._transaction = self._transaction, None
        heartbeat.remove(self._lease)  # the lock of the record's row is the lease
        try:
            answer = transaction.commit_step(one, name, packed)
            if isinstance(answer, Lost):
                self._lease.lose(answer.record)
            else:
                self._transaction = transaction
        finally:
            if self._transaction is None or not transaction.is_lease:
                self._wake()

    def renew(self) -> None:
        """Check whether the run still has the key; prolong its lease where there is one."""
        if self._transaction is None or not self._transaction.is_lease:
            self._lease.renew()
            return
        record = self._transaction.lost(self._lease.key, self._lease.record.token)
        if record is not None:
            self._lease.lose(record)

    def commit(self, event: Settle) -> Recorded | Lost:
        """Commit both what the body wrote and how it ended, or neither: :class:`.Transaction`."""
        assert self._transaction is not None
        transaction, self._transaction = self._transaction, None
        self._over = self.undone = True
        transaction.flush()
        # From here on the lock of the record's row is the lease: a renewal would only wait for it.
        heartbeat.remove(self._lease)
        answer = transaction.commit(self._lease.key, event)
        self.undone = isinstance(answer, Lost)
        self._wake()
        return answer

    def rollback(self) -> None:
        """Undo what the body wrote."""
        self._over = True
        if self._transaction is not None:
            transaction, self._transaction = self._transaction, None
            transaction.rollback()
            self._wake()

    def _rest(self) -> None:
        if self._transaction is not None and self._transaction.is_lease:
            heartbeat.remove(self._lease)
            self._lease.hold(math.inf)  # for as long as it is open

    def _wake(self) -> None:
        self._lease.hold(time.monotonic())
        heartbeat.add(self._lease)


# --- without a claim -----------------------------------------------------------------------------

_opened: ContextVar[list[Transaction] | None] = ContextVar("idempotent_sessions", default=None)


class PlainWork:
    """What a body that holds no claim writes in the sessions that it opens."""

    def __init__(self) -> None:
        self._transactions: list[Transaction] = []

    @contextmanager
    def opens(self) -> Iterator[None]:
        """Collect each session that is opened within."""
        token = _opened.set(self._transactions)
        try:
            yield
        finally:
            _opened.reset(token)

    def commit(self) -> None:
        """Commit all of it; where that raises, :meth:`rollback` undoes the rest."""
        while self._transactions:
            self._transactions.pop(0).commit_alone()

    def rollback(self) -> None:
        """Undo all of it."""
        while self._transactions:
            self._transactions.pop().rollback()


def run_without_claim(body: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a body that holds no claim, and commit what it wrote in its session if it returns."""
    work = PlainWork()
    with work.opens():
        try:
            result = body(*args, **kwargs)
            work.commit()
        except BaseException:
            work.rollback()
            raise
        return result


def plain_session(store: Callable[[], Store] | None) -> Any:
    """Open a session for a body that holds no claim; :func:`run_without_claim` commits it."""
    opened = _opened.get()
    if opened is None or store is None:
        raise _not_running()
    transaction = _begin(store())
    opened.append(transaction)
    return transaction.session


def _not_running() -> ConfigurationError:
    return ConfigurationError(
        "self.idempotency.session is there only while the body of its task runs: nobody would "
        "commit it"
    )
