"""A worker that Kubernetes stops: what it began it may finish, for a minute."""

from celery import Celery

app = Celery("shop")
app.conf.update(
    broker_url="redis://redis:6379/0",
    result_backend="redis://redis:6379/1",
    idempotency_store_url="redis://redis:6379/2",
    worker_soft_shutdown_timeout=60.0,
)
