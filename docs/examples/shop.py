"""shop.py: a task that charges a customer."""

import gateway  # your payment provider's client
from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
app.conf.idempotency_store_url = "redis://localhost:6379/2"


@app.task(
    base=IdempotentTask,
    bind=True,
    idempotency_key="order:{order_id}",
    idempotency_ttl=86400,
)
def charge(self, order_id, amount):
    reference = self.idempotency.key_for("gateway")
    return gateway.charge(order_id, amount, idempotency_key=reference)
