"""What a store adds that lives in the users' database: transactions for their data and its records.

A run that wants one opens it at its first use of ``self.idempotency.session``. What the body wrote
and the run's completion are then committed as one, or neither is.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from celery_idempotent.core.record import Record
from celery_idempotent.core.transitions import Lost, Recorded, Settle
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.stores.base import Renewal

__all__ = ["NotCommitted", "Transaction", "TransactionalStore"]


class NotCommitted(StoreUnavailable):
    """A transaction was not committed, through no fault of what is in it: the run begins anew."""

    #: Whether that is certain; else it may have been committed all the same.
    sure = True


class Transaction(Protocol):
    """A transaction that is under way."""

    #: What the body writes with: a session of SQLAlchemy.
    session: Any

    @property
    def is_lease(self) -> bool:
        """Whether it keeps everybody else from writing the record, so that no lease has to."""

    def flush(self) -> None:
        """Have the database see all that the body wrote, before :meth:`commit`.

        Raises:
            NotCommitted, Exception: as :meth:`commit`.
        """

    def step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        """Write a step of the run as a part of it."""

    def lost(self, key: str, token: int) -> Record | None:
        """Give what took the place of the run with this token; ``None``: it still holds its key."""

    def commit(self, key: str, event: Settle) -> Recorded | Lost:
        """Settle the record and commit; where the run has lost its key, roll back.

        Raises:
            NotCommitted: it could not be, or nobody knows whether it was.
            Exception: the database refused what the body wrote; all of it was rolled back.
        """

    def commit_alone(self) -> None:
        """Commit what a body wrote that holds no claim."""

    def rollback(self) -> None:
        """Undo all that the body wrote. Never raises."""


@runtime_checkable
class TransactionalStore(Protocol):
    """A store that can begin one."""

    def begin(self) -> Transaction:
        """Begin a transaction.

        Raises:
            StoreUnavailable: the database does not answer.
        """
