"""Tasks that loop over many items, with checkpoints, and can be killed in the middle."""

from __future__ import annotations

import os
import random
import signal
import struct
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from celery import Celery
from sqlalchemy import insert

from celery_idempotent import IdempotentTask
from tests.support.bookings import bookings
from tests.support.ledger import Ledger

_ITEM = struct.Struct(">I")


class Items:
    """What loops have done, in order: one number an item, in a file that survives each kill."""

    def __init__(self, ledger: Ledger) -> None:
        self.path = Path(f"{ledger.path}.items")

    def opened(self) -> int:
        """Open the file, to append to it."""
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def done(self) -> list[int]:
        """Return the items."""
        return [number for (number,) in _ITEM.iter_unpack(self.path.read_bytes())]

    def counted(self) -> Counter[int]:
        """Return how often each item was done."""
        return Counter(self.done())


def _die_soon(seconds: float) -> None:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


def define(app: Celery, ledger: Ledger) -> None:
    """Add the tasks to an app."""
    options: dict[str, dict[str, Any]] = app.conf.get("test_options", {})

    def task(name: str) -> Any:
        return app.task(
            name=name, bind=True, base=IdempotentTask, shared=False, **options.get(name, {})
        )

    def begin(self: Any, kills: int) -> None:
        attempt = 1 + ledger.count("start", id=self.request.id)
        ledger.write("start", id=self.request.id, interrupted=self.idempotency.interrupted)
        if attempt <= kills:
            _die_soon(random.Random(attempt).uniform(0, 0.01))

    @task("shop.export")
    def export(
        self: Any, count: int, every: int, kills: int = 0, gate: str = "", gate_at: int = -1
    ) -> int:
        """Do each item once; the first ``kills`` runs are killed at a random moment."""
        begin(self, kills)
        file = Items(ledger).opened()
        for item in self.idempotency.resume("items", range(count), every=every):
            os.write(file, _ITEM.pack(item))
            if item == gate_at:
                ledger.write("at the gate")
                ledger.hold(gate)
        os.close(file)
        ledger.write("end", id=self.request.id)
        return count

    @task("shop.export_rows")
    def export_rows(self: Any, count: int, every: int, kills: int = 0) -> int:
        """Do the same in the store's own database."""
        begin(self, kills)
        session = self.idempotency.session
        for item in self.idempotency.resume("items", range(count), every=every):
            session.execute(insert(bookings).values(order_id=item, task_id=self.request.id))
        ledger.write("end", id=self.request.id)
        return count
