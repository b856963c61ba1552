"""An app whose published messages a test can see, and its store, whose clock a test can move."""

from functools import partial

import pytest
from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.stores.memory import MemoryStore


class Clock:
    def __init__(self):
        self.us = 1_795_000_000_000_000

    def __call__(self):
        return self.us


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return MemoryStore(clock)


@pytest.fixture
def app(request, store, monkeypatch):
    app = Celery(f"enqueue-{id(request)}", broker="memory://", backend="cache+memory://")
    app.conf.update(idempotency_store_url="memory://", task_default_queue=f"q{id(request)}")
    app.task = partial(app.task, shared=False)
    monkeypatch.setattr("celery_idempotent.settings.store_from_url", lambda url, options: store)
    return app


@pytest.fixture
def published(app, monkeypatch):
    """The messages that were published, as (name, task id, headers)."""
    sent = []
    original = app.amqp.send_task_message

    def send(producer, name, message, **options):
        sent.append((name, message.headers["id"], message.headers))
        return original(producer, name, message, **options)

    monkeypatch.setattr(app.amqp, "send_task_message", send)
    return sent


@pytest.fixture
def charge(app):
    @app.task(
        base=IdempotentTask,
        idempotency_key="order:{order_id}",
        name="charge",
    )
    def charge(order_id, amount=1):
        return amount

    return charge
