"""Memory, Valkey and Redis keep the store contract; by a virtual clock, and by the server's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_idempotent.stores.base import Store
from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.stores.redis.store import RedisStore
from celery_idempotent.testing.servers import RedisServer
from celery_idempotent.testing.store_contract import StoreContract, StoreContractAtRest
from tests.stores.stores_under_test import (
    MemoryClock,
    VirtualClock,
    VirtualRedisStore,
    read_memory,
    read_redis,
    write_memory,
    write_redis,
)


class TestMemory(StoreContract):
    """The memory store, which is core.transitions in a dictionary."""

    write_raw = staticmethod(write_memory)
    read_raw = staticmethod(read_memory)

    @pytest.fixture
    def clock(self) -> MemoryClock:
        return MemoryClock()

    @pytest.fixture
    def store(self, clock: MemoryClock) -> Store:
        return MemoryStore(clock.now_us)


class TestRedisByAVirtualClock(StoreContract):
    """The Redis store with all its scripts, at instants that a test chooses."""

    write_raw = staticmethod(write_redis)
    read_raw = staticmethod(read_redis)

    @pytest.fixture
    def store(self, session_server: RedisServer) -> Iterator[VirtualRedisStore]:
        store = VirtualRedisStore.from_url(session_server.url(1))
        assert isinstance(store, VirtualRedisStore)
        VirtualClock(store).reset()
        yield store
        store.close()

    @pytest.fixture
    def clock(self, store: VirtualRedisStore) -> VirtualClock:
        return VirtualClock(store)


class TestRedisAsItIs(StoreContractAtRest):
    """The Redis store as users have it, by the server's clock and its own times to live."""

    write_raw = staticmethod(write_redis)
    read_raw = staticmethod(read_redis)

    @pytest.fixture
    def store(self, session_server: RedisServer) -> Iterator[RedisStore]:
        store = RedisStore.from_url(session_server.url(2))
        store._wire.command("FLUSHDB")
        yield store
        store.close()


@pytest.fixture(scope="module")
def redis_itself(redis_program: Path) -> Iterator[RedisServer]:
    """A Redis, where all other tests run on Valkey."""
    with RedisServer(binary=redis_program) as server:
        yield server


@pytest.mark.system
@pytest.mark.matrix
class _OnRedis:
    @pytest.fixture
    def session_server(self, redis_itself: RedisServer) -> RedisServer:
        return redis_itself


class TestOnRedisByAVirtualClock(_OnRedis, TestRedisByAVirtualClock):
    """Every script, as Redis runs it."""


class TestOnRedisAsItIs(_OnRedis, TestRedisAsItIs):
    """Redis by its own clock."""
