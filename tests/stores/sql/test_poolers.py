"""Behind a pooler that gives each transaction another connection: nothing is sent or run twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import Engine, create_engine

from celery_idempotent import IdempotentTask, StoreUnavailable, outbox
from celery_idempotent.outbox.message import PendingCall
from celery_idempotent.outbox.rows import engine_of
from celery_idempotent.stores.base import Store
from celery_idempotent.stores.urls import store_from_url
from tests.support.databases import Database
from tests.support.djangos import database_at
from tests.support.poolers import Pooler

pytestmark = pytest.mark.system

#: More than psycopg executes a statement before it prepares it, five times.
OFTEN = 8


@pytest.fixture
def pooler(own_postgresql: Database) -> Iterator[Pooler]:
    made = Pooler(own_postgresql.url)
    yield made
    made.close()


@pytest.fixture
def engine(own_postgresql: Database) -> Iterator[Engine]:
    """The application's own way to the database, past the pooler."""
    made = create_engine(own_postgresql.url)
    outbox.create_schema(made)
    yield made
    made.dispose()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The task ids of what relays of this process have sent."""
    ids: list[str] = []
    monkeypatch.setattr(PendingCall, "send", lambda call, *_: ids.append(call.task_id))
    return ids


def make_app(store_url: str = "memory://") -> Any:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(idempotency_store_url=store_url, task_always_eager=True)
    return app


@pytest.mark.parametrize("option", ["", "?prepare_threshold=0"])
def test_relays_share_a_poolers_connections(
    engine: Engine, pooler: Pooler, sent: list[str], option: str
) -> None:
    """With or without the option, each row is sent once, and deleted."""
    # Given
    app = make_app()
    relays = [outbox.Relay(app, engine_of(pooler.url + option), batch=1) for _ in range(3)]
    # When they take their turns on the same few connections
    ids = []
    for number in range(OFTEN):
        for relay in relays:
            with engine.begin() as connection:
                ids.append(outbox.publish(connection, app.signature("a.task", (number,))).id)
            relay.turn()
    # Then
    assert sent == ids
    assert outbox.backlog(engine).rows == 0


def use(stores: list[Store]) -> None:
    for number in range(OFTEN):
        for store in stores:
            store.get(f"key-{number}")


def test_the_stores_option_lets_it_share_a_poolers_connections(
    own_postgresql: Database, pooler: Pooler
) -> None:
    """``?prepare_threshold=0``, as the error without it says."""
    # Given
    store: Any = store_from_url(own_postgresql.url)
    store.create_schema()
    stores: list[Any] = [store_from_url(f"{pooler.url}?prepare_threshold=0") for _ in range(3)]
    runs: list[int] = []
    app = make_app(f"{pooler.url}?prepare_threshold=0")

    def pay(self: Any, number: int) -> int:
        self.idempotency.session.connection()
        runs.append(number)
        return number

    task = app.task(bind=True, base=IdempotentTask, name="poolers.pay", shared=False)(pay)
    # When
    use(stores)
    for number in range(OFTEN):
        for _ in range(2):
            assert task.delay(number).get() == number
    # Then
    assert runs == list(range(OFTEN))
    for one in (store, *stores):
        one.close()


def test_without_its_option_the_store_says_which_one_it_is(
    own_postgresql: Database, pooler: Pooler
) -> None:
    """The error of the database names a prepared statement, and nothing that can be done."""
    store: Any = store_from_url(own_postgresql.url)
    store.create_schema()
    stores: list[Any] = [store_from_url(pooler.url) for _ in range(3)]
    with pytest.raises(StoreUnavailable, match=r"\?prepare_threshold=0"):
        use(stores)
    for one in (store, *stores):
        one.close()


def test_django_needs_no_option(own_postgresql: Database, pooler: Pooler, sent: list[str]) -> None:
    """Its store, its outbox and its relay prepare nothing."""
    with database_at(pooler.url) as alias:
        from django.db import transaction

        from celery_idempotent.django import outbox as django_outbox

        # Given
        app = make_app(f"django://{alias}")
        runs: list[int] = []

        def pay(number: int) -> int:
            runs.append(number)
            return number

        task = app.task(base=IdempotentTask, name="poolers.pay", shared=False)(pay)
        relay = django_outbox.Relay(app, using=alias, batch=1)
        # When
        ids = []
        for number in range(OFTEN):
            for _ in range(2):
                assert task.delay(number).get() == number
            with transaction.atomic(using=alias):
                call = app.signature("a.task", (number,))
                ids.append(django_outbox.publish(call, using=alias).id)
            relay.turn()
        # Then
        assert runs == list(range(OFTEN))
        assert sent == ids
        assert relay.backlog().rows == 0
