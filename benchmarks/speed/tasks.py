"""The tasks that a worker runs for the throughput measurement."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from celery import Celery

from benchmarks.speed.bare import Bare
from celery_idempotent import IdempotentTask
from celery_idempotent.core.keys import Owner

__all__ = ["app"]

Result = dict[str, int | str]
#: What every task returns.
RESULT: Result = {"id": "ch_42", "status": "paid", "amount": 100}

_URL = os.environ.get("SPEED_URL", "redis://127.0.0.1:1")

app = Celery("speed", broker=f"{_URL}/0", backend=f"{_URL}/1")
app.conf.update(
    idempotency_store_url=f"{_URL}/2",
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=50,
    task_default_queue="consumed",
    # The guarded task has it by its class.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
)


@cache
def _bare(pid: int) -> Bare:
    return Bare(f"{_URL}/3")


def _send(task: Any, key: str) -> None:
    bare, owner = _bare(os.getpid()), Owner(task.request.id)
    packed, slip = owner.pack(), owner.slip_key(key)
    token = bare.claim(key, packed, slip)
    if isinstance(token, int):
        bare.complete(key, packed, token, slip)


@app.task(name="speed.plain")
def plain(number: int, a: int, b: int) -> Result:
    """Do nothing."""
    return RESULT


@app.task(name="speed.two_trips", bind=True)
def two_trips(self: Any, number: int, a: int, b: int) -> Result:
    """Send the commands of a first execution."""
    _send(self, f"bare:{{speed:{number}}}")
    return RESULT


@app.task(name="speed.one_trip", bind=True)
def one_trip(self: Any, number: int, a: int, b: int) -> Result:
    """Send the commands of a duplicate."""
    _send(self, "bare:{speed:same}")
    return RESULT


@app.task(base=IdempotentTask, name="speed.guarded", idempotency_key="order:{number}")
def guarded(number: int, a: int, b: int) -> Result:
    """Do nothing, once."""
    return RESULT
