"""The same settings where an app reads them with a namespace, as is usual with Django."""

from celery import Celery

from celery_idempotent import IdempotentTask


class settings:  # noqa: N801  (stands for your Django settings module)
    CELERY_IDEMPOTENCY_STORE_URL = "memory://"
    CELERY_IDEMPOTENCY_TTL = 3600
    CELERY_TASK_ALWAYS_EAGER = True


app = Celery("shop")
app.config_from_object(settings, namespace="CELERY")


@app.task(base=IdempotentTask)
def charge(order_id):
    return "charged"


assert charge.delay(42).get() == "charged"
assert charge.idempotency_record(42) is not None
assert app.conf.get("idempotency_ttl") == 3600
