"""Once an hour, however often it is asked for: two ways to count the hour."""

from datetime import datetime, timezone

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("reports")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
built = []


# An hour from the end of the last run.
@app.task(base=IdempotentTask, idempotency_key="report:{name}", idempotency_ttl=3600)
def build(name):
    built.append(name)


# An hour of the clock. The caller names it: a key must not change between two deliveries.
@app.task(base=IdempotentTask, idempotency_key="report:{name}:{hour}", idempotency_ttl=7200)
def build_of(name, hour):
    built.append((name, hour))


for _ in range(3):
    build.delay("sales")
    build_of.delay("sales", hour=f"{datetime(2030, 1, 31, 13, tzinfo=timezone.utc):%Y-%m-%dT%H}")
assert built == ["sales", ("sales", "2030-01-31T13")]
