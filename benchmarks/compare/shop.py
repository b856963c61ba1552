"""The shop that every contender runs: one task that charges an order, and its bookkeeping."""

from __future__ import annotations

import os
import time
import uuid
from typing import Any

from celery import Celery, signals

from benchmarks.playing import shop as played
from benchmarks.playing.shop import VISIBILITY_S, ledger

__all__ = ["VISIBILITY_S", "charge_order", "make_app", "sum_up"]

#: How long a retry waits, so that duplicates can arrive in the meantime.
BACKOFF_SECONDS = 2.0
#: How long a finished task waits between its stored result and its ack, where a switch is set.
LINGER_SECONDS = 30.0


def make_app(name: str) -> Celery:
    """Make a Celery app as the scenario's group asks for it in the environment."""
    app = played.make_app(name, redelivers=os.environ.get("COMPARE_FAULTS") == "1")
    if os.environ.get("COMPARE_ACKS_LATE") == "1":
        app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)
    return app


def charge_order(
    self: Any, *, order_id: str, amount: int = 100, work: float = 0.0, refusals: int = 0
) -> str:
    """Charge an order once for each run; the answer names the run that charged it.

    Args:
        order_id: calls with the same one are duplicates.
        amount: the amount that is charged.
        work: how many seconds the charge takes.
        refusals: how many attempts fail, each followed by a retry.
    """
    run_id = uuid.uuid4().hex
    fields = {"order_id": order_id, "run_id": run_id}
    ledger.begin(task_id=self.request.id, **fields)
    try:
        # This stands for the work.
        time.sleep(work)
        if self.request.retries < refusals:
            raise self.retry(countdown=BACKOFF_SECONDS, max_retries=5)
        if ledger.is_on(f"declined-{order_id}"):
            raise ValueError("the gateway declined")
        ledger.write("charge", amount=amount, **fields)
        return run_id
    finally:
        ledger.write("end", **fields)


def sum_up(receipts: list[str], order_id: str) -> int:
    """The body of a chord: return how many receipts it got."""
    ledger.write("summed", order_id=order_id, receipts=receipts)
    return len(receipts)


def _linger(task_id: str | None = None, kwargs: Any = None, **_: Any) -> None:
    """Delay a task after its result is stored and before its message is acked."""
    order_id = (kwargs or {}).get("order_id")
    switch = f"linger-{order_id}"
    if not ledger.is_on(switch):
        return
    ledger.write("stored", order_id=order_id, task_id=task_id)
    deadline = time.monotonic() + LINGER_SECONDS
    while ledger.is_on(switch) and time.monotonic() < deadline:
        time.sleep(0.05)


signals.task_postrun.connect(_linger)
