"""Answers that the result backend does not take now: the message comes again, and tells its answer.

Celery acknowledges the message then, and the caller waits for ever; or it stores a failure, as soon
as the backend is back.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

from billiard.process import current_process
from celery.exceptions import Ignore, Reject
from celery.states import READY_STATES
from celery.utils.log import get_logger
from kombu.exceptions import EncodeError, OperationalError

from celery_idempotent.delivery.callbacks import Untold
from celery_idempotent.delivery.delivery import Delivery, ignores_result
from celery_idempotent.delivery.waiting import wait_as_copy

log = get_logger("celery_idempotent")

#: What is raised for a result that no serializer takes, and for a chord or callbacks that are none.
_MALFORMED: Final = (EncodeError, TypeError, ValueError, LookupError, AttributeError)
#: After so many waits, a result that the backend refuses though it answers is refused for good.
_TRIES: Final = 5
#: The signal of a soft time limit, where there is one.
_SOFT_LIMIT: Final = getattr(signal, "SIGUSR1", None)
#: Signals by which a pool has something raised in a process, wherever that is.
_CUTTING: Final = [
    getattr(signal, name) for name in ("SIGTERM", "SIGQUIT", "SIGUSR1") if hasattr(signal, name)
]


class AnsweringBackend:
    """The result backend of a delivery whose answer the store keeps for the message's next one.

    Args:
        backend: the task's.
    """

    def __init__(self, backend: Any, delivery: Delivery) -> None:
        self._backend = backend
        self._delivery = delivery

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def mark_as_done(self, *args: Any, **kwargs: Any) -> Any:
        """As the backend's.

        Raises:
            Untold: the message comes again.
        """
        try:
            with self._uncut():
                return self._backend.mark_as_done(*args, **kwargs)
        except Exception as exc:
            # Link and chain were sent before. A part of a chord is counted with its answer.
            self._come_again(exc, sent=not self._delivery.request.chord)
            raise

    def mark_as_failure(self, *args: Any, **kwargs: Any) -> Any:
        """As the backend's.

        Raises:
            Untold: the message comes again.
        """
        try:
            with self._uncut():
                return self._backend.mark_as_failure(*args, **kwargs)
        except Exception as exc:
            self._come_again(exc, failed=True)
            raise

    def _uncut(self) -> Any:
        """Let a part of a chord be counted to the end, whatever signal comes meanwhile.

        Whoever counts the last part publishes the chord's body. If that is cut off, nobody does.
        """
        return _signals_later() if self._delivery.request.chord else nullcontext()

    def _come_again(self, exc: Exception, *, sent: bool = False, failed: bool = False) -> None:
        delivery = self._delivery
        if not self._may_pass(exc, failed=failed):
            return
        log.warning(
            "%s[%s] has its answer, and could not tell it; its message comes again: %r",
            delivery.name,
            delivery.request.id,
            exc,
        )
        try:
            wait_as_copy(delivery, None)
        except (Ignore, Reject) as left:
            raise Untold(left, sent=sent) from exc

    def _may_pass(self, exc: Exception, *, failed: bool) -> bool:
        """Whether another delivery may be able to tell the answer."""
        delivery, request, waits = self._delivery, self._delivery.request, self._delivery.waits
        if isinstance(exc, _MALFORMED):
            return False  # as in plain Celery, whenever it is told
        if isinstance(exc, OperationalError):
            return True  # the broker is away, to which errbacks or results go
        try:
            is_stored = self._backend.get_state(request.id) in READY_STATES
        except Exception:
            return True
        is_early = not waits.redelivery or waits.count < _TRIES
        if is_stored or ignores_result(delivery.task, request):
            return is_early and bool(request.chord)
        return is_early or failed  # where a failure is refused, too, there is no other answer


@contextmanager
def _signals_later() -> Iterator[None]:
    """Have what cuts off a process of a pool wait; a soft time limit is too late by then.

    Greenlets and threads are not ended by signals.
    """
    if not current_process().daemon or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in _CUTTING}
    for number in handlers:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            if number != _SOFT_LIMIT and callable(handlers[number]):
                handlers[number](number, None)
