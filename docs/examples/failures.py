"""Which failures are final, and which free the key."""

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
attempts = []


class CardDeclined(Exception):
    """It would be declined again."""


@app.task(
    base=IdempotentTask,
    idempotency_key="order:{order_id}",
    idempotency_store_failures=(CardDeclined,),
)
def charge(order_id, problem=None):
    attempts.append(order_id)
    if problem == "declined":
        raise CardDeclined(order_id)
    if problem == "network":
        raise ConnectionError("try again")
    return "charged"


# An ordinary failure frees the key: the next call runs.
assert charge.delay(1, "network").failed()
assert charge.delay(1).get() == "charged"

# A stored one is an outcome: the next call gets it, and does not run.
assert charge.delay(2, "declined").failed()
assert isinstance(charge.delay(2).result, CardDeclined)
assert attempts == [1, 1, 2]
