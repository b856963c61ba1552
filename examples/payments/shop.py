"""A shop: its API (FastAPI), its tables (SQLAlchemy), its task (Celery), and an outbox between."""

import os
from typing import Annotated

from celery import Celery
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPBearer
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from celery_idempotent import IdempotentTask
from celery_idempotent.http import IdempotencyASGIMiddleware
from celery_idempotent.outbox import create_schema, publish

SERVER = os.environ["SHOP_SERVER"]  # redis://127.0.0.1:6379
DATABASE = os.environ["SHOP_DATABASE"]  # sqlite:////tmp/shop.db

engine = create_engine(DATABASE, connect_args={"timeout": 30})


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


class Payment(Base):
    """A payment that the shop asked for."""

    __tablename__ = "payments"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int]
    amount: Mapped[int]


class Charge(Base):
    """A charge that the bank made. It takes a key: charges with the same key are one charge."""

    __tablename__ = "charges"
    key: Mapped[str] = mapped_column(primary_key=True)
    order_id: Mapped[int]
    amount: Mapped[int]


def create_tables():
    Base.metadata.create_all(engine)
    create_schema(engine)


# --- the worker ----------------------------------------------------------------------------------

celery = Celery("shop", broker=f"{SERVER}/0", backend=f"{SERVER}/1")
celery.conf.update(
    idempotency_store_url=f"{SERVER}/2",
    idempotency_outbox_url=DATABASE,
    broker_connection_retry_on_startup=True,
)


@celery.task(base=IdempotentTask, bind=True)
def charge(self, order_id, amount):
    with Session(engine) as session, session.begin():
        key = self.idempotency.key_for("bank")
        session.merge(Charge(key=key, order_id=order_id, amount=amount))


# --- the API -------------------------------------------------------------------------------------

bearer = HTTPBearer(auto_error=False)
tokens = {"token-of-ann": "ann"}  # stands for your table of tokens


async def user_of(request: Request):
    """Return the user of the request's token; None if it is unknown."""
    given = await bearer(request)
    return None if given is None else tokens.get(given.credentials)


def signed_in(user: Annotated[str | None, Depends(user_of)]):
    if user is None:
        raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})


api = FastAPI(dependencies=[Depends(signed_in)])


@api.get("/orders/{order_id}")
def read_order(order_id: int):
    with Session(engine) as session:
        order = session.get(Order, order_id)
        if order is None:
            raise HTTPException(404)
        return {"id": order.id, "item": order.item}


@api.put("/orders/{order_id}")
def write_order(order_id: int, order: dict):
    with Session(engine) as session, session.begin():
        session.merge(Order(id=order_id, item=order["item"]))
    return {"id": order_id, "item": order["item"]}


@api.delete("/orders/{order_id}", status_code=204)
def delete_order(order_id: int):
    with Session(engine) as session, session.begin():
        order = session.get(Order, order_id)
        if order is None:
            raise HTTPException(404)
        session.delete(order)


@api.post("/orders", status_code=201)
def create_order(order: dict):
    with Session(engine) as session, session.begin():
        made = Order(item=order["item"])
        session.add(made)
        session.flush()
        return {"id": made.id, "item": made.item}


@api.post("/payments/charge", status_code=202)
def pay(payment: dict):
    with Session(engine) as session, session.begin():
        made = Payment(order_id=payment["order"], amount=payment["amount"])
        session.add(made)
        # The call is sent if, and only if, the payment is committed.
        publish(session, charge.s(made.order_id, made.amount))
        session.flush()
        return {"payment": made.id}


api.add_middleware(
    IdempotencyASGIMiddleware,
    celery=celery,
    # The user of the key. With None the request goes to the API, which answers 401.
    identity=lambda scope: user_of(Request(scope)),
)
