"""What can be asked about a call from outside, and how its key is freed."""

from celery import Celery

from celery_idempotent import MESSAGE_ID, IdempotentTask, State

app = Celery("shop")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
charged = []


@app.task(base=IdempotentTask, idempotency_key="order:{order_id}")
def charge(order_id, amount):
    charged.append(order_id)


@app.task(base=IdempotentTask, idempotency_key=MESSAGE_ID)
def tick(): ...


first = charge.delay(42, 100)

assert charge.idempotency_key_for(42, 100) == "order:42"

record = charge.idempotency_record(42, 100)
assert record.state is State.SUCCEEDED
assert record.owner_id == first.id
assert charge.idempotency_record(43, 100) is None

charge.forget(42, 100)  # the next call with this key runs
charge.delay(42, 100)
assert charged == [42, 42]

# A call that had an explicit key is found by it, without its arguments.
charge.apply_async((42, 100), idempotency_key="req-7f3a")
assert charge.idempotency_record(idempotency_key="req-7f3a").state is State.SUCCEEDED

# With MESSAGE_ID as the key, that is the task id.
ticked = tick.delay()
assert tick.idempotency_record(idempotency_key=ticked.id).owner_id == ticked.id
