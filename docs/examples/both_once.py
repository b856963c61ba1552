"""Both at once: celery-once stops duplicates at the enqueue as before, and this library reports."""

from celery import Celery
from celery_once import QueueOnce

from celery_idempotent import IdempotentTask

app = Celery("reports", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
app.conf.idempotency_store_url = "redis://localhost:6379/2"
app.conf.idempotency_mode = "shadow"
app.conf.ONCE = {
    "backend": "celery_once.backends.Redis",
    "settings": {"url": "redis://localhost:6379/2", "default_timeout": 3600},
}


def build(customer_id):
    return f"the report of customer {customer_id}"


class Both(QueueOnce, IdempotentTask):  # the lock comes first
    abstract = True


@app.task(
    base=Both,
    once={"keys": ["customer_id"]},
    idempotency_key=("customer_id",),
    idempotency_ttl=0,
)
def build_report(customer_id, asked_by):
    return build(customer_id)
