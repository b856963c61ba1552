"""Help for tests: of your own tasks (deliveries, crashes), and of stores (their contract).

What is here for tests of your own tasks needs no broker, no worker and no Redis::

    from celery_idempotent.testing import crash_points, deliver

With pytest there is the fixture ``idempotent_store`` as well, without an import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_HOMES = {
    "Crash": "crashes",
    "crash_points": "crashes",
    "Delivered": "deliveries",
    "Message": "deliveries",
    "deliver": "deliveries",
    "MovableStore": "memory",
    "memory_store": "memory",
}


def __getattr__(name: str) -> object:
    # The plugin is loaded by every pytest run: Celery is imported when something is asked for.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
