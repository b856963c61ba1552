"""What a typed program may do with the library: checked by mypy --strict, never run."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from celery import Celery
from typing_extensions import assert_type

from celery_idempotent import (
    MESSAGE_ID,
    RERUN,
    UNKNOWN,
    ClaimLost,
    IdempotencyError,
    IdempotentTask,
    Record,
    State,
    StoreUnavailable,
    signals,
)
from celery_idempotent.run.context import RunContext
from celery_idempotent.testing.servers import RedisServer

app = Celery("shop")


class ShopTask(IdempotentTask):
    """An abstract base that sets options for many tasks."""

    abstract = True
    idempotency_ttl = datetime.timedelta(days=7)
    idempotency_lease = 10
    idempotency_on_running = "raise"


class ChargeTask(ShopTask):
    """Every option, in the forms that it may be written in."""

    abstract = True
    idempotency_key = ("order_id", "customer.id")
    idempotency_namespace = "tenant:{tenant_id}"
    idempotency_fingerprint = ("amount",)
    idempotency_redact_key = True
    idempotency_wait_timeout = 0.5
    idempotency_on_interrupted = "unknown"
    idempotency_max_interruptions = 1
    idempotency_store_failures = (ValueError, OSError)
    idempotency_on_store_error = "raise"
    idempotency_max_result_size = 4096
    idempotency_on_enqueue = "attach"
    idempotency_mode = "shadow"

    @staticmethod
    def idempotency_reconcile(order_id: int, amount: int) -> object:
        """Options that are functions may be written as methods."""
        return RERUN if amount else UNKNOWN


class WrongTask(IdempotentTask):
    """A value of another type is an error here, before a worker refuses it."""

    abstract = True
    idempotency_key = 1  # type: ignore[assignment]
    idempotency_lease = "10"  # type: ignore[assignment]
    idempotency_store_failures = ("ValueError",)  # type: ignore[assignment]


class MethodTask(IdempotentTask):
    """A key that is a method, which gets the task first."""

    abstract = True

    def idempotency_key(self, order_id: int, amount: int) -> str | None:
        return f"{self.name}:{order_id}" if amount else None

    idempotency_namespace = staticmethod(str.upper)


def key_of(order_id: int, amount: int) -> str | None:
    """A callable key; None means that this call is not deduplicated."""
    return f"order:{order_id}" if amount else None


def register() -> IdempotentTask:
    """Each way to say what the key is."""

    def charge(self: ShopTask, order_id: int, amount: int) -> str:
        context = self.idempotency
        assert_type(context, RunContext)
        assert_type(context.key, str | None)
        assert_type(context.token, int | None)
        assert_type(context.attempt, int)
        assert_type(context.interrupted, bool)
        assert_type(context.key_for("stripe"), str)
        try:
            context.check()
        except ClaimLost as lost:
            error: IdempotencyError = lost
            raise error from None
        return f"{order_id}:{amount}"

    keys: list[Any] = [("order_id",), "order:{order_id}", key_of, MESSAGE_ID]
    for key in keys:
        app.task(charge, base=ShopTask, bind=True, idempotency_key=key, shared=False)
    task: IdempotentTask = app.tasks["charge"]
    return task


def ask(task: IdempotentTask) -> State | None:
    """What a client may ask."""
    task.apply_async((1, 2), idempotency_key="req-1")
    task.apply_async((1, 2), idempotency_key=None)
    task.apply_async_on_commit((1, 2), idempotency_key="req-1")
    task.delay_on_commit(1, 2)
    task.apply_async(kwargs={"order_id": 1, "amount": 2}, countdown=3)
    assert_type(task.idempotency_key_for(1, amount=2), str | None)
    assert_type(task.forget(1, 2), bool)
    assert_type(task.forget(idempotency_key="req-1"), bool)
    try:
        record = task.idempotency_record(1, 2)
    except StoreUnavailable:
        return None
    assert_type(record, Record | None)
    if record is None:
        return None
    assert_type(record.token, int)
    assert_type(record.owner_id, str | None)
    return record.state


def listen() -> None:
    """A receiver gets one frozen event."""

    def note(sender: object, event: signals.Event, **_: object) -> None:
        fields: Mapping[str, str | None] = {
            "task": event.task,
            "key": event.key,
            "task_id": event.task_id,
            "original_id": event.original_id,
        }
        assert fields

    signals.task_deduplicated.connect(note)


def serve() -> None:
    """A private server for a test."""
    with RedisServer(args=("--appendonly", "yes")) as server:
        assert_type(server.url(2), str)
        assert_type(server.port, int)
        server.restart(empty=True)
