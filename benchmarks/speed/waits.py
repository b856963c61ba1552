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


#: When this worker took which message to hold it, in the worker's parent.
_taken: list[tuple[float, str]] = []


@signals.task_received.connect(weak=False)
def _take(request: Any = None, **_: Any) -> None:
    if request.task_name == "waits.tells":
        notes = _notes(os.getpid())
        for at, task_id in _taken:
            notes.rpush(f"taken:{request.args[0]}", f"{at} {task_id}")
        notes.rpush(f"told:{request.args[0]}", 1)
        _taken.clear()
    elif request.eta:
        _taken.append((time.time(), request.id))


@signals.task_success.connect(weak=False)
def _answered(sender: Any = None, **_: Any) -> None:
    request = sender.request
    if sender.name not in ("waits.sleeps", "waits.notes"):
        return
    _notes(os.getpid()).rpush(f"answered:{request.args[0]}", f"{time.time()} {request.id}")


@app.task(base=IdempotentTask, name="waits.sleeps", idempotency_key="{name}")
def sleeps(name: str, run_s: float) -> int:
    """Take so long, once."""
    notes = _notes(os.getpid())
    notes.rpush(f"began:{name}", 1)
    time.sleep(run_s)
    notes.set(f"ended:{name}", time.time())
    return 1


@app.task(name="waits.tells")
def tells(name: str) -> None:
    """Have the worker's parent tell when it took which message."""


@app.task(name="waits.blocks")
def blocks(name: str, until: float) -> None:
    """Keep a process of the pool busy until then."""
    _notes(os.getpid()).rpush(f"blocked:{name}", 1)
    time.sleep(max(0.0, until - time.time()))


@app.task(name="waits.notes")
def notes(name: str) -> int:
    """Do nothing."""
    return 1
