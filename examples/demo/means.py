"""The tasks of the demo's last act: a payment with no means to exactly one effect, and by three.

Each moves the money and then waits until its worker is killed; later attempts don't wait.
"""

# Celery's decorators come without types.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import time
import uuid
from typing import Any, Final

from celery import Task

from celery_idempotent import IdempotentTask
from examples.demo.app import app, briefing, ledger, note
from examples.demo.bank import Payment, pay

__all__ = ["held_after_the_effect", "new_payment", "pay_in_steps", "pay_keyed", "plain_pay"]

#: Longer than killing a worker takes.
_HELD_SECONDS: Final = 20


def new_payment(order_id: str) -> Payment:
    """Return a payment with a receipt of its own."""
    return Payment(briefing.side, order_id, uuid.uuid4().hex[:12])


def held_after_the_effect(task: Task, order_id: str) -> None:
    """Record that the money has moved, and wait for the kill; once for each order."""
    before = any(e.event == "moved" and e.order == order_id for e in ledger.of(briefing.side))
    note("moved", task, order=order_id)
    if not before:
        time.sleep(_HELD_SECONDS)


def _mail(task: Task, order_id: str) -> None:
    note("mailed", task, order=order_id)
    held_after_the_effect(task, order_id)


@app.task(bind=True, name="shop.plain_pay")
def plain_pay(self: Task, order_id: str, mails: bool = False) -> dict[str, Any]:
    """Pay as plain Celery does; with ``mails``, send a receipt, too."""
    note("began", self, order=order_id)
    receipt = pay(briefing.bank_path, new_payment(order_id))
    if mails:
        _mail(self, order_id)
    else:
        held_after_the_effect(self, order_id)
    return {"order": order_id, "receipt": receipt}


@app.task(bind=True, name="shop.pay_keyed", base=IdempotentTask, idempotency_key="{order_id}")
def pay_keyed(self: IdempotentTask, order_id: str) -> dict[str, Any]:
    """Pay by an insert whose key is the same for every attempt."""
    note("began", self, order=order_id)
    receipt = pay(briefing.bank_path, new_payment(order_id), self.idempotency.key_for("bank"))
    held_after_the_effect(self, order_id)
    return {"order": order_id, "receipt": receipt}


@app.task(bind=True, name="shop.pay_in_steps", base=IdempotentTask, idempotency_key="{order_id}")
def pay_in_steps(self: IdempotentTask, order_id: str) -> dict[str, Any]:
    """Pay in one step, and send the receipt in another, in which the worker is killed."""
    note("began", self, order=order_id)
    step = self.idempotency.step
    receipt = step("pay", pay, briefing.bank_path, new_payment(order_id))
    step("mail", _mail, self, order_id)
    return {"order": order_id, "receipt": receipt}
