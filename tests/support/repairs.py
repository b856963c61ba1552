"""A task that fails until it is mended, and a command that is killed while it repairs its call."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.ops import settle
from celery_idempotent.settings import environment_of
from tests.support.ledger import Ledger

__all__ = ["KILLED_AT", "POINTS", "STEPS", "define"]

STEPS = ("reserve", "charge", "mail")
#: Where a process kills itself in a repair, by an environment variable: before the message is sent,
#: behind that and before the store's operation, and behind that.
KILLED_AT = "CELERY_IDEMPOTENT_TEST_KILLED_AT"
POINTS = ("before the broker", "between", "behind the store")


def define(app: Celery, ledger: Ledger) -> None:
    """Add the task to an app, and have this process killed where its environment says so."""

    options = {"name": "shop.ship", "idempotency_key": "order:{order}", "shared": False}

    @app.task(base=IdempotentTask, bind=True, **options)
    def ship(self: Any, order: int) -> str:
        ledger.write("start", key=order, id=self.request.id)
        for step in STEPS:
            self.idempotency.step(step, ledger.write, "effect", key=order, step=step)
        if not ledger.is_open("mended"):
            raise ValueError("what is shipped is wrong")
        ledger.write("end", key=order, id=self.request.id)
        return "shipped"

    point = os.environ.get(KILLED_AT)
    if point == "behind the store":
        kind = type(environment_of(app).store)
        kind.rewind = _killed(kind.rewind, first=False)  # type: ignore[method-assign]
    elif point is not None:
        settle.publish = _killed(settle.publish, first=point == "before the broker")


def _killed(do: Callable[..., Any], *, first: bool) -> Callable[..., Any]:
    def killed(*args: Any, **kwargs: Any) -> Any:
        if not first:
            do(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    return killed
