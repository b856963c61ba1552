"""A test of a task of yours: its worker dies at every point where it can."""

from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.testing import crash_points

app = Celery("shop")


class Bank:
    """A stand-in that knows idempotency keys, as the real one does."""

    def __init__(self):
        self.charges = {}

    def charge(self, order_id, key):
        return self.charges.setdefault(key, f"receipt of {order_id}")


bank = Bank()


@app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order_id}")
def charge(self, order_id):
    return bank.charge(order_id, self.idempotency.key_for("bank"))


def test_a_customer_is_charged_once_wherever_the_worker_dies():
    for crash in crash_points(charge, (42,), fresh=bank.charges.clear):
        assert len(bank.charges) == 1, crash
        assert crash.result == "receipt of 42", crash
