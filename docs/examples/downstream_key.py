"""Hand a key on to a service that knows idempotency keys, and see that one charge is made."""

import uuid

from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.testing import crash_points

app = Celery("shop")


class Provider:
    """Stands for the client of a payment provider that takes idempotency keys."""

    def __init__(self):
        self.charges = {}
        self.mails = {}

    def charge(self, amount, idempotency_key):
        return self.charges.setdefault(idempotency_key, {"amount": amount, "id": uuid.uuid4().hex})

    def mail(self, text, message_id):
        self.mails.setdefault(message_id, text)

    def reset(self):
        self.__init__()


provider = Provider()


@app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order_id}")
def charge(self, order_id, amount):
    key_for = self.idempotency.key_for
    paid = provider.charge(amount, idempotency_key=key_for("charge"))
    provider.mail(f"Thank you: {paid['id']}", message_id=key_for("mail"))
    return paid["id"]


# [end]

for crash in crash_points(charge, (42, 100), fresh=provider.reset):
    assert len(provider.charges) == len(provider.mails) == 1, crash
    assert crash.result == next(iter(provider.charges.values()))["id"], crash
