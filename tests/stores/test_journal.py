"""Every store that keeps journals keeps them alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_idempotent.errors import RecordCorrupt
from celery_idempotent.stores.base import Store
from celery_idempotent.stores.journal import JOURNAL_TTL_MS
from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.stores.redis.store import RedisStore
from celery_idempotent.testing.contract.journals import JOURNAL, JournalRows, events
from celery_idempotent.testing.servers import RedisServer


class TestMemory(JournalRows):
    """Journals in this process's memory."""

    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()


class TestRedis(JournalRows):
    """Journals as streams."""

    @pytest.fixture
    def store(self, redis_server: RedisServer) -> Iterator[RedisStore]:
        store = RedisStore.from_url(redis_server.url(3))
        yield store
        store.close()

    def test_a_forsaken_journal_goes_away(self, store: RedisStore) -> None:
        """It lives on from every event that is added, and nothing of ours stays for ever."""
        # When
        store.append_events(JOURNAL, events(1), 100)
        # Then
        left = store._wire.command("PTTL", JOURNAL)
        assert JOURNAL_TTL_MS - 60_000 < left <= JOURNAL_TTL_MS

    def test_what_is_no_journal_is_an_error(self, store: RedisStore) -> None:
        """What another program put there is left alone, and said."""
        # Given
        store._wire.command("SET", JOURNAL, "of another program")
        # Then
        with pytest.raises(RecordCorrupt):
            store.append_events(JOURNAL, events(1), 100)
        with pytest.raises(RecordCorrupt):
            store.read_events(JOURNAL, None, 10)
        assert store._wire.command("GET", JOURNAL) == b"of another program"
