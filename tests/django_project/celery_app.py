"""The project's Celery app, with its tasks, as Django projects have it."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery, signals
from django.db.models import F

from celery_idempotent import IdempotentTask
from tests.support.ledger import Ledger
from tests.support.tasks import SETTINGS_VARIABLE

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.django_project.settings")

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
ledger = Ledger(json.loads(os.environ[SETTINGS_VARIABLE])["TEST_LEDGER"])


@signals.worker_ready.connect
def _note_ready(**_: Any) -> None:
    ledger.write("ready")


@app.task(base=IdempotentTask, bind=True, name="shop.deposit", idempotency_key="payment:{payment}")
def deposit(self: Any, payment: int, amount: int, gates: bool = False, fails: bool = False) -> int:
    """Pay into the account: an increment, which a second run would spoil."""
    from django.db import transaction

    from tests.django_project.shop.models import Account

    ledger.write("start", key=payment, token=self.idempotency.token)
    if gates:
        ledger.hold(f"before-{payment}")
    # A test may take a record's lock away for a moment, but not the write.
    Account.objects.filter(name="ann").update(balance=F("balance") + amount)
    transaction.on_commit(lambda: ledger.write("committed", key=payment))
    ledger.write("written", key=payment)
    if gates:
        ledger.hold(f"after-{payment}")
    if fails:
        raise ValueError("the payment was declined")
    return amount


@app.task(base=IdempotentTask, bind=True, name="shop.settle", idempotency_key="order:{order}")
def settle(self: Any, order: int, balance: int) -> int:
    """Assign, fenced by the token."""
    from celery_idempotent.django.fencing import fenced_update
    from tests.django_project.shop.models import Account

    return fenced_update(Account.objects.filter(name="ann"), self.idempotency, balance=balance)
