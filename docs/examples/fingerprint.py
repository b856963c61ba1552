"""A derived key that must always come with the same amount."""

from celery import Celery

from celery_idempotent import IdempotencyKeyMismatch, IdempotentTask

app = Celery("shop")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")


@app.task(
    base=IdempotentTask,
    idempotency_key="order:{order_id}",
    idempotency_fingerprint=("amount",),
)
def charge(order_id, amount, note=""):
    return amount


assert charge.delay(42, 100).get() == 100
assert charge.delay(42, 100, note="again").get() == 100  # a duplicate: the note isn't checked

refused = charge.delay(42, 999)
assert isinstance(refused.result, IdempotencyKeyMismatch)
