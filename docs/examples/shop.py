"""shop.py: a task that charges a customer."""

import uuid

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
app.conf.update(
    idempotency_store_url="redis://localhost:6379/2",
    task_time_limit=600,  # a body that hangs would hold its key for ever
)


def pay(order_id, amount, idempotency_key):
    """Stand in for your payment provider's client."""
    return {"order": order_id, "amount": amount, "receipt": uuid.uuid4().hex}


@app.task(
    base=IdempotentTask,
    bind=True,
    idempotency_key="order:{order_id}",
    idempotency_fingerprint=("order_id", "amount"),
)
def charge(self, order_id, amount):
    return pay(order_id, amount, idempotency_key=self.idempotency.key_for("payment"))
