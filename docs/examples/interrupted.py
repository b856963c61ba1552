"""After a crash the task looks first whether its effect has happened already."""

import contextlib

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")


class Crash(BaseException):
    """Stands for a worker that is killed."""


class Gateway:
    """Stands for a payment provider that can be asked; it crashes us after the first charge."""

    def __init__(self):
        self.charges = {}

    def find(self, reference):
        return self.charges.get(reference)

    def charge(self, reference, amount):
        self.charges[reference] = amount
        raise Crash


gateway = Gateway()


@app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order_id}")
def charge(self, order_id, amount):
    reference = self.idempotency.key_for("gateway")  # the same for every run of this key
    if self.idempotency.interrupted:
        found = gateway.find(reference)
        if found is not None:
            return found
    self.idempotency.check()  # raises ClaimLost if another run has taken over
    return gateway.charge(reference, amount)


# [end]


with contextlib.suppress(Crash):
    charge.delay(42, 100)
assert charge.delay(42, 100).get() == 100
assert list(gateway.charges.values()) == [100]
