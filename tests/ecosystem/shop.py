"""The smallest real app: a few tasks of ours, a few plain ones, and a ledger of what they did."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from typing import Any

from celery import Celery, signals

from celery_idempotent import IdempotentTask
from tests.ecosystem.adapter import Adapter
from tests.support.ledger import Ledger

__all__ = ["VARIABLE", "make_app"]

#: Where a worker finds the row's name, its folder, its server and its settings, as JSON.
VARIABLE = "ECOSYSTEM_ROW"


def make_app(adapter: Adapter, settings: Mapping[str, Any]) -> Celery:
    """Make the app, the package beside it."""
    adapter.prepare()
    app = adapter.make_app()
    app.conf.update(settings)
    ledger = Ledger(adapter.directory / "ledger")
    _define(app, ledger, adapter.base())
    _listen(ledger)
    adapter.install(app, ledger.write)
    return app


def _define(app: Celery, ledger: Ledger, base: type[IdempotentTask]) -> None:
    def began(self: Any, order: int) -> None:
        ledger.write("start", order=order, id=self.request.id)

    def charged(self: Any, order: int) -> dict[str, Any]:
        ledger.write("effect", order=order, id=self.request.id)
        return {"order": order, "receipt": uuid.uuid4().hex}

    @app.task(name="shop.charge", base=base, bind=True, idempotency_key="order:{order}")
    def charge(self: Any, order: int, gate: str | None = None) -> Any:
        """Charge an order, once the gate is open."""
        began(self, order)
        if gate is not None:
            ledger.hold(gate)
        return charged(self, order)

    @app.task(name="shop.flaky", base=base, bind=True, idempotency_key="order:{order}")
    def flaky(self: Any, order: int) -> Any:
        """Ask for a retry, then charge."""
        began(self, order)
        if not self.request.retries:
            raise self.retry(countdown=1)
        return charged(self, order)

    @app.task(name="shop.decline", base=base, bind=True, idempotency_key="order:{order}")
    def decline(self: Any, order: int) -> None:
        """Fail."""
        began(self, order)
        raise ValueError(f"order {order} was declined")

    @app.task(name="shop.total", bind=True)
    def total(self: Any, charges: list[dict[str, Any]]) -> list[str]:
        """The body of a chord."""
        ledger.write("total", id=self.request.id)
        return [charge["receipt"] for charge in charges]

    @app.task(name="shop.tail", bind=True)
    def tail(self: Any, charge: dict[str, Any]) -> str:
        """What follows in a chain."""
        ledger.write("tail", id=self.request.id)
        return str(charge["receipt"])


def _listen(ledger: Ledger) -> None:
    @signals.worker_ready.connect(weak=False)
    def ready(**_: Any) -> None:
        ledger.write("ready")

    @signals.task_postrun.connect(weak=False)
    def finished(task_id: str, task: Any, state: str, **_: Any) -> None:
        ledger.write("finished", id=task_id, name=task.name, state=state)


def row_from_environment() -> dict[str, Any]:
    """Return what the row's first process has written for the others."""
    row: dict[str, Any] = json.loads(os.environ[VARIABLE])
    return row
