"""Clocks that are wrong, or are moved while somebody runs: the worker's and the store's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from celery_idempotent.stores.redis.store import RedisStore
from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.clocks import MovableClock
from tests.support.records import StoredRecords
from tests.support.system import answers, outlive_lease
from tests.support.waiting import eventually

HOUR = 3600


@pytest.fixture
def clock(tmp_path: Path) -> MovableClock:
    return MovableClock(tmp_path)


@pytest.fixture
def moving_server(
    clock: MovableClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RedisServer]:
    """A server whose clock a test moves."""
    with monkeypatch.context() as environment:
        for name, value in clock.environment.items():
            environment.setenv(name, value)
        server = RedisServer()
        server.start()
    yield server
    server.stop()


def move(clock: MovableClock, server: RedisServer, seconds: int) -> None:
    """Move a server's clock, and wait until it has looked: Valkey reckons on for a while."""
    clock.move(seconds)
    with redis.Redis.from_url(server.url()) as client:
        eventually(
            lambda: abs(client.time()[0] - time.time() - seconds) < HOUR / 2,
            f"the server's clock is off by {seconds} s",
        )


@pytest.mark.parametrize("off", [HOUR, -HOUR], ids=["ahead", "behind"])
def test_a_workers_clock_decides_nothing(
    make_faulty: MakeSystem, clock: MovableClock, off: int
) -> None:
    """Scenario 15: leases, tokens and answers are those of the store's clock."""
    # Given
    clock.move(off)
    system = make_faulty(idempotency_lease=2)
    system.start_worker(concurrency=2, environment=clock.environment)
    pay = system.task("pay")
    first = pay.delay(1, gate="go")
    (begun,) = system.ledger.wait_for("start")
    # When a duplicate waits for longer than the lease
    duplicate = pay.delay(1, gate="go")
    system.ledger.wait_for("finished", id=duplicate.id)
    outlive_lease(pay, 1)
    store = RedisStore.from_url(system.settings["idempotency_store_url"])
    now_ms = store.now_ms()
    store.close()
    # Then
    assert system.ledger.count("start") == 1
    assert abs(begun["clock"] * 1000 - now_ms) > HOUR * 1000 / 2
    assert abs(begun["token"] / 1000 - now_ms) < HOUR * 1000 / 2
    system.ledger.open("go")
    one, two = answers([first, duplicate])
    assert one == two
    assert system.ledger.count("effect") == 1


def test_the_stores_clock_jumps_ahead(
    make_faulty: MakeSystem, clock: MovableClock, moving_server: RedisServer
) -> None:
    """Scenario 16: an early takeover by a higher token; the first one's end is refused."""
    # Given
    system = make_faulty(store=moving_server, idempotency_lease=300)
    system.start_worker(concurrency=2)
    task = system.task("charge_two_gates")
    first = task.delay(1, first="a", second="b")
    system.ledger.wait_for("start", id=first.id)
    # When
    move(clock, moving_server, HOUR)
    second = task.delay(1, first="a", second="b")
    # Then
    system.ledger.wait_for("start", id=second.id)
    one, two = (entry["token"] for entry in system.ledger.entries("start"))
    assert two > one
    system.ledger.open("b")
    answer = second.get(timeout=30)
    system.ledger.open("a")
    assert first.get(timeout=30) == answer
    assert task.delay(1, first="a", second="b").get(timeout=30) == answer
    assert system.ledger.count("start") == 2


def test_the_stores_clock_goes_back(clock: MovableClock, moving_server: RedisServer) -> None:
    """Scenario 17: while a record is left, the next token is higher than the last."""
    # Given
    store = RedisStore.from_url(moving_server.url())
    stored = StoredRecords(store, "shop")
    move(clock, moving_server, HOUR)
    name, ahead = stored.hold()
    # When
    move(clock, moving_server, -HOUR)
    assert store.now_ms() < ahead.token / 1000 - HOUR * 1000
    assert store.forget(name, HOUR * 1000)
    _, behind = stored.hold()
    # Then
    assert behind.token > ahead.token
    with redis.Redis.from_url(moving_server.url()) as client:
        assert client.exists(name)
    store.close()
