"""How Celery's consumer takes the messages of our tasks: which of them a rate limit slows down."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar
from uuid import uuid4
from weakref import WeakSet

import pytest
from celery import Celery
from celery.concurrency.solo import TaskPool
from celery.worker import state
from celery.worker.consumer import Consumer
from kombu import Message
from kombu.asynchronous.timer import Timer

from celery_idempotent import IdempotentTask
from celery_idempotent.core.keys import record_key
from celery_idempotent.core.message import OWN, WaitState, own_header
from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import NEVER_MS
from celery_idempotent.settings import environment_of
from celery_idempotent.worker import waiters
from celery_idempotent.worker.listening import Sight
from celery_idempotent.worker.waiters import Waiters, waiters_of

NOW_MS = 1_750_000_000_000
FREE = Record(State.RELEASED, NOW_MS * 1000)
WAITS_FOR_A_KEY = WaitState(count=1, since_ms=NOW_MS, awaited=("first", 0))
WAITS_FOR_THE_STORE = WaitState(count=1, since_ms=NOW_MS, patient_until_ms=NEVER_MS)


class Unconnected(Consumer):  # type: ignore[misc]
    """Celery's consumer, without the steps that connect it."""

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        """No steps."""

        default_steps: ClassVar[list[str]] = []

    event_dispatcher = connection = None


class Shop:
    """Celery's own consumer, and a task of which one in an hour may begin."""

    def __init__(self) -> None:
        self.app = Celery(f"strategy-{uuid4().hex}", broker="memory://", set_as_current=False)
        self.app.conf.idempotency_store_url = f"memory://{uuid4().hex}"

        @self.app.task(
            base=IdempotentTask, idempotency_key="{order}", rate_limit="1/h", shared=False
        )
        def charge(order: int) -> None:
            """Do nothing."""

        self.task: Any = self.app.tasks[charge.name]
        self.key = self.task._setup().scheme.derive((1,), {}, task_id="", explicit=None)
        self.gone: list[str] = []
        self.consumer = Unconnected(
            lambda request: self.gone.append(request.id),
            hostname="here",
            pool=TaskPool(app=self.app),
            app=self.app,
            timer=Timer(),
            controller=SimpleNamespace(state=state),
        )
        self.consumer.qos = SimpleNamespace(
            increment_eventually=lambda: None, decrement_eventually=lambda: None
        )
        self.waiters: Waiters = waiters_of(self.consumer)
        self.waiters._listener = SimpleNamespace(  # type: ignore[assignment]
            watch=lambda key, _: None, unwatch=lambda key: None, sights=deque()
        )
        self.take = self.task.start_strategy(self.app, self.consumer)

    def comes(self, name: str, waits: WaitState | None = None, **options: Any) -> None:
        """Let a message come; one that waits has the header of those that were put back."""
        made = self.app.amqp.as_task_v2(name, self.task.name, (1,), **options)
        headers = dict(made.headers)
        if waits is not None:
            headers[OWN] = own_header(name, self.key, waits)
        message = Message(made.body, headers=headers, properties=made.properties, delivery_info={})
        body = message.body = ([1], {}, {})
        message._decoded_cache = body
        message.content_type, message.content_encoding = "application/json", "utf-8"
        self.take(message, None, lambda *_: None, lambda *_: None, [])

    def freed(self) -> None:
        """Let the listener have seen the key free."""
        record = record_key(environment_of(self.app).prefix, self.key)
        self.waiters._listener.sights.append(Sight(record, FREE, NOW_MS, 0.0, True))
        self.waiters._take()

    def due(self) -> None:
        """Let everything in Celery's timer be due now."""
        for scheduled in list(self.consumer.timer.queue):
            scheduled.entry()


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop whose one token of this hour is taken."""
    # What this worker holds is not told to the tests that come after it in this process.
    monkeypatch.setattr(waiters, "_all", WeakSet())
    made = Shop()
    made.comes("first")
    made.comes("second")
    assert made.gone == ["first"]
    return made


def test_one_that_waits_for_a_key_takes_no_token_when_it_is_let_in(shop: Shop) -> None:
    """It took one when it first came."""
    # When
    shop.comes("duplicate", WAITS_FOR_A_KEY, countdown=600)
    shop.freed()
    # Then
    assert shop.gone == ["first", "duplicate"]


@pytest.mark.parametrize("waits", [WAITS_FOR_A_KEY, WAITS_FOR_THE_STORE], ids=["key", "store"])
def test_one_that_waits_takes_no_token_when_it_is_due(shop: Shop, waits: WaitState) -> None:
    """Nothing was seen of its key, or it waits for the store, which tells nothing."""
    # Given
    shop.comes("duplicate", waits, countdown=600)
    for waiter in shop.waiters.everyone():
        waiter.since = waiter.limit = 0.0
    # When
    shop.due()
    # Then
    assert shop.gone == ["first", "duplicate"]


def test_a_retry_takes_a_token_as_it_does_without_us(shop: Shop) -> None:
    """It comes with an ETA too, and is another attempt."""
    # When
    shop.comes("retry", countdown=600, retries=1)
    shop.due()
    # Then
    assert shop.gone == ["first"]


def test_switched_off_no_key_is_waited_for(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message goes to the pool when it is due, as Celery's do, and the store is left alone."""
    # Given
    setup = shop.task._setup()
    off = replace(setup, options=replace(setup.options, mode="off"))
    monkeypatch.setattr(shop.task, "_setup", lambda: off)
    # When
    shop.comes("duplicate", WAITS_FOR_A_KEY, countdown=600)
    # Then
    assert not shop.waiters.everyone()
    assert "duplicate" not in shop.gone
    shop.due()
    assert "duplicate" in shop.gone
