"""After: the same, and a message that is delivered twice builds one report."""

from celery import Celery

from celery_idempotent import IdempotencyInProgress, IdempotentTask

app = Celery("reports", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
app.conf.idempotency_store_url = "redis://localhost:6379/2"


@app.task(
    base=IdempotentTask,
    idempotency_key=("customer_id",),
    idempotency_ttl=0,  # the key is free when the run ends
    idempotency_on_enqueue="raise",
)
def build_report(customer_id, asked_by):
    return f"the report of customer {customer_id}"


def button_pressed(customer_id, user):
    try:
        return build_report.delay(customer_id, user).id
    except IdempotencyInProgress:
        return "it is being built"
