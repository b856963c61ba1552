"""A key made of named arguments. A dotted path reaches into a dict or an object."""

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")


@app.task(base=IdempotentTask, idempotency_key=("order.id", "currency"))
def invoice(order, currency, requested_at=None):
    return f"invoice for {order['id']}"


assert invoice.idempotency_key_for({"id": 7}, "EUR", "10:00") == "order.id=7,currency=EUR"
# [end]

assert invoice.delay({"id": 7}, "EUR").get() == "invoice for 7"
