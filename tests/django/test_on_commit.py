"""Calls that wait for Django's transaction: published once it commits, with their keys."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.contrib.django.task import DjangoTask

from celery_idempotent import (
    ConfigurationError,
    IdempotentTask,
    KeyDerivationError,
    use_idempotency_key,
)
from celery_idempotent.core.message import OWN
from celery_idempotent.testing.memory import memory_store
from tests.support.djangos import set_up

set_up()

# Django has to be set up first.
from django.db import connection, transaction  # noqa: E402


@pytest.fixture
def published() -> list[dict[str, Any]]:
    """The headers of what was published."""
    return []


@pytest.fixture(params=[(IdempotentTask,), (IdempotentTask, DjangoTask)], ids=["ours", "both"])
def make(request: pytest.FixtureRequest, published: list[dict[str, Any]]) -> Iterator[Any]:
    """Make tasks that say what is published of them."""
    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(idempotency_store_url="memory://")
    send = app.amqp.send_task_message

    def note(producer: Any, name: str, message: Any, **options: Any) -> Any:
        published.append(message.headers)
        return send(producer, name, message, **options)

    app.amqp.send_task_message = note
    base = type("Base", request.param, {"abstract": True})

    def make(**options: Any) -> Any:
        options = {"name": "charge", "idempotency_key": "order:{order}", **options}

        @app.task(base=base, shared=False, **options)
        def charge(order: Any, amount: int = 1) -> None:
            """Do nothing."""

        return charge

    connection.close()
    with memory_store():
        yield make
    connection.close()


@pytest.fixture
def charge(make: Any) -> Any:
    return make()


def test_it_is_published_once_the_transaction_is_committed(
    charge: Any, published: list[dict[str, Any]]
) -> None:
    """And never if it is rolled back."""
    # When
    with transaction.atomic():
        charge.delay_on_commit(1, amount=2)
        charge.apply_async_on_commit((2,), countdown=60)
        assert not published
    with transaction.atomic():
        charge.delay_on_commit(3)
        transaction.set_rollback(True)
    # Then
    assert [headers[OWN]["key"] for headers in published] == ["order:1", "order:2"]
    assert [headers["eta"] is None for headers in published] == [True, False]


def test_it_keeps_the_key_that_it_was_made_with(
    charge: Any, published: list[dict[str, Any]]
) -> None:
    """When it commits, the context of the request may be over."""
    # When
    with transaction.atomic():
        with use_idempotency_key("req-1"):
            charge.delay_on_commit(1)
        charge.apply_async_on_commit((1,), idempotency_key="req-2", task_id="id-2")
        charge.apply_async_on_commit((1,), idempotency_key=None)
    # Then
    keys = [headers[OWN]["key"] for headers in published]
    assert keys == ["req-1|charge|order:1", "req-2", None]
    assert published[1]["id"] == "id-2"


@pytest.mark.parametrize("on_enqueue", ["attach", "raise"])
def test_a_duplicate_is_not_published_after_the_commit(
    make: Any, published: list[dict[str, Any]], on_enqueue: str
) -> None:
    """Nobody can be told by an error any more: the others that wait for the commit go on."""
    # Given
    charge = make(idempotency_on_enqueue=on_enqueue)
    # When
    with transaction.atomic():
        charge.delay_on_commit(1)
        charge.delay_on_commit(1)
        charge.delay_on_commit(2)
    with transaction.atomic():
        charge.delay_on_commit(2)
        charge.apply_async_on_commit((1,), link=charge.si(9))
        charge.apply_async_on_commit((1,), task_id="id-3")
    # Then
    keys = [headers[OWN]["key"] for headers in published]
    assert keys == ["order:1", "order:2", "order:1", "order:1"]
    assert published[-1]["id"] == "id-3"


def test_what_is_wrong_is_raised_before_the_commit(
    charge: Any, published: list[dict[str, Any]]
) -> None:
    """Where it can still be rolled back."""
    with transaction.atomic():
        with pytest.raises(KeyDerivationError):
            charge.delay_on_commit(None)
        with pytest.raises(TypeError):
            charge.delay_on_commit()
        with pytest.raises(ConfigurationError):
            charge.apply_async_on_commit((1,), idempotency_ttl=1)
    assert not published


def test_without_django_it_says_so(charge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no transaction to wait for."""
    monkeypatch.setitem(sys.modules, "django.db", None)
    with pytest.raises(ConfigurationError, match="no Django here"):
        charge.delay_on_commit(1)
