"""A second app of the demo's shop, with its records in the database of its payments."""

# Celery's decorators come without types.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from typing import Any

from celery import Celery
from sqlalchemy import text

from celery_idempotent import IdempotentTask
from celery_idempotent.stores.sql.store import SqlStore
from examples.demo.app import briefing, configure, note
from examples.demo.bank import open_bank
from examples.demo.means import held_after_the_effect, new_payment

__all__ = ["app", "open_vault", "pay_in_session"]

app = Celery("vault")
configure(app, f"sqlite:///{briefing.vault_path}")


def open_vault() -> None:
    """Make the tables of the records and of the payments."""
    SqlStore.from_url(app.conf.idempotency_store_url).create_schema()
    open_bank(briefing.vault_path)


@app.task(
    bind=True,
    name="vault.pay_in_session",
    shared=False,
    base=IdempotentTask,
    idempotency_key="{order_id}",
)
def pay_in_session(self: IdempotentTask, order_id: str) -> dict[str, Any]:
    """Pay in the transaction that records the completion."""
    note("began", self, order=order_id)
    payment = new_payment(order_id)
    self.idempotency.session.execute(
        text("INSERT INTO payments (side, paid_for, receipt) VALUES (:side, :order, :receipt)"),
        vars(payment),
    )
    held_after_the_effect(self, order_id)
    return {"order": order_id, "receipt": payment.receipt}
