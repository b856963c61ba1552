"""Help for tests: of your own tasks (deliveries, crashes), and of stores (their contract).

What is here for tests of your own tasks needs no broker, no worker and no Redis::

    from celery_idempotent.testing import crash_points, deliver

With pytest there is the fixture ``idempotent_store`` as well, without an import.
"""

from celery_idempotent.testing.crashes import Crash, crash_points
from celery_idempotent.testing.deliveries import Delivered, Message, deliver
from celery_idempotent.testing.memory import MovableStore, memory_store

__all__ = [
    "Crash",
    "Delivered",
    "Message",
    "MovableStore",
    "crash_points",
    "deliver",
    "memory_store",
]
