"""The SQL store keeps the store contract on every database; by a virtual clock, and by its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import BigInteger, Column, MetaData, Table, delete, insert, select, update

from celery_idempotent.stores.sql.engines import Engines
from celery_idempotent.stores.sql.schema import records
from celery_idempotent.stores.sql.store import SqlStore
from celery_idempotent.testing.contract.journals import JournalRows
from celery_idempotent.testing.store_contract import StoreContract, StoreContractAtRest
from tests.stores.stores_under_test import START_US
from tests.support.databases import Database, emptied

_tables = MetaData()
_clock = Table("virtual_clock", _tables, Column("now_us", BigInteger, nullable=False))
#: Every virtual clock begins at this instant.
START = (delete(_clock), insert(_clock).values(now_us=START_US))


class VirtualClock:
    """A clock in a table of the database, which tells the time in place of the database's own."""

    def __init__(self, store: SqlStore) -> None:
        self._engine = store.engines.own

    def reset(self) -> None:
        _tables.create_all(self._engine)
        with self._engine.connect() as connection:
            for statement in START:
                connection.execute(statement)

    def now_us(self) -> int:
        with self._engine.connect() as connection:
            return connection.scalars(select(_clock.c.now_us)).one()

    def advance(self, ms: int) -> None:
        with self._engine.connect() as connection:
            connection.execute(update(_clock).values(now_us=_clock.c.now_us + ms * 1000))


def write_raw(store: Any, key: str, packed: bytes) -> None:
    assert isinstance(store, SqlStore)
    row = {
        "record_key": key,
        "state": "",
        "token": 1,
        "expires_ms": store.now_ms() + 3_600_000,
        "stamp": 0,
        "record": packed,
    }
    with store.engines.own.connect() as connection:
        connection.execute(store.engines.flavour.put(records), row)


def read_raw(store: Any, key: str) -> bytes | None:
    assert isinstance(store, SqlStore)
    with store.engines.own.connect() as connection:
        wanted = select(records.c.record).where(records.c.record_key == key)
        packed = connection.scalars(wanted).one_or_none()
        return None if packed is None else bytes(packed)


@pytest.fixture(scope="module")
def engines(database: Database) -> Iterator[Engines]:
    """The connections of all tests: making one takes longer than a test."""
    engines = Engines(database.url)
    yield engines
    engines.close()


@pytest.fixture(scope="module")
def virtual_engines(database: Database) -> Iterator[Engines]:
    """The same, with the virtual clock."""
    engines = Engines(database.url)
    engines.flavour = replace(engines.flavour, now_us=select(_clock.c.now_us).scalar_subquery())
    _tables.create_all(engines.own)
    yield engines
    engines.close()


class TestSqlByAVirtualClock(StoreContract):
    """The SQL store, at instants that a test chooses."""

    write_raw = staticmethod(write_raw)
    read_raw = staticmethod(read_raw)

    @pytest.fixture
    def store(self, virtual_engines: Engines) -> SqlStore:
        return emptied(SqlStore(virtual_engines), *START)

    @pytest.fixture
    def clock(self, store: SqlStore) -> VirtualClock:
        return VirtualClock(store)


class TestSqlAsItIs(StoreContractAtRest, JournalRows):
    """The SQL store as users have it, by the database's clock."""

    write_raw = staticmethod(write_raw)
    read_raw = staticmethod(read_raw)

    @pytest.fixture
    def store(self, engines: Engines) -> SqlStore:
        return emptied(SqlStore(engines))
