"""A long loop that goes on where it was, killed at each checkpoint."""

from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.testing import crash_points

app = Celery("reports")
mails = []


class Customers:
    """Stands for a table of customers."""

    def after(self, last_id):
        return [Customer(number) for number in range(1, 8) if number > (last_id or 0)]


class Customer:
    """One of them."""

    def __init__(self, number):
        self.id = number


customers = Customers()


def send_mail(customer, key):
    mails.append(key)


@app.task(base=IdempotentTask, bind=True, idempotency_key="newsletter:{issue}")
def newsletter(self, issue):
    ask = self.idempotency
    for customer in ask.resume("mails", customers.after, cursor=lambda it: it.id, every=3):
        send_mail(customer, key=ask.key_for(f"mail-{customer.id}"))


# [end]

for crash in crash_points(newsletter, (12,), fresh=mails.clear):
    # Wherever it died, each customer has a mail, and at most three were sent again.
    assert len(set(mails)) == 7, crash
    assert len(mails) <= 10, crash
