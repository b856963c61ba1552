"""Fenced writes, on every database: a late run changes nothing, and is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import BigInteger, Engine, String, create_engine, delete, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from celery_idempotent import ClaimLost
from celery_idempotent.fencing import fenced_update
from tests.support.databases import ON_SERVERS, Database


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "fenced_orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(String(20))
    changes: Mapped[int] = mapped_column(default=0)
    fence: Mapped[int | None] = mapped_column(BigInteger)


@dataclass
class Run:
    """What ``self.idempotency`` is to a write."""

    token: int | None


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    made = create_engine(database.url)
    Base.metadata.create_all(made)
    with Session(made) as session, session.begin():
        session.execute(delete(Order))
        session.add_all([Order(id=1, status="new"), Order(id=2, status="new", fence=17)])
    yield made
    made.dispose()


def write(engine: Engine, run: Run, status: str, *orders: int) -> int:
    with Session(engine) as session, session.begin():
        statement = update(Order).where(Order.id.in_(orders))
        statement = statement.values(status=status, changes=Order.changes + 1)
        return fenced_update(session, statement, run=run, fence=Order.fence)


def rows(engine: Engine) -> list[tuple[str, int | None]]:
    with Session(engine) as session:
        found = session.execute(select(Order.status, Order.fence).order_by(Order.id))
        return [(status, fence) for status, fence in found]


def test_a_run_writes_and_leaves_its_token(engine: Engine) -> None:
    """Rows that nobody has written before, and those that earlier runs have."""
    # When
    count = write(engine, Run(18), "paid", 1, 2)
    # Then
    assert count == 2
    assert rows(engine) == [("paid", 18), ("paid", 18)]


def test_a_run_may_write_again(engine: Engine) -> None:
    """Its own token keeps nobody out."""
    # Given
    write(engine, Run(18), "paid", 1)
    # Then
    assert write(engine, Run(18), "shipped", 1) == 1
    assert rows(engine)[0] == ("shipped", 18)


@pytest.mark.parametrize("orders", [(2,), (1, 2)], ids=["the row", "one of the rows"])
def test_a_late_run_writes_nothing(engine: Engine, orders: tuple[int, ...]) -> None:
    """A later run's row is left as it is, and the late one has to roll back."""
    # When
    with pytest.raises(ClaimLost, match="later run"):
        write(engine, Run(16), "late", *orders)
    # Then
    assert rows(engine) == [("new", None), ("new", 17)]


@ON_SERVERS
def test_a_late_run_is_told_whatever_it_has_read(engine: Engine) -> None:
    """A transaction that began before the later run wrote does not see the row as it was."""
    # Given
    with Session(engine) as late:
        late.execute(select(Order.status)).all()
        write(engine, Run(30), "paid", 1)
        statement = update(Order).where(Order.id == 1).values(status="late")
        # Then
        with pytest.raises(ClaimLost):
            fenced_update(late, statement, run=Run(20), fence=Order.fence)
    assert rows(engine)[0] == ("paid", 30)


def test_a_row_that_is_not_there_is_no_later_run(engine: Engine) -> None:
    """Nothing is written, and nobody is accused."""
    assert write(engine, Run(16), "paid", 99) == 0


def test_a_run_without_a_claim_writes_nothing(engine: Engine) -> None:
    """It has no token: nothing would keep it out."""
    with pytest.raises(ClaimLost, match="no claim"):
        write(engine, Run(None), "paid", 1)
    assert rows(engine)[0] == ("new", None)


def test_it_takes_a_core_connection(engine: Engine) -> None:
    """Tables without classes, and connections without sessions."""
    # Given
    orders = Order.__table__
    # When
    with engine.begin() as connection:
        statement = update(Order).where(Order.id == 1).values(status="paid")
        count = fenced_update(connection, statement, run=Run(18), fence=orders.c.fence)
    # Then
    assert count == 1
    assert rows(engine)[0] == ("paid", 18)


def test_its_limit_is_an_increment(engine: Engine) -> None:
    """A run that was killed after its write is followed by one that is not late: it adds again."""
    # When
    for token in (20, 21):
        write(engine, Run(token), "paid", 1)
    # Then
    with Session(engine) as session:
        order = session.get_one(Order, 1)
        assert (order.status, order.changes) == ("paid", 2)
