"""The shop that every contender runs: one task that charges an order, and its bookkeeping."""

from __future__ import annotations

import os
import time
import uuid
from typing import Any

from celery import Celery, signals

from benchmarks.compare.ledger import Ledger

__all__ = ["charge_order", "make_app", "sum_up"]

#: Seconds after which the broker delivers a message again, in the scenarios that wait for it.
VISIBILITY_TIMEOUT = 4
#: How long a retry waits, so that duplicates can arrive in the meantime.
BACKOFF_SECONDS = 2.0
#: How long a finished task waits between its stored result and its ack, where a switch is set.
LINGER_SECONDS = 30.0

_ledger = Ledger(os.environ.get("COMPARE_LEDGER", "."))


def make_app(name: str) -> Celery:
    """Make a Celery app on the private server that the environment names."""
    url = os.environ.get("COMPARE_SERVER_URL", "redis://127.0.0.1:1")
    app = Celery(name, broker=f"{url}/0", backend=f"{url}/1")
    app.conf.update(
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        broker_transport_options={"visibility_timeout": 3600},
    )
    if os.environ.get("COMPARE_FAULTS") == "1":
        # Look for messages whose visibility timeout is over every second, and not every 100 s.
        app.conf.broker_transport_options = {
            "visibility_timeout": VISIBILITY_TIMEOUT,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        }
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
    _ledger.write("begin", task_id=self.request.id, worker_pid=os.getppid(), **fields)
    try:
        # This stands for the work.
        time.sleep(work)
        if self.request.retries < refusals:
            raise self.retry(countdown=BACKOFF_SECONDS, max_retries=5)
        if _ledger.is_on(f"declined-{order_id}"):
            raise ValueError("the gateway declined")
        _ledger.write("charge", amount=amount, **fields)
        return run_id
    finally:
        _ledger.write("end", **fields)


def sum_up(receipts: list[str], order_id: str) -> int:
    """The body of a chord: return how many receipts it got."""
    _ledger.write("summed", order_id=order_id, receipts=receipts)
    return len(receipts)


def _note_worker(**_: Any) -> None:
    _ledger.write("ready", worker_pid=os.getpid())


def _note_delivery(request: Any = None, **_: Any) -> None:
    redelivered = bool((request.delivery_info or {}).get("redelivered"))
    _ledger.write("received", task_id=request.id, redelivered=redelivered)


def _linger(task_id: str | None = None, kwargs: Any = None, **_: Any) -> None:
    """Delay a task after its result is stored and before its message is acked."""
    order_id = (kwargs or {}).get("order_id")
    switch = f"linger-{order_id}"
    if not _ledger.is_on(switch):
        return
    _ledger.write("stored", order_id=order_id, task_id=task_id)
    deadline = time.monotonic() + LINGER_SECONDS
    while _ledger.is_on(switch) and time.monotonic() < deadline:
        time.sleep(0.05)


signals.worker_ready.connect(_note_worker)
signals.task_received.connect(_note_delivery)
signals.task_postrun.connect(_linger)
