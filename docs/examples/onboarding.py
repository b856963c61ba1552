"""A task in steps, each with a key of its own, killed at each point where it can die."""

from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.testing import crash_points

app = Celery("crm")
calls, accounts = [], {}


class Service:
    """Stands for services that take a key with each request."""

    def __getattr__(self, name):
        def request(what, key):
            calls.append(name)
            return accounts.setdefault(key, f"{name} of {what}")

        return request


service = Service()


@app.task(base=IdempotentTask, bind=True, idempotency_key="customer:{customer_id}")
def onboard(self, customer_id):
    step, key_for = self.idempotency.step, self.idempotency.key_for
    account = step("account", service.open_account, customer_id, key_for("account"))
    step("card", service.order_card, account, key_for("card"))
    step("letter", service.print_letter, account, key_for("letter"))
    return account


# [end]


def reset():
    calls.clear()
    accounts.clear()


for crash in crash_points(onboard, (7,), fresh=reset):
    # Wherever it died there is one of each, and at most one request was made twice.
    assert len(accounts) == 3, crash
    assert len(calls) <= 4, crash
