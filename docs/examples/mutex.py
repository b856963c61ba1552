"""One booking on an account at a time, and every booking is made."""

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("bank")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
balance = {7: 0}


@app.task(
    base=IdempotentTask,
    idempotency_key="account:{account_id}",
    idempotency_ttl=0,
    idempotency_after_wait="run",
)
def book(account_id, amount):
    balance[account_id] += amount
    return balance[account_id]


assert book.delay(7, 100).get() == 100
assert book.delay(7, 100).get() == 200
