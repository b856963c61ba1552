"""The app that a worker and the callers share: the adapter's tasks, and plain ones around them."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from typing import Any

from celery import signals

from benchmarks.graveyard.adapters import Spec, adapter
from benchmarks.playing.shop import ledger, make_app

__all__ = ["TASKS", "adapted", "app", "ledger", "summary", "tail", "tasks"]

#: A retry's delay, and the delay of a task that calls itself again.
SOON_S = 1.5
#: No body waits longer for what lets it go on.
PATIENCE_S = 60.0

#: The tasks of the suite, with Celery's own options for each.
TASKS: dict[str, tuple[Spec, dict[str, Any]]] = {
    "lock": (Spec("lock"), {}),
    "lock_all": (Spec("lock", by="all"), {}),
    "lock_auto": (
        Spec("lock", by="all"),
        {"autoretry_for": (ValueError,), "default_retry_delay": SOON_S, "max_retries": 3},
    ),
    "lock_early": (Spec("lock", early=True), {}),
    "lock_late": (Spec("lock"), {"acks_late": True, "reject_on_worker_lost": True}),
    "lock_short": (Spec("lock", seconds=2), {}),
    "turn": (Spec("turn"), {}),
    "window": (Spec("window"), {}),
    "window_late": (Spec("window"), {"acks_late": True, "reject_on_worker_lost": True}),
    "window_short": (Spec("window", seconds=4), {}),
}

adapted = adapter(os.environ.get("GRAVEYARD_LIBRARY", "idempotent"))


def script(order: str) -> dict[str, Any]:
    """What the bodies of an order are to do, as the situation wrote it."""
    path = ledger.directory / f"script-{order}"
    return json.loads(path.read_text()) if path.exists() else {}


def body(self: Any, order: Any, data: Any = None) -> str:
    """Charge an order once for each run; the answer names the run that charged it."""
    run_id = uuid.uuid4().hex
    fields = {"order_id": str(order), "run_id": run_id}
    ledger.begin(task_id=self.request.id, **fields)
    number = len(ledger.runs(str(order)))
    plan = script(str(order))
    try:
        deadline = time.monotonic() + PATIENCE_S
        holds = (f"hold-{order}", f"hold-{order}-{number}")
        while any(map(ledger.is_on, holds)) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(plan.get("work", 0.0))
        if number <= plan.get("dies", 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if number <= plan.get("retries", 0):
            raise self.retry(countdown=SOON_S, max_retries=5)
        if number <= plan.get("fails", 0):
            raise ValueError("declined")
        ledger.write("charge", amount=1, **fields)
        if number <= plan.get("again", 0):
            self.apply_async((order,), countdown=SOON_S)
        return run_id
    finally:
        ledger.write("end", **fields)


def _make_tasks() -> dict[str, Any]:
    made = {}
    for name, (spec, options) in TASKS.items():
        needs = {spec.kind} | ({"early"} if spec.early else set())
        if needs <= adapted.claims:
            made[name] = adapted.task(app, f"graveyard.{name}", body, spec, **options)
    return made


app = make_app("graveyard")
adapted.configure(app)
tasks = _make_tasks()


def _tail(order: str) -> str:
    """What follows in a chain."""
    ledger.write("tail", order_id=order)
    return order


def _summary(parts: list[Any], order: str) -> int:
    """The body of a chord: how many parts it got."""
    ledger.write("summed", order_id=order, parts=parts)
    return len(parts)


def _note_execution(task_id: str, **_: Any) -> None:
    ledger.write("executing", task_id=task_id)


tail: Any = app.task(name="graveyard.tail")(_tail)
summary: Any = app.task(name="graveyard.summary")(_summary)
signals.task_prerun.connect(_note_execution)
