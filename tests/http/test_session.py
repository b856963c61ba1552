"""What a request writes in its session is committed together with its answer, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from celery_idempotent import State
from celery_idempotent.run.context import RunContext
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.base import NotCommitted
from celery_idempotent.stores.sql.store import SqlStore
from celery_idempotent.stores.sql.transaction import SqlTransaction
from tests.support.http_app import HTTP_APPS, Handler, HttpApp, Reply, make_celery


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    name: Mapped[str] = mapped_column(String(50), primary_key=True)


class Shop:
    """An application, and a table of orders beside its records."""

    def __init__(self, make: Callable[..., HttpApp], directory: Path) -> None:
        self._make = make
        self._url = f"sqlite:///{directory}/shop.db"

    def open(self, handler: Handler, **settings: Any) -> HttpApp:
        celery = make_celery(**settings)
        celery.conf.idempotency_store_url = self._url
        store = environment_of(celery).store
        assert isinstance(store, SqlStore)
        self.store = store
        store.create_schema()
        engine = create_engine(self._url)
        Base.metadata.create_all(engine)
        engine.dispose()
        return self._make(handler, celery)

    def orders(self) -> list[str]:
        transaction = self.store.begin()
        try:
            return [order.name for order in transaction.session.query(Order)]
        finally:
            transaction.rollback()

    def states(self) -> list[State]:
        found = [self.store.get(name) for name in self.store.scan("*")]
        return [record.state for record in found if record is not None]


@pytest.fixture(params=HTTP_APPS.values(), ids=HTTP_APPS.keys())
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    """A shop with an application of each kind."""
    made = Shop(request.param, tmp_path)
    yield made
    made.store.close()


def ordering(*names: str, status: int = 201) -> Handler:
    """A handler that makes an order of the next name with each request."""
    left = list(names)

    def handler(body: bytes, run: RunContext | None) -> Reply:
        assert run is not None
        run.session.add(Order(name=left.pop(0)))
        return Reply(status)

    return handler


def test_it_is_committed_with_the_answer(shop: Shop) -> None:
    """A duplicate orders nothing."""
    http_app = shop.open(ordering("one"))
    assert [http_app.post("a").status for _ in range(2)] == [201, 201]
    assert (shop.orders(), len(http_app.calls)) == (["one"], 1)


def test_an_answer_that_is_not_kept_undoes_it(shop: Shop) -> None:
    """The key is free, and nothing of the request is left."""
    http_app = shop.open(ordering("one", status=500))
    assert http_app.post("a").status == 500
    assert (shop.orders(), shop.states()) == ([], [State.RELEASED])


def test_what_the_database_refuses_frees_the_key(shop: Shop) -> None:
    """The client gets a failure, and nobody keeps the key alive."""
    # Given
    http_app = shop.open(ordering("one", "one", "two"))
    http_app.post("a")
    # When
    refused = http_app.post("b")
    # Then
    assert refused.status == 500
    assert sorted(map(str, shop.states())) == ["released", "succeeded"]
    assert not [lease for lease in heartbeat.leases() if lease.store is shop.store]
    # And
    assert http_app.post("b").status == 201
    assert shop.orders() == ["one", "two"]


@pytest.mark.parametrize("sure", [True, False])
def test_what_was_not_committed_is_to_be_sent_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sure: bool
) -> None:
    """Where it is certain, at once; else once the lease is over. The log names the record only."""
    # Given
    http_app = shop.open(ordering("one", "one"))

    def commit(transaction: Any, *_: Any) -> Any:
        transaction.rollback()
        exc = NotCommitted("the line was cut")
        exc.sure = sure
        raise exc

    # When
    with monkeypatch.context() as patched:
        patched.setattr(SqlTransaction, "commit", commit)
        first = http_app.post("a")
    # Then
    assert (first.status, first.code, first.header("Retry-After")) == (503, "not-committed", "2")
    assert "idempotent:{celery.http:~" in caplog.text
    assert "a@" not in caplog.text
    assert not [lease for lease in heartbeat.leases() if lease.store is shop.store]
    assert http_app.post("a").status == (201 if sure else 409)
    assert shop.orders() == (["one"] if sure else [])


def test_forgotten_meanwhile_it_is_undone_and_said_so(shop: Shop) -> None:
    """The answer says that it has to be sent again: nothing of it happened."""
    # Given
    order = ordering("one", "one")

    def handler(body: bytes, run: RunContext | None) -> Reply:
        if len(http_app.calls) == 1:
            (name,) = shop.store.scan("*")
            assert shop.store.forget(name, 60_000)
        return order(body, run)

    http_app = shop.open(handler)
    # Then
    assert [http_app.post("a").code for _ in range(2)] == ["not-committed", None]
    assert shop.orders() == ["one"]


@pytest.mark.parametrize("mode", ["off", "shadow"])
def test_switched_off_it_is_a_plain_session(shop: Shop, mode: str) -> None:
    """Committed where the answer would be kept, and else undone."""
    http_app = shop.open(ordering("one", "two"), idempotency_mode=mode)
    assert [http_app.post("a").status for _ in range(2)] == [201, 201]
    assert shop.orders() == ["one", "two"]
    failing = shop.open(ordering("three", status=500), idempotency_mode=mode)
    assert failing.post("a").status == 500
    assert shop.orders() == ["one", "two"]
