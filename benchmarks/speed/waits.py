"""The tasks of the measurement of waiting: one sleeps, and all note when they are answered."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any

import redis
from celery import Celery, signals

from celery_idempotent import IdempotentTask

__all__ = ["app"]

_URL = os.environ.get("SPEED_URL", "redis://127.0.0.1:1")

app = Celery("waits", broker=f"{_URL}/0", backend=f"{_URL}/1")
app.conf.update(
    idempotency_store_url=os.environ.get("SPEED_STORE", f"{_URL}/2"),
    broker_connection_retry_on_startup=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
)


@cache
def _notes(pid: int) -> Any:
    return redis.Redis.from_url(f"{_URL}/3")


@signals.task_prerun.connect(weak=False)
def _count(task: Any = None, args: Any = (), **_: Any) -> None:
    if task.name == "waits.sleeps":
        _notes(os.getpid()).incr(f"delivered:{args[0]}")


@signals.task_success.connect(weak=False)
def _answered(sender: Any = None, **_: Any) -> None:
    _notes(os.getpid()).rpush(f"answered:{sender.request.args[0]}", time.time())


@app.task(base=IdempotentTask, name="waits.sleeps", idempotency_key="{name}")
def sleeps(name: str, run_s: float) -> int:
    """Take so long, once."""
    notes = _notes(os.getpid())
    notes.rpush(f"began:{name}", 1)
    time.sleep(run_s)
    notes.set(f"ended:{name}", time.time())
    return 1


@app.task(name="waits.notes")
def notes(name: str) -> int:
    """Do nothing."""
    return 1
