"""The Inbox pattern: each message takes effect once, however often it is delivered."""

from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from celery_idempotent import MESSAGE_ID, IdempotentTask
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


engine = create_engine(url)
Base.metadata.create_all(engine)
sql.create_schema(engine)
with Session(engine) as session, session.begin():
    session.merge(Account(id=1, balance=100))


@app.task(base=IdempotentTask, bind=True, idempotency_key=MESSAGE_ID)
def deposit(self, account_id, amount):
    account = self.idempotency.session.get_one(Account, account_id, with_for_update=True)
    account.balance += amount


# [end]

message = deposit.apply_async((1, 10))
again = deposit.apply_async((1, 10), task_id=message.id)  # stands for a redelivery
assert (message.state, again.state) == ("SUCCESS", "SUCCESS")
with Session(engine) as session:
    assert session.get_one(Account, 1).balance == 110
