"""The demo's shop: a Celery app with a plain and an idempotent task that take a payment."""

# Celery's decorators come without types.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import os
import time
import uuid
from typing import Any

from celery import Celery, Task, signals

from celery_idempotent import IdempotentTask
from examples.demo.briefing import Briefing
from examples.demo.ledger import Entry, Ledger

__all__ = [
    "BACK_OFF",
    "VISIBILITY_TIMEOUT",
    "app",
    "briefing",
    "charge",
    "configure",
    "ledger",
    "note",
    "plain_charge",
    "total",
]

#: Seconds after which the broker considers a message lost and delivers it again.
VISIBILITY_TIMEOUT = 4
#: Seconds between a declined attempt and the next one.
BACK_OFF = 1

_APPS = ("shop", "vault")

briefing = Briefing.read()
ledger = Ledger(briefing.ledger_path)


def configure(app: Celery, store_url: str) -> None:
    """Set up one of the shop's apps."""
    app.conf.update(
        broker_url=f"{briefing.server}/0",
        result_backend=f"{briefing.server}/1",
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            # A worker killed while it looks for lost messages must not stop the others for minutes.
            "unacked_mutex_expire": 5,
        },
        # The private server ends with the demo; its workers then end, too.
        broker_connection_max_retries=3,
        broker_connection_retry_on_startup=True,
        # IdempotentTask sets these two by itself. The plain side gets them, too: otherwise a killed
        # worker would lose its task, and the comparison would be unfair.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_routes={
            "shop.plain_*": {"queue": "plain"},
            "shop.charge": {"queue": "idempotent"},
            "shop.pay_*": {"queue": "idempotent"},
            "vault.*": {"queue": "vault"},
        },
        task_time_limit=60,
        worker_prefetch_multiplier=1,
        idempotency_store_url=store_url,
        # Shorter than the visibility timeout, as it should be everywhere.
        idempotency_lease=3,
        idempotency_mode=briefing.mode,
    )


app = Celery("shop", include=["examples.demo.means"])
configure(app, f"{briefing.server}/2")


@app.task(bind=True, name="shop.plain_charge")
def plain_charge(
    self: Task, order_id: str, amount: int, bank_seconds: float = 0.2, declines: int = 0
) -> dict[str, Any]:
    """Take a payment as plain Celery does."""
    return _take_payment(self, order_id, amount, bank_seconds, declines, gateway_key="")


@app.task(bind=True, name="shop.charge", base=IdempotentTask, idempotency_key="order:{order_id}")
def charge(
    self: IdempotentTask, order_id: str, amount: int, bank_seconds: float = 0.2, declines: int = 0
) -> dict[str, Any]:
    """Take a payment once for each order."""
    gateway_key = self.idempotency.key_for("gateway")
    return _take_payment(self, order_id, amount, bank_seconds, declines, gateway_key)


@app.task(bind=True, name="shop.total")
def total(self: Task, payments: list[dict[str, Any]]) -> int:
    """Add up the payments of a chord; plain on both sides, so that a second run is visible."""
    note("summed", self)
    return sum(payment["amount"] for payment in payments)


def _take_payment(
    task: Task, order_id: str, amount: int, bank_seconds: float, declines: int, gateway_key: str
) -> dict[str, Any]:
    note("began", task, order=order_id, gateway_key=gateway_key)
    if task.request.retries < declines:
        note("declined", task, order=order_id)
        raise task.retry(countdown=BACK_OFF, max_retries=declines)
    time.sleep(bank_seconds)
    receipt = uuid.uuid4().hex[:12]
    note("charged", task, order=order_id, receipt=receipt, gateway_key=gateway_key)
    return {"order": order_id, "amount": amount, "receipt": receipt}


def note(event: str, task: Task, **more: str) -> None:
    """Write to the ledger what a task does."""
    request = task.request
    ledger.write(
        Entry(
            event,
            side=briefing.side,
            worker=request.hostname or "",
            pid=os.getpid(),
            task_id=request.id or "",
            retries=request.retries or 0,
            redelivered=bool((request.delivery_info or {}).get("redelivered")),
            **more,
        )
    )


@signals.task_prerun.connect
def _delivered(task: Task, **_: Any) -> None:
    if task.app.main in _APPS:
        note("delivered", task)


@signals.task_postrun.connect
def _left(task: Task, **_: Any) -> None:
    if task.app.main in _APPS:
        note("left", task)


@signals.worker_ready.connect
def _ready(sender: Any, **_: Any) -> None:
    ledger.write(Entry("ready", side=briefing.side, worker=sender.hostname, pid=os.getpid()))
