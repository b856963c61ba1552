"""Several clients, lost answers, deaths and clock moves: one completion counts, nothing is lost."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest
from sqlalchemy import select

from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.stores.sql.engines import Engines
from celery_idempotent.stores.sql.store import SqlStore
from celery_idempotent.testing.servers import RedisServer
from tests.stores.histories import run_histories
from tests.stores.sql import test_contract as sql
from tests.stores.stores_under_test import (
    START_US,
    MemoryClock,
    VirtualClock,
    VirtualRedisStore,
)
from tests.support.databases import Database, emptied


@pytest.mark.long(5)
def test_in_memory() -> None:
    """Whatever happens in whatever order, in the memory store."""
    clock = MemoryClock()
    store = MemoryStore(clock.now_us)

    def reset() -> None:
        store.__init__(clock.now_us)  # type: ignore[misc]
        clock.advance((START_US - clock.now_us()) // 1000)

    run_histories(store, clock, reset, 150)


@pytest.mark.long(5)
def test_in_redis(session_server: RedisServer) -> None:
    """Whatever happens in whatever order, in Redis."""
    with closing(VirtualRedisStore.from_url(session_server.url(4))) as store:
        assert isinstance(store, VirtualRedisStore)
        clock = VirtualClock(store)
        run_histories(store, clock, clock.reset, 50)


@pytest.mark.long(5)
def test_in_a_database(database: Database) -> None:
    """Whatever happens in whatever order, in each SQL database."""
    engines = Engines(database.url)
    now_us = select(sql._clock.c.now_us).scalar_subquery()
    engines.flavour = replace(engines.flavour, now_us=now_us)
    with closing(SqlStore(engines)) as store:
        clock = sql.VirtualClock(store)

        def reset() -> None:
            emptied(store)
            clock.reset()

        run_histories(store, clock, reset, 12)
