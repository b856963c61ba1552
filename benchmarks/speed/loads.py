"""The tasks of the measurement under load: a body that waits, as for a service that it calls."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any

import redis
from celery import Celery, signals

from celery_idempotent import IdempotentTask

__all__ = ["RESULT", "app"]

RESULT = {"id": "ch_42", "status": "paid", "amount": 100}

_URL = os.environ.get("SPEED_URL", "redis://127.0.0.1:1")

app = Celery("loads", broker=f"{_URL}/0", backend=f"{_URL}/1")
app.conf.update(
    idempotency_store_url=os.environ.get("SPEED_STORE", f"{_URL}/2"),
    broker_connection_retry_on_startup=True,
    result_expires=600,
    # The guarded tasks have it by their class.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
)


@cache
def _notes(pid: int) -> Any:
    return redis.Redis.from_url(f"{_URL}/3")


@signals.task_success.connect(weak=False)
def _answered(sender: Any = None, **_: Any) -> None:
    """Note how long after its publishing a call's result was stored."""
    if not sender.name.startswith("loads."):
        return  # of a test, in whose process this is imported
    _, run, sent, _ = sender.request.args
    _notes(os.getpid()).rpush(f"answered:{run}", time.time() - sent)


@app.task(name="loads.plain")
def plain(number: int, run: str, sent: float, body_s: float) -> dict[str, Any]:
    """Wait for so long."""
    time.sleep(body_s)
    return RESULT


@app.task(base=IdempotentTask, name="loads.guarded", idempotency_key="order:{run}-{number}")
def guarded(number: int, run: str, sent: float, body_s: float) -> dict[str, Any]:
    """Wait for so long, once."""
    time.sleep(body_s)
    return RESULT


@app.task(base=IdempotentTask, name="loads.lasts", idempotency_key="lasts:{run}")
def lasts(number: int, run: str, sent: float, body_s: float) -> dict[str, Any]:
    """Take as long as until somebody says that it is over, and ``body_s`` at most."""
    notes = _notes(os.getpid())
    notes.rpush(f"began:{run}", 1)
    until = time.monotonic() + body_s
    # For a second each: a client may wait for no answer longer than for some.
    while not notes.blpop(f"over:{run}", 1) and time.monotonic() < until:
        pass
    return RESULT
