"""What every shop has: its ledger, an app on the private server, and what its workers note."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, signals

from benchmarks.playing.ledger import Ledger

__all__ = ["VISIBILITY_S", "ledger", "make_app"]

#: Seconds after which the broker delivers a message again that was not acked.
VISIBILITY_S = 4

ledger = Ledger(os.environ.get("PLAYED_LEDGER", "."))


def make_app(name: str, *, redelivers: bool = True) -> Celery:
    """Make a Celery app on the private server that the environment names.

    Args:
        name: its name.
        redelivers: whether the broker delivers unacked messages again after :data:`VISIBILITY_S`,
            and not after an hour.
    """
    url = os.environ.get("PLAYED_SERVER_URL", "redis://127.0.0.1:1")
    app = Celery(name, broker=f"{url}/0", backend=f"{url}/1")
    app.conf.update(
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        broker_transport_options={"visibility_timeout": 3600},
    )
    if redelivers:
        # Messages whose time is over are looked for every second, and not every 100 s.
        app.conf.broker_transport_options = {
            "visibility_timeout": VISIBILITY_S,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        }
    return app


def _note_worker(**_: Any) -> None:
    ledger.write("ready", worker_pid=os.getpid())


def _note_delivery(request: Any = None, **_: Any) -> None:
    redelivered = bool((request.delivery_info or {}).get("redelivered"))
    ledger.write("received", task_id=request.id, redelivered=redelivered)


signals.worker_ready.connect(_note_worker)
signals.task_received.connect(_note_delivery)
