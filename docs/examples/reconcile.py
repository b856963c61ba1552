"""After a crash the other side is asked first whether the effect has happened."""

import contextlib

from celery import Celery

from celery_idempotent import RERUN, IdempotentTask

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
        self.charges[reference] = {"reference": reference, "amount": amount}
        raise Crash


gateway = Gateway()


def find_charge(self, order_id, amount):
    """Give the charge if there is one: it is recorded as the task's result."""
    return gateway.find(self.idempotency.key_for("gateway")) or RERUN


@app.task(
    base=IdempotentTask,
    bind=True,
    idempotency_key="order:{order_id}",
    idempotency_reconcile=find_charge,
)
def charge(self, order_id, amount):
    return gateway.charge(self.idempotency.key_for("gateway"), amount)


# [end]


with contextlib.suppress(Crash):
    charge.delay(42, 100)
assert charge.delay(42, 100).get()["amount"] == 100
assert len(gateway.charges) == 1
