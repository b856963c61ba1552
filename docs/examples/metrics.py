"""Counts what becomes of deliveries, and reads the figures back."""

from celery import Celery
from prometheus_client import REGISTRY

from celery_idempotent import IdempotentTask
from celery_idempotent.ops import metrics

app = Celery("shop", broker="memory://", backend="cache+memory://")
app.conf.update(idempotency_store_url="memory://metrics", task_always_eager=True)

metrics.install()  # with port=9808 a worker serves them; no other process opens the port


@app.task(base=IdempotentTask, name="shop.charge", idempotency_key="order:{order_id}")
def charge(order_id, amount):
    return amount


charge.delay(42, 100)
charge.delay(42, 100)
labels = {"task": "shop.charge"}
assert REGISTRY.get_sample_value("celery_idempotency_executions_total", labels) == 1
assert REGISTRY.get_sample_value("celery_idempotency_replays_total", labels) == 1
print("one execution, one replay")
