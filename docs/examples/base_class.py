"""Options for many tasks: an abstract base class, and the app's settings."""

from datetime import timedelta

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")

app.conf.idempotency_ttl = timedelta(days=2)  # for every task that does not say otherwise


class PaymentTask(IdempotentTask):
    """What all payments have in common."""

    abstract = True
    idempotency_key = "payment:{payment_id}"
    idempotency_on_interrupted = "unknown"


@app.task(base=PaymentTask)
def pay(payment_id): ...


@app.task(base=PaymentTask, idempotency_ttl=timedelta(days=30))
def refund(payment_id): ...


# [end]

for task in (pay, refund):
    task.delay(7)
    assert task.idempotency_key_for(7) == "payment:7"
    assert str(task.idempotency_record(7).state) == "succeeded"
