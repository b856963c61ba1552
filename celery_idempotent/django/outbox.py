"""The outbox on the ORM: calls that are sent if, and only if, their transaction commits.

::

    with transaction.atomic():
        order = Order.objects.create(...)
        outbox.publish(charge.s(order.pk, order.amount))

``manage.py idempotency relay`` sends them. A row's task id is its message's: a row that is sent
twice, by a relay that was killed between sending and deleting it, is one call of an
``IdempotentTask``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event
from typing import Any, Final

from celery.utils.log import get_logger
from django.db import Error, connections, transaction
from django.utils import timezone
from kombu.exceptions import OperationalError

from celery_idempotent.django import models
from celery_idempotent.outbox.message import Message

__all__ = ["Relay", "publish"]

log = get_logger("celery_idempotent")

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_LONGEST_ERROR: Final = 2000


def publish(signature: Any, *, using: str = "default") -> Any:
    """Publish a task's call if the transaction that is under way commits, and only then.

    Args:
        signature: ``task.s(...)``, with what ``.set(...)`` gave it: queue, countdown, eta,
            expires, priority, headers, link, ``idempotency_key``, ... A countdown counts from now.
        using: which of ``DATABASES``.

    Returns:
        The call's ``AsyncResult``. Its id is the message's task id.

    Raises:
        TransactionManagementError: there is no transaction, so there is nothing to hold on to.
        ConfigurationError: an ``idempotency_*`` option is none of a call's, or has no effect here.
        KeyDerivationError: its key can't be derived; nothing is written.
        TypeError: it is no signature of one task, its arguments don't fit the task, or they are
            not JSON; nothing is written.
    """
    if not connections[using].in_atomic_block:
        raise transaction.TransactionManagementError(
            "outbox.publish() belongs in transaction.atomic(), with the data that the task is "
            "about; elsewhere task.delay() does"
        )
    message = Message.of(signature)
    models.Message._base_manager.using(using).create(
        task_id=message.task_id, task=message.task, message=message.to_json()
    )
    return signature.app.AsyncResult(message.task_id)


class Relay:
    """Sends what is committed, in the order in which it was written.

    Several may run at once on PostgreSQL, without order among them; on SQLite let one run.

    Args:
        app: the Celery app.
        using: which of ``DATABASES``.
        batch: rows that are sent between two commits.
        interval: seconds to wait where nothing is left to send.
    """

    def __init__(
        self, app: Any, *, using: str = "default", batch: int = 100, interval: float = 1.0
    ) -> None:
        self._app = app
        self._using = using
        self._batch = batch
        self._interval = interval
        self._stopped = Event()
        self.sent = 0

    def stop(self) -> None:
        """End after the batch that is under way."""
        self._stopped.set()

    def run(self) -> None:
        """Send until :meth:`stop` is called; broker and database may come and go."""
        pause = _FIRST_PAUSE_S
        while not self._stopped.is_set():
            try:
                if self._send_batch() < self._batch:
                    self._stopped.wait(self._interval)
                pause = _FIRST_PAUSE_S
            except (OperationalError, Error, OSError) as exc:
                log.warning("relay: %s; trying again in %g s", exc, pause)
                connections[self._using].close()
                self._stopped.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def once(self) -> int:
        """Send what is there now; how many were sent.

        Raises:
            OperationalError: the broker is away; what was not sent stays where it is.
        """
        before = self.sent
        while self._send_batch() == self._batch:
            pass
        return self.sent - before

    def _send_batch(self) -> int:
        with self._taken() as rows, self._app.producer_or_acquire() as producer:
            for row in rows:
                try:
                    message = Message.from_row(row.task_id, row.task, row.message)
                    message.send(self._app, producer)
                except (OperationalError, OSError):
                    raise
                except Exception as exc:
                    self._put_off(row, exc)
                else:
                    row.delete()
                    self.sent += 1
            return len(rows)

    @contextmanager
    def _taken(self) -> Iterator[list[Any]]:
        """Take the next rows; a relay that is killed leaves them to the next."""
        rows = models.Message._base_manager.using(self._using)
        rows = rows.filter(due__lte=timezone.now()).order_by("id")
        if connections[self._using].vendor == "sqlite":
            # No transaction while it is sent: it would keep the project from writing.
            yield list(rows[: self._batch])
            return
        with _committed(self._using):
            yield list(rows.select_for_update(skip_locked=True)[: self._batch])

    def _put_off(self, row: Any, exc: Exception) -> None:
        """Try it again later, and have the others go on: it fails for a reason of its own."""
        log.error("relay: %s %s can't be sent: %s", row.task, row.task_id, exc)
        pause = min(_FIRST_PAUSE_S * 2.0**row.attempts, _LONGEST_PAUSE_S)
        row.attempts += 1
        row.error = str(exc)[:_LONGEST_ERROR]
        row.due = timezone.now() + timedelta(seconds=pause)
        row.save(using=self._using)


@contextmanager
def _committed(using: str) -> Iterator[None]:
    """A transaction that is committed even where the broker goes away: what was sent is deleted."""
    raised: Exception | None = None
    with transaction.atomic(using=using):
        try:
            yield
        except (OperationalError, OSError) as exc:
            raised = exc
    if raised is not None:
        raise raised
