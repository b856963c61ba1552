"""How a worker takes the messages of our tasks: those that wait for a key are held for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from celery.utils.log import get_logger
from celery.worker.strategy import default

from celery_idempotent.errors import ConfigurationError
from celery_idempotent.worker.waiters import Waiters, waiters_of

log = get_logger("celery_idempotent")


def strategy(task: Any, app: Any, consumer: Any, **options: Any) -> Any:
    """As Celery's default one, for the messages of one task; a consumer asks when it connects.

    A message that comes with an ETA because it waits for a key is held by :class:`.Waiters`. It
    takes no token of the task's ``rate_limit``: it took one when it first came.
    """
    try:
        waiters = waiters_of(consumer)
    except ConfigurationError:
        return default(task, app, consumer, **options)  # no key will be asked for
    waiters.connect()
    return default(task, app, _Consumer(consumer, waiters), **options)


class _Consumer:
    """Celery's consumer, with a timer that knows which messages wait."""

    def __init__(self, consumer: Any, waiters: Waiters) -> None:
        self._consumer = consumer
        self._waiters = waiters
        # All that a strategy asks of a timer.
        self.timer = SimpleNamespace(call_at=self._call_at)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def _call_at(self, eta: float, fun: Any, args: tuple[Any, ...], **options: Any) -> Any:
        """As Celery's timer's; ``args`` begin with the request."""
        try:
            entry = self._waiters.hold(args[0], eta)
        except Exception:
            # What is wrong with the message is said where its task runs.
            log.debug("this message is not known to wait", exc_info=True)
            entry = None
        if entry is not None:
            return entry
        return self._consumer.timer.call_at(eta, fun, args, **options)
