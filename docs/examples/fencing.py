"""A row that knows which run wrote it last refuses what an earlier run writes late."""

from celery import Celery
from sqlalchemy import BigInteger, create_engine, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from celery_idempotent import IdempotentTask
from celery_idempotent.fencing import fenced_update

app = Celery("shop", broker="memory://", backend="cache+memory://")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
engine = create_engine("sqlite:///shop.db")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]
    fence: Mapped[int | None] = mapped_column(BigInteger)


Base.metadata.create_all(engine)


@app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order_id}")
def ship(self, order_id):
    shipped = update(Order).where(Order.id == order_id).values(status="shipped")
    with Session(engine) as session, session.begin():
        fenced_update(session, shipped, run=self.idempotency, fence=Order.fence)


# [end]

with Session(engine) as session, session.begin():
    session.add(Order(id=42, status="paid"))
ship.delay(42).get()


from celery_idempotent import ClaimLost  # noqa: E402


class Late:
    token = 1


with Session(engine) as session:
    assert session.get_one(Order, 42).status == "shipped"
    lost = update(Order).where(Order.id == 42).values(status="lost")
    try:
        fenced_update(session, lost, run=Late(), fence=Order.fence)
    except ClaimLost:
        pass
    else:
        raise AssertionError("a late write was taken")
    session.rollback()
    assert session.get_one(Order, 42).status == "shipped"
