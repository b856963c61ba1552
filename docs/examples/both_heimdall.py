"""Both at once, with celery-heimdall: its lock at the enqueue, and this library in the worker."""

from celery import Celery
from celery_heimdall import HeimdallTask

from celery_idempotent import IdempotentTask

app = Celery("reports", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
app.conf.idempotency_store_url = "redis://localhost:6379/2"
app.conf.idempotency_mode = "shadow"


def build(customer_id):
    return f"the report of customer {customer_id}"


class Both(HeimdallTask, IdempotentTask):
    abstract = True

    # HeimdallTask's own would call the body past IdempotentTask.
    def __call__(self, *args, **kwargs):
        return IdempotentTask.__call__(self, *args, **kwargs)


@app.task(
    base=Both,
    heimdall={"unique": True, "unique_timeout": 3600},
    idempotency_ttl=0,
)
def build_report(customer_id):
    return build(customer_id)
