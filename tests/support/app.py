"""The module that a worker process loads: its settings and its ledger come from the environment."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import signals

from tests.support import canvas, faults, tracers
from tests.support.ledger import Ledger
from tests.support.tasks import SETTINGS_VARIABLE, make_app

app = make_app(json.loads(os.environ[SETTINGS_VARIABLE]))
_ledger = Ledger(app.conf.test_ledger)
if app.conf.get("test_faults"):
    faults.install(app, _ledger)
if app.conf.get("test_canvas"):
    canvas.install(_ledger)
if app.conf.get("test_tracer"):
    tracers.TRACERS[app.conf.test_tracer]()


@signals.worker_ready.connect
def _note_ready(sender: Any, **_: Any) -> None:
    _ledger.write("ready", node=sender.hostname)


@signals.task_received.connect
def _note_received(request: Any, **_: Any) -> None:
    _ledger.write(
        "received",
        name=request.name,
        id=request.id,
        retries=request.request_dict["retries"],
        redelivered=bool(request.delivery_info.get("redelivered")),
    )


@signals.task_prerun.connect
def _note_executed(task_id: str, task: Any, **_: Any) -> None:
    _ledger.write("executed", name=task.name, id=task_id, retries=task.request.retries)


@signals.task_postrun.connect
def _note_finished(task_id: str, task: Any, state: str, **_: Any) -> None:
    retries = task.request.retries
    _ledger.write("finished", name=task.name, id=task_id, retries=retries, state=state)
