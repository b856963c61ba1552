"""The stores under test, with clocks that a test can move."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.stores.redis.store import RedisStore
from celery_idempotent.stores.redis.wire import Script

#: Some instant, not at a whole millisecond.
START_US = 1_750_000_000_123_456

#: Put in front of a script, so that its commands tell a virtual time and things end by it. What a
#: real time to live does is left to the server that runs the contract by its own clock.
_VIRTUAL_TIME = b"""
local server = redis
local redis = setmetatable({}, {__index = server})
redis.call = function(command, ...)
  if command == 'TIME' then
    local now = server.call('GET', 'virtual:now')
    return {string.sub(now, 1, -7), string.sub(now, -6)}
  end
  if command == 'PTTL' then
    local now_ms = math.floor(server.call('GET', 'virtual:now') / 1000)
    return server.call('ZSCORE', 'virtual:gone', (...)) - now_ms
  end
  local answer = server.call(command, ...)
  local key, value, option, ttl_ms = ...
  if command == 'DEL' then server.call('ZREM', 'virtual:gone', key) end
  if command == 'PEXPIRE' then option, ttl_ms = 'PX', value end
  if option == 'PX' and server.call('PERSIST', key) == 1 then
    local now_ms = math.floor(server.call('GET', 'virtual:now') / 1000)
    server.call('ZADD', 'virtual:gone', string.format('%.0f', now_ms + ttl_ms), key)
  end
  return answer
end
"""


class MemoryClock:
    """A clock for a memory store."""

    def __init__(self) -> None:
        self._now_us = START_US

    def now_us(self) -> int:
        return self._now_us

    def advance(self, ms: int) -> None:
        self._now_us += ms * 1000


@functools.cache
@functools.cache
def _by_virtual_time(script: Script) -> Script:
    source = _VIRTUAL_TIME + script.source
    return Script(source, hashlib.sha1(source).hexdigest().encode())


class VirtualRedisStore(RedisStore):
    """A Redis store whose scripts read the time from a key, everything else being as it is."""

    def _script(self, name: str) -> Script:
        return _by_virtual_time(super()._script(name))

    def ttl(self, key: str) -> float | None:
        gone_ms = self._wire.command("ZSCORE", "virtual:gone", key)
        if gone_ms is None or not self._wire.command("EXISTS", key):
            return None
        return (float(gone_ms) - VirtualClock(self).now_us() // 1000) / 1000

    def now_ms(self) -> int:
        return VirtualClock(self).now_us() // 1000

    def scan(self, pattern: str) -> Iterator[str]:
        return (key for key in super().scan(pattern) if not key.startswith("virtual:"))

    def notes(self) -> set[str]:
        """The notes that are set."""
        return {key.decode() for key in self._wire.command("KEYS", "*:sent:*")}


class VirtualClock:
    """The clock of a :class:`VirtualRedisStore`; what is over by it is deleted."""

    def __init__(self, store: VirtualRedisStore) -> None:
        self._command = store._wire.command

    def reset(self) -> None:
        """Empty the store, and begin at the same instant as every other clock."""
        self._command("FLUSHDB")
        self._command("SET", "virtual:now", START_US)

    def now_us(self) -> int:
        return int(self._command("GET", "virtual:now"))

    def advance(self, ms: int) -> None:
        now_ms = self._command("INCRBY", "virtual:now", ms * 1000) // 1000
        gone = self._command("ZRANGEBYSCORE", "virtual:gone", "-inf", now_ms)
        if gone:
            self._command("DEL", *gone)
            self._command("ZREM", "virtual:gone", *gone)


def write_memory(store: Any, key: str, packed: bytes) -> None:
    assert isinstance(store, MemoryStore)
    store._records[key] = (packed, store._clock() // 1000 + 3_600_000)


def read_memory(store: Any, key: str) -> bytes | None:
    assert isinstance(store, MemoryStore)
    entry = store._records.get(key)
    return None if entry is None else entry[0]


def write_redis(store: Any, key: str, packed: bytes) -> None:
    assert isinstance(store, RedisStore)
    store._wire.command("SET", key, packed, "PX", 3_600_000)
    if isinstance(store, VirtualRedisStore):
        store._wire.command("PERSIST", key)
        gone_ms = VirtualClock(store).now_us() // 1000 + 3_600_000
        store._wire.command("ZADD", "virtual:gone", gone_ms, key)


def read_redis(store: Any, key: str) -> bytes | None:
    assert isinstance(store, RedisStore)
    packed: bytes | None = store._wire.command("GET", key)
    return packed
