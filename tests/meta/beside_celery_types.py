"""A typed program with celery-types: checked by mypy --strict and pyright, never run."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.result import AsyncResult
from typing_extensions import assert_type

from celery_idempotent import IdempotentTask

app = Celery("shop")


class ShopTask(IdempotentTask):
    """A base of one's own needs no parameters."""

    abstract = True
    idempotency_ttl = 3600


class Charge(IdempotentTask[[int], str]):
    """A task that is a class has them."""

    name = "shop.charge"
    idempotency_key = "order:{order_id}"

    def run(self, order_id: int) -> str:
        assert_type(self.idempotency.key, str | None)
        return f"{order_id} is charged"


@app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order_id}")
def ship(self: IdempotentTask[..., Any], order_id: int) -> str:
    """A bound function."""
    assert_type(self.idempotency.token, int | None)
    return f"{order_id} is shipped"


def call(charge: IdempotentTask[[int], str], pay: ShopTask) -> None:
    """What a typed task gives."""
    assert_type(charge.delay(1), AsyncResult[str])
    assert_type(charge.delay(1).get(), str)
    assert_type(charge(1), str)
    charge.apply_async((1,), idempotency_key="req-1")
    charge.delay("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for signature in (charge.s(1), charge.si(1), charge.signature((1,), countdown=3)):
        signature.set(idempotency_key="req-1", countdown=3).apply_async()
        signature.set(idempotency_key=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pay.s(1).set(idempotency_key=None).delay()
    assert_type(charge.idempotency_key_for(1), str | None)


def take(task: IdempotentTask[[int], str]) -> IdempotentTask[[int], str]:
    """An instance of a class fits."""
    return take(Charge())
