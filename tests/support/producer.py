"""A producer in a process of its own, which is killed at a point of one call's publication.

``python -m tests.support.producer POINT TASK ARGUMENTS-AS-JSON``: see :data:`POINTS`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from celery_idempotent.settings import environment_of
from tests.support.tasks import SETTINGS_VARIABLE, make_app
from tests.support.workers import ROOT

#: Where it dies: before it has reserved the key, before and after it has published, and at the end.
POINTS = ("before the reservation", "reserved", "published", "confirmed")


def publish_and_die(settings: dict[str, Any], point: str, task: str, *args: Any) -> None:
    """Have a process publish a call of ``shop.<task>``, and return once it was killed."""
    environment = {**os.environ, SETTINGS_VARIABLE: json.dumps(settings), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.support.producer", point, task, json.dumps(args)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _main(point: str, task: str, args: str) -> None:
    app = make_app(json.loads(os.environ[SETTINGS_VARIABLE]))
    store: Any = environment_of(app).store

    def dying(do: Callable[..., Any], at: str, *, before: bool = False) -> Callable[..., Any]:
        def wrapped(*a: Any, **k: Any) -> Any:
            if before and point == at:
                _die()
            answer = do(*a, **k)
            if not before and point == at:
                _die()
            return answer

        return wrapped

    store.reserve = dying(dying(store.reserve, POINTS[0], before=True), POINTS[1])
    app.amqp.send_task_message = dying(app.amqp.send_task_message, POINTS[2])
    store.confirm = dying(store.confirm, POINTS[3])
    app.tasks[f"shop.{task}"].delay(*json.loads(args))


if __name__ == "__main__":
    _main(*sys.argv[1:])
