"""The effect and the record of it are committed together, or neither is."""

from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from celery_idempotent import IdempotentTask
from celery_idempotent.stores import sql

url = "sqlite:///shop.db"
app = Celery("shop", broker="memory://", backend="cache+memory://")
app.conf.update(task_always_eager=True, idempotency_store_url=url)


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]


class Payment(Base):
    __tablename__ = "payments"
    id: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[int]
    amount: Mapped[int]


engine = create_engine(url)
Base.metadata.create_all(engine)
sql.create_schema(engine)
with Session(engine) as session, session.begin():
    session.merge(Account(id=1, balance=100))


class Declined(Exception):
    pass


@app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order_id}")
def pay(self, order_id, account_id, amount):
    session = self.idempotency.session
    account = session.get_one(Account, account_id, with_for_update=True)
    if account.balance < amount:
        raise Declined(order_id)
    account.balance -= amount
    session.add(Payment(account_id=account_id, amount=amount))
    return account.balance


# [end]


from sqlalchemy import func, select  # noqa: E402


def balance():
    with Session(engine) as session:
        payments = session.scalar(select(func.count()).select_from(Payment))
        return session.get_one(Account, 1).balance, payments


assert [pay.delay(42, 1, 30).get(), pay.delay(42, 1, 30).get()] == [70, 70]
assert balance() == (70, 1)
assert isinstance(pay.delay(43, 1, 500).result, Declined)
assert balance() == (70, 1)
