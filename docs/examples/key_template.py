"""A key made by a template."""

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")


@app.task(base=IdempotentTask, idempotency_key="order:{order_id}")
def charge(order_id, amount):
    return amount


assert charge.idempotency_key_for(42, 100) == "order:42"
assert charge.idempotency_key_for("42", 100) == "order:'42'"  # a text, not a number: another key
assert charge.idempotency_key_for("A-17", 100) == "order:A-17"
# [end]

assert charge.delay(42, 100).get() == 100
