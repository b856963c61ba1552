"""The store on Django's ORM keeps the store contract, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections, transaction

from celery_idempotent.testing.store_contract import StoreContract, StoreContractAtRest
from tests.stores.stores_under_test import START_US
from tests.support.databases import POSTGRESQL
from tests.support.djangos import database_of, set_up

set_up()

# Django has to be set up first.
from celery_idempotent.django import models  # noqa: E402
from celery_idempotent.django.store import DjangoStore  # noqa: E402


@pytest.fixture(scope="module", params=[POSTGRESQL, "sqlite"])
def alias(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Each kind of database in turn, one for the whole module: a test empties what it uses."""
    with database_of(request.param, tmp_path_factory.mktemp("django")) as made:
        yield made


class VirtualClock:
    """A clock in a table of the database, which tells the time in place of the database's own."""

    def __init__(self, alias: str) -> None:
        self._alias = alias

    def _tell(self, sql: str) -> Any:
        with connections[self._alias].cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0] if sql.startswith("SELECT") else None

    def reset(self) -> None:
        self._tell("CREATE TABLE IF NOT EXISTS virtual_clock (now_us BIGINT NOT NULL)")
        self._tell("DELETE FROM virtual_clock")
        self._tell(f"INSERT INTO virtual_clock VALUES ({START_US})")

    def now_us(self) -> int:
        now_us: int = self._tell("SELECT now_us FROM virtual_clock")
        return now_us

    def advance(self, ms: int) -> None:
        self._tell(f"UPDATE virtual_clock SET now_us = now_us + {ms * 1000}")


def empty(alias: str) -> DjangoStore:
    with transaction.atomic(alias):
        for model in (models.Record, models.Step, models.Note, models.Event):
            model._base_manager.using(alias).all()._raw_delete(alias)
    return DjangoStore.from_url(f"django://{alias}")


def write_raw(store: Any, key: str, packed: bytes) -> None:
    models.Record._base_manager.using(store.alias).update_or_create(
        record_key=key,
        defaults={
            "token": 1,
            "expires_ms": store.now_ms() + 3_600_000,
            "stamp": 0,
            "record": packed,
        },
    )


def read_raw(store: Any, key: str) -> bytes | None:
    rows = models.Record._base_manager.using(store.alias).filter(record_key=key)
    packed = rows.values_list("record", flat=True).first()
    return None if packed is None else bytes(packed)


class TestDjangoByAVirtualClock(StoreContract):
    """The store, at instants that a test chooses."""

    write_raw = staticmethod(write_raw)
    read_raw = staticmethod(read_raw)

    @pytest.fixture
    def store(self, alias: str) -> DjangoStore:
        store = empty(alias)
        VirtualClock(alias).reset()
        store.rows.now_us = "(SELECT now_us FROM virtual_clock)"
        return store

    @pytest.fixture
    def clock(self, alias: str, store: DjangoStore) -> VirtualClock:
        return VirtualClock(alias)


class TestDjangoAsItIs(StoreContractAtRest):
    """The store as users have it, by the database's clock."""

    write_raw = staticmethod(write_raw)
    read_raw = staticmethod(read_raw)

    @pytest.fixture
    def store(self, alias: str) -> DjangoStore:
        return empty(alias)
