"""Lists of records in Redis: who changes and who reads them at one moment, and what is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from celery_idempotent.stores.journal import ListedRuns, journal_key
from celery_idempotent.stores.redis.journal import _runs_of
from celery_idempotent.stores.redis.store import RedisStore
from celery_idempotent.testing.contract.kit import KEY, unknown
from celery_idempotent.testing.contract.resolving import PREFIX, resolved
from celery_idempotent.testing.servers import RedisServer


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[RedisStore]:
    store = RedisStore.from_url(redis_server.url())
    yield store
    store.close()


def test_what_is_unknown_again_while_somebody_reads_stays_listed(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader deletes the entry that it has read, which is another one."""
    # Given
    resolved(store, unknown(store))
    read = store.get_many

    def get_many(keys: Sequence[str]) -> list[Any]:
        found = read(keys)
        unknown(store)
        return found

    # When
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(store, "get_many", get_many)
        assert store.unknown(PREFIX) == []
    # Then
    assert store.unknown(PREFIX) == [KEY]


def test_nothing_is_left_of_runs_that_have_ended(store: RedisStore) -> None:
    """Whether they were listed before or not; nobody has to read the list for that."""
    # Given
    journal = journal_key(PREFIX)
    runs = [(f"{PREFIX}:{{shop.charge:order:{number}}}", number) for number in range(3)]
    store.append_with_runs(journal, [b"{}"], 100, ListedRuns(runs[:2], runs[2:]))
    left = store._wire.command("ZRANGE", _runs_of(journal), 0, -1)
    assert left == [f"{token} {key}".encode() for key, token in runs[:2]]
    # When
    store.append_with_runs(journal, [b"{}"], 100, ListedRuns((), runs[:2]))
    # Then
    assert store._wire.command("EXISTS", _runs_of(journal)) == 0
    assert len(store.read_events(journal, None, 100)) == 2


def test_the_list_is_no_record(store: RedisStore) -> None:
    """Going through the records doesn't meet it, nor does a sample."""
    # When
    store.append_with_runs(journal_key(PREFIX), [b"{}"], 100, ListedRuns([(KEY, 1)]))
    # Then
    assert [*store.scan(f"{PREFIX}:{{*}}")] == []
    assert [sample.keys for sample in store.sample(PREFIX, 10)] == [[]]
