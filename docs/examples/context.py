"""One key of a web request, for all that the request publishes."""

from celery import Celery

from celery_idempotent import IdempotentTask, use_idempotency_key

app = Celery("shop")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
done = []


@app.task(base=IdempotentTask)
def charge(order_id, amount):
    done.append("charge")


@app.task(base=IdempotentTask)
def send_receipt(order_id):
    done.append("receipt")


def checkout(user_id, request_key):
    with use_idempotency_key(f"{user_id}/{request_key}"):
        charge.delay(42, 100)
        send_receipt.delay(42)


checkout("ann", "7f3a")
checkout("ann", "7f3a")  # the same request again
assert done == ["charge", "receipt"]
