"""What would have been a duplicate, before anything is suppressed."""

from celery import Celery

from celery_idempotent import IdempotentTask, signals

app = Celery("shop")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
charged, reported = [], []

app.conf.idempotency_mode = "shadow"


@signals.task_deduplicated.connect
def report(sender, event, **kwargs):
    if event.shadow:
        reported.append((event.key, event.task_id, event.original_id))


@app.task(base=IdempotentTask, idempotency_key="order:{order_id}")
def charge(order_id):
    charged.append(order_id)


first, second = charge.delay(42), charge.delay(42)
assert charged == [42, 42]
assert reported == [("order:42", second.id, first.id)]
