"""Receivers of the library's signals."""

from celery import Celery

from celery_idempotent import IdempotentTask, signals

app = Celery("shop")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
seen = []


@signals.task_deduplicated.connect
def count_duplicate(sender, event, **kwargs):
    seen.append((event.task, event.key, event.task_id, event.original_id))


@app.task(base=IdempotentTask, name="shop.charge", idempotency_key="order:{order_id}")
def charge(order_id):
    return "charged"


first, second = charge.delay(42), charge.delay(42)
assert seen == [("shop.charge", "order:42", second.id, first.id)]
