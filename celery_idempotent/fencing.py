"""Conditional writes with the fencing token: a late run changes nothing.

A run that stalls for longer than its lease is followed by another, and does not know that when it
wakes up. The database knows, if each write carries the token of its run: a row keeps the token of
the last run that wrote it, and takes no write with a lower one. ::

    class Order(Base):
        ...
        fence: Mapped[int | None] = mapped_column(BigInteger)

    @app.task(bind=True, base=IdempotentTask, idempotency_key="order:{order_id}")
    def ship(self, order_id):
        with Session(engine) as session, session.begin():
            shipped = update(Order).where(Order.id == order_id).values(status="shipped")
            fenced_update(session, shipped, run=self.idempotency, fence=Order.fence)

The limit: this keeps a *late* run out, not a *second* one. A run that was killed after its write is
followed by one with a higher token, whose write is taken. That is harmless for an assignment
(``status = "shipped"``), and for an insert keyed by ``self.idempotency.key_for(...)``, which is
refused since the row is there already. An increment (``balance = balance - 10``) is made twice: use
``self.idempotency.session`` for that.

A row must be written under one key only: tokens of different keys can't be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from celery_idempotent.errors import ClaimLost, missing_extra

if TYPE_CHECKING:
    from sqlalchemy.orm import InstrumentedAttribute, Session
    from sqlalchemy.sql.expression import ColumnElement

__all__ = ["HasToken", "fenced_update"]

try:
    from sqlalchemy import Connection, Update, or_, select
except ImportError as exc:
    raise missing_extra(exc, "fenced_update needs", "sql") from exc


class HasToken(Protocol):
    """The run that writes: ``self.idempotency`` of the running task."""

    @property
    def token(self) -> int | None:
        """The fencing token of the run."""


def fenced_update(
    session: Session | Connection,
    statement: Update,
    *,
    run: HasToken,
    fence: ColumnElement[Any] | InstrumentedAttribute[Any],
) -> int:
    """Execute an UPDATE of rows that no later run has written, and store this run's token in them.

    It executes one UPDATE with ``fence IS NULL OR fence <= :token``, and one SELECT that looks for
    the rows that it left out. A run may write the same row again. Nothing is committed here.

    Args:
        session: on the database that holds the rows.
        statement: the UPDATE. Its WHERE should name the rows, and not their state: otherwise a late
            run finds no row at all, and gets no error.
        run: ``self.idempotency``.
        fence: the column that keeps the token: a BIGINT that may be NULL.

    Returns:
        How many rows were written.

    Raises:
        ClaimLost: a later run has written one of the rows, or this run holds no claim: roll back.
    """
    token = run.token
    if token is None:
        raise ClaimLost(
            "this run holds no claim, so it has no token to write with: it was called directly, "
            "has no key, or idempotency_mode is not 'enforce'"
        )
    not_later = or_(fence.is_(None), fence <= token)
    written: Any = session.execute(statement.where(not_later).values({fence: token}))
    # With a lock: a snapshot that is older than the later run's write would not show it.
    later = select(fence).where(fence > token).limit(1).with_for_update(read=True)
    if statement.whereclause is not None:
        later = later.where(statement.whereclause)
    found = session.execute(later).first()
    if found is not None:
        raise ClaimLost(
            f"a row was written by a later run (its token is {found[0]}, this run's is {token}): "
            "this run has lost its key; roll back"
        )
    count: int = written.rowcount
    return count
