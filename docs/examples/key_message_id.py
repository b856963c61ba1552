"""The message's id as the key: only redeliveries of one message are duplicates."""

from celery import Celery

from celery_idempotent import MESSAGE_ID, IdempotentTask

app = Celery("shop")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
ticks = []


@app.task(base=IdempotentTask, idempotency_key=MESSAGE_ID)
def tick():
    ticks.append("tick")


tick.delay()
tick.delay()  # another message: it runs
assert len(ticks) == 2
