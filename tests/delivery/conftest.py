"""For tests of single deliveries: a store whose clock they move, a task whose runs they write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.core.record import Record
from celery_idempotent.testing.memory import MovableStore, memory_store

#: What one run does: it gets the task and the number of the order.
Body = Callable[[Any, int], Any]


def record_of(store: MovableStore) -> Record:
    """Return the only record there is."""
    (key,) = store.scan("*")
    record = store.get(key)
    assert record is not None
    return record


@pytest.fixture
def store() -> Iterator[MovableStore]:
    with memory_store() as made:
        yield made


@pytest.fixture
def guarded(app: Celery, store: MovableStore) -> Callable[..., Any]:
    """Make a task of the module's ``app`` out of what each of its runs does in turn."""

    def make(*bodies: Body, **options: Any) -> Any:
        turns = iter(bodies)

        @app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order}", **options)
        def charge(self: Any, order: int, amount: int = 0) -> Any:
            return next(turns)(self, order)

        return charge

    return make
