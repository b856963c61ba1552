"""After: no time to guess, and a call that is skipped says so."""

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("feeds", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
app.conf.idempotency_store_url = "redis://localhost:6379/2"


def fetch(feed):
    return f"the articles of {feed}"


@app.task(
    base=IdempotentTask,
    idempotency_key="feed:{feed}",
    idempotency_ttl=0,  # the key is free when the run ends
    idempotency_on_running="drop",  # a call that comes meanwhile ends as REVOKED
)
def import_feed(feed):
    return fetch(feed)
