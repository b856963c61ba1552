"""Tasks whose effects are rows in the store's database, and which stop wherever a test wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery import Celery, signals
from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
)
from sqlalchemy.pool import Pool

from celery_idempotent import MESSAGE_ID, IdempotentTask
from tests.support.ledger import Ledger

metadata = MetaData()
bookings = Table(
    "bookings",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("order_id", Integer, nullable=False),
    Column("task_id", String(50), nullable=False),
    Column("token", BigInteger),
)

#: The instants at which a run can be stopped, in the order in which it comes to them.
POINTS = (
    "before the session",
    "before the effect",
    "after the effect",
    "before the commit",
    "after the commit",
    "before the ack",
)


class Books:
    """The effects, as a test counts them."""

    def __init__(self, url: str) -> None:
        # A test may have killed the server since it was asked last.
        self.engine = create_engine(url, pool_pre_ping=True)
        metadata.create_all(self.engine)
        with self.engine.begin() as connection:
            connection.execute(delete(bookings))

    def count(self, order: int) -> int:
        """How many effects there are for an order."""
        wanted = select(func.count()).where(bookings.c.order_id == order)
        with self.engine.connect() as connection:
            return connection.scalars(wanted).one()

    def tokens(self, order: int) -> list[int]:
        """The tokens of the runs whose effects are there."""
        wanted = select(bookings.c.token).where(bookings.c.order_id == order)
        with self.engine.connect() as connection:
            return list(connection.scalars(wanted))

    def close(self) -> None:
        self.engine.dispose()


@dataclass
class _Stop:
    """Where the run of this process is to stop: the first time that it comes there."""

    ledger: Ledger
    order: int = 0
    point: str | None = None
    committing: bool = False

    def at(self, point: str) -> None:
        if point != self.point or self.ledger.count("stopped", key=self.order):
            return
        self.ledger.write("stopped", key=self.order, point=point)
        self.ledger.hold(f"{self.order}")


def define(app: Celery, ledger: Ledger) -> None:
    """Define the tasks, and the stops inside SQLAlchemy and Celery."""
    stop = _Stop(ledger)

    def sell(self: Any, order: int, point: str | None = None, then: str = "") -> Any:
        stop.order, stop.point = order, point
        ledger.write("start", key=order, id=self.request.id, token=self.idempotency.token)
        stop.at("before the session")
        session = self.idempotency.session
        stop.at("before the effect")
        session.execute(
            insert(bookings).values(
                order_id=order, task_id=self.request.id, token=self.idempotency.token
            )
        )
        stop.at("after the effect")
        if then == "retry" and not self.request.retries:
            raise self.retry(countdown=0)
        if then == "fail":
            raise ValueError(f"order {order} is not booked")
        return {"order": order, "token": self.idempotency.token}

    @event.listens_for(Engine, "commit")
    def _committing(_: Any) -> None:
        stop.at("before the commit")
        stop.committing = True

    @event.listens_for(Pool, "checkin")
    def _committed(*_: Any) -> None:
        if stop.committing:
            stop.committing = False
            stop.at("after the commit")

    @signals.task_success.connect(weak=False)
    def _answered(**_: Any) -> None:
        stop.at("before the ack")

    options = {"bind": True, "base": IdempotentTask, "shared": False, "max_retries": 3}
    app.task(sell, name="shop.sell", idempotency_key="order:{order}", **options)
    app.task(sell, name="shop.sell_message", idempotency_key=MESSAGE_ID, **options)
