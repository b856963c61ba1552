"""An order and the task that it needs are committed together; a relay sends the task."""

from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from celery_idempotent import IdempotentTask, outbox

app = Celery("shop", broker="memory://")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
charged = []


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


@app.task(base=IdempotentTask, idempotency_key="order:{order_id}")
def charge(order_id, amount):
    charged.append(order_id)


engine = create_engine("sqlite:///shop.db")
Base.metadata.create_all(engine)
outbox.create_schema(engine)  # with Alembic: target_metadata = [Base.metadata, outbox.metadata]


def place_order(amount):
    with Session(engine) as session, session.begin():
        order = Order(amount=amount)
        session.add(order)
        session.flush()  # gives the order its id
        outbox.publish(session, charge.s(order.id, amount))


# [end]

place_order(100)
assert charged == []
assert outbox.backlog(engine).rows == 1
try:
    with Session(engine) as session, session.begin():
        outbox.publish(session, charge.s(2, 100))
        raise RuntimeError("the order is not placed after all")
except RuntimeError:
    pass
# What `celery -A shop idempotency relay --once` does
outbox.Relay(app, engine).once()
assert charged == [1]
assert outbox.backlog(engine).rows == 0
