"""The outbox on the ORM: calls that are sent if, and only if, their transaction commits.

::

    with transaction.atomic():
        order = Order.objects.create(...)
        outbox.publish(charge.s(order.pk, order.amount))

``manage.py idempotency relay`` sends them. Each row's task id is that of its message: a row that is
sent twice, by a relay that was killed between sending and deleting it, is one call of an
``IdempotentTask``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

from django.db import Error, NotSupportedError, connections, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.db.utils import ConnectionDoesNotExist

from celery_idempotent.django import models
from celery_idempotent.django.tenants import with_schema
from celery_idempotent.errors import ConfigurationError
from celery_idempotent.outbox.message import PendingCall
from celery_idempotent.outbox.relay import OutboxRelay
from celery_idempotent.outbox.waiting import Backlog, DatabaseAway, Failure, Outbox

__all__ = ["DjangoOutbox", "Relay", "publish"]


def publish(signature: Any, *, using: str = "default") -> Any:
    """Publish a task's call if, and only if, the current transaction commits.

    Args:
        signature: ``task.s(...)``, with the options of its ``.set(...)``: queue, countdown, eta,
            expires, priority, headers, link, ``idempotency_key``, ... A countdown begins now.
        using: the alias of the database.

    Returns:
        The call's ``AsyncResult``. Its id is the message's task id.

    Raises:
        TransactionManagementError: no transaction is under way.
        ConfigurationError: a call can't have this ``idempotency_*`` option, or it has no effect.
        KeyDerivationError: its key can't be derived; nothing is written.
        TypeError: it is not the signature of one task, or its arguments don't fit the task or can't
            be written as JSON; nothing is written.
    """
    if not connections[using].in_atomic_block:
        raise transaction.TransactionManagementError(
            "outbox.publish() belongs in transaction.atomic(), with the data that the task is "
            "about; elsewhere task.delay() does"
        )
    call = PendingCall.of(signature)
    with_schema(call.options)
    # By the database's clock, which the relay uses, too.
    row = models.Message(
        task_id=call.task_id,
        task=call.task,
        message=call.to_json(),
        created=Now(),
        due=Now(),
    )
    rows = models.Message._base_manager.using(using)
    rows.bulk_create([row], ignore_conflicts=call.is_of_request)
    return call.published(signature.app)


class DjangoOutbox(Outbox):
    """An outbox that the ORM reads."""

    def __init__(self, using: str) -> None:
        where = f"DATABASES[{using!r}]"
        try:
            connection = connections[using]
        except ConnectionDoesNotExist as exc:
            raise ConfigurationError(f"there is no {where} for the outbox") from exc
        super().__init__(
            where,
            one_writer=connection.vendor == "sqlite",
            database=connection.settings_dict["NAME"],
        )
        self.using = using

    @property
    def _rows(self) -> Any:
        return models.Message._base_manager.using(self.using)

    def _connect(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _begin(self) -> AbstractContextManager[None]:
        atomic: AbstractContextManager[None] = transaction.atomic(using=self.using)
        return atomic

    def _due(self, _: None, most: int, *, lock: bool) -> Sequence[models.Message]:
        rows = self._rows.select_for_update(skip_locked=True) if lock else self._rows
        rows = rows.filter(due__lte=Now()).order_by("id")[:most]
        connection = connections[self.using]
        if connection.vendor == "mysql":
            # Sorting would lock every due row, and leave none for another relay.
            sql, values = rows.query.get_compiler(self.using).as_sql()
            table = f"FROM {connection.ops.quote_name(models.Message._meta.db_table)}"
            sql = sql.replace(table, f"{table} FORCE INDEX (PRIMARY)", 1)
            rows = models.Message._base_manager.using(self.using).raw(sql, values)
        return list(rows)

    def _write(self, _: None, sent: Sequence[int], failed: Sequence[Failure]) -> None:
        if sent:
            self._rows.filter(pk__in=sent).delete()
        for one in failed:
            self._rows.filter(pk=one.row_id).update(
                attempts=F("attempts") + 1,
                error=one.why,
                due=Now() + timedelta(seconds=one.pause_s),
            )

    def _count(self, _: None) -> Backlog:
        oldest = self._rows.order_by("created").annotate(now=Now())
        found = oldest.values_list("created", "now").first()
        failing = self._rows.filter(attempts__gt=0).order_by("-due")
        error = failing.values_list("error", flat=True).first()
        lag = 0.0 if found is None else max(0.0, (found[1] - found[0]).total_seconds())
        return Backlog(self._rows.count(), lag, failing.count(), error)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        connection = connections[self.using]
        try:
            yield
        except NotSupportedError as exc:
            raise self._no_skip_locked(exc) from exc
        except Error as exc:
            if not connection.in_atomic_block:
                connection.close()
            if self._has_no_table(exc):
                raise ConfigurationError(
                    f"there is no table {models.Message._meta.db_table} in {self.where}: make it "
                    f"with manage.py migrate --database {self.using}"
                ) from exc
            raise DatabaseAway(str(exc)) from exc

    @staticmethod
    def _has_no_table(exc: Error) -> bool:
        cause: Any = exc.__cause__
        code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
        number = cause.args[0] if cause is not None and cause.args else None
        return code in ("42P01", "3F000") or number == 1146 or "no such table" in str(exc)


class Relay(OutboxRelay):
    """Sends the rows of one outbox.

    Several relays may run at once: each row is sent by one of them. One relay alone sends rows in
    the order in which they were committed. On SQLite one relay works, and the others stand by.

    Args:
        app: the Celery app, whose broker gets the messages.
        using: the alias of the database with the outbox's table.
        batch: how many rows are sent between two commits.
        interval: how many seconds it waits when nothing is left to send.
    """

    def __init__(
        self, app: Any, *, using: str = "default", batch: int = 100, interval: float = 1.0
    ) -> None:
        super().__init__(app, DjangoOutbox(using), batch=batch, interval=interval)
