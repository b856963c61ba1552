"""What can go wrong with a wake-up: it comes late then, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import redis

from celery_idempotent.testing.servers import RedisServer
from celery_idempotent.worker.waiters import _AT_ONCE
from tests.conftest import MakeSystem
from tests.support.brokers import RabbitBroker
from tests.support.faults import kill_at
from tests.support.proxy import Proxy
from tests.support.system import STORE_DB, System, answers, outlive_lease
from tests.support.waiting import eventually

KEY = "idempotent:{shop.pay:order:1}"
CHANNEL = f"{KEY}:ended"


@pytest.fixture
def line(redis_server: RedisServer) -> Iterator[Proxy]:
    """What stands between the workers and their store."""
    proxy = Proxy("127.0.0.1", redis_server.port)
    yield proxy
    proxy.close()


def listeners(server: RedisServer, channel: str = CHANNEL) -> int:
    """How many connections hear of the end of the run."""
    with redis.Redis.from_url(server.url()) as client:
        return int(client.pubsub_numsub(channel)[0][1])


def waiting(system: System, count: int = 10) -> list[object]:
    """A call whose body waits at the gate ``go``, and duplicates that wait for it."""
    return waiting_for(system, 1, "go", count)


def waiting_for(system: System, order: int, gate: str, count: int = 10) -> list[object]:
    """The same for a given order and gate."""
    pay = system.task("pay")
    first = pay.delay(order, gate=gate)
    system.ledger.wait_for("start", id=first.id)
    results = [pay.delay(order, gate=gate) for _ in range(count)]
    for result in results:
        system.ledger.wait_for("finished", id=result.id)
    return [first, *results]


def deliveries(system: System, results: list[object]) -> list[int]:
    """How often each duplicate was delivered."""
    return [system.ledger.count("executed", id=it.id) for it in results[1:]]  # type: ignore[attr-defined]


def test_the_channel_is_cut(make_faulty: MakeSystem, line: Proxy) -> None:
    """Scenario 71: the worker subscribes again and looks; nobody is let in for nothing."""
    # Given
    url = f"redis://127.0.0.1:{line.port}/{STORE_DB}"
    system = make_faulty(idempotency_store_url=url, idempotency_lease=30)
    server = system.store
    system.start_worker(concurrency=2)
    results = waiting(system)
    eventually(lambda: listeners(server) == 1, "the worker listens")
    # When
    line.refuse()
    eventually(lambda: listeners(server) == 0, "the channel is cut")
    line.accept()
    eventually(lambda: listeners(server) == 1, "the worker listens again")
    system.ledger.open("go")
    # Then
    assert len({answer["receipt"] for answer in answers(results)}) == 1
    assert deliveries(system, results) == [2] * 10


def test_the_store_is_restarted(make_faulty: MakeSystem, own_server: RedisServer) -> None:
    """Scenario 72: the mark is in the record, which is on the disk; the worker subscribes again."""
    # Given
    system = make_faulty(store=own_server, idempotency_lease=30)
    system.start_worker(concurrency=2)
    results = waiting(system)
    # When
    own_server.restart()
    eventually(lambda: listeners(own_server) == 1, "the worker listens again")
    system.ledger.open("go")
    # Then
    assert len({answer["receipt"] for answer in answers(results, timeout=60)}) == 1
    assert system.ledger.count("effect") == 1


def test_nobody_may_publish(make_faulty: MakeSystem, redis_server: RedisServer) -> None:
    """Scenario 73: nothing fails; the worker looks, and those who wait are answered."""
    # Given
    with redis.Redis.from_url(redis_server.url()) as client:
        rights = ["+@all", "-publish", "-subscribe", "~*", "resetchannels"]
        client.execute_command("ACL", "SETUSER", "shop", "on", ">secret", *rights)
    url = f"redis://shop:secret@127.0.0.1:{redis_server.port}/{STORE_DB}"
    system = make_faulty(idempotency_store_url=url, idempotency_lease=30)
    system.start_worker(concurrency=2)
    # When
    results = waiting(system)
    system.ledger.open("go")
    # Then
    assert len({answer["receipt"] for answer in answers(results)}) == 1
    assert deliveries(system, results) == [2] * 10


def test_an_end_is_told_by_nobody(make_faulty: MakeSystem) -> None:
    """Scenario 74: the end is written, and its message is lost: a look finds it."""
    # Given
    system = make_faulty(idempotency_lease=3)
    system.start_worker(concurrency=2)
    results = waiting(system)
    eventually(lambda: listeners(system.store) == 1, "the worker listens")
    # When all marks are gone, as where an older release has renewed the lease
    with redis.Redis.from_url(system.store.url(STORE_DB)) as client:
        client.setrange(KEY, 2, b"\0")
    system.ledger.open("go")
    # Then
    assert len({answer["receipt"] for answer in answers(results)}) == 1
    assert deliveries(system, results) == [2] * 10


def test_a_wake_up_for_nothing(make_faulty: MakeSystem) -> None:
    """Scenario 75: a hint that is wrong, or comes too early, lets nobody in."""
    # Given
    system = make_faulty(idempotency_lease=3)
    system.start_worker(concurrency=2)
    results = waiting(system)
    eventually(lambda: listeners(system.store) == 1, "the worker listens")
    # When
    with redis.Redis.from_url(system.store.url(STORE_DB)) as client:
        for _ in range(10):
            client.publish(CHANNEL, "")
    outlive_lease(system.task("pay"), 1)
    assert deliveries(system, results) == [1] * 10
    system.ledger.open("go")
    # Then
    assert len({answer["receipt"] for answer in answers(results)}) == 1
    assert deliveries(system, results) == [2] * 10


def test_the_run_ends_before_its_waiter_is_listened_for(make_faulty: MakeSystem) -> None:
    """Scenario 76: the worker looks once it has subscribed, so that no end falls in between."""
    # Given
    system = make_faulty(idempotency_lease=30)
    system.start_worker(concurrency=2)
    for order in range(10):
        first = system.task("pay").delay(order, gate=f"go-{order}")
        system.ledger.wait_for("start", id=first.id)
        waiter = system.task("pay").delay(order, gate=f"go-{order}")
        system.ledger.wait_for("executed", id=waiter.id)
        # When the key is found busy at this moment, or its message is being put back
        system.ledger.open(f"go-{order}")
        # Then
        assert waiter.get(timeout=30) == first.get(timeout=30)
        assert system.ledger.count("executed", id=waiter.id) <= 2


def test_the_worker_that_holds_them_is_killed(make_rabbit_system: MakeSystem) -> None:
    """Scenario 77: the broker has their messages, and another worker takes them up."""
    # Given
    system = partial(make_rabbit_system, test_faults=True)(idempotency_lease=3)
    worker = system.start_worker(concurrency=2)
    results = waiting(system, 5)
    # When
    worker.kill()
    system.ledger.open("go")
    system.start_worker(concurrency=2)
    # Then
    assert len({answer["receipt"] for answer in answers(results, timeout=60)}) == 1
    assert system.ledger.count("effect") == 1


def test_the_broker_is_away_as_the_run_ends(make_rabbit_system: MakeSystem) -> None:
    """Scenario 80: what came over the old connection goes nowhere; it comes again, and is held."""
    # Given
    system = make_rabbit_system(test_faults=True, idempotency_lease=30)
    worker = system.start_worker(concurrency=2)
    results = waiting(system)
    eventually(lambda: listeners(system.store) == 1, "the worker listens")
    broker = system.broker
    assert isinstance(broker, RabbitBroker)
    # When the run ends while the worker makes its connection anew
    broker.proxy.refuse()
    eventually(lambda: broker.proxy.refused > 0, "the worker has lost its broker")
    system.ledger.open("go")
    system.ledger.wait_for("effect")
    broker.proxy.accept()
    # Then
    assert len({answer["receipt"] for answer in answers(results, timeout=60)}) == 1
    assert system.ledger.count("effect") == 1
    # And when those that wait are held over the new connection
    again = waiting_for(system, 2, "go-2")
    system.ledger.open("go-2")
    assert len({answer["receipt"] for answer in answers(again)}) == 1
    assert deliveries(system, again) == [2] * 10
    assert worker.running


def test_two_workers_hold_those_that_wait(make_faulty: MakeSystem) -> None:
    """Scenario 78: each is told, and lets its own in; after a free key, each lets one in first."""
    # Given
    system = make_faulty(idempotency_lease=30)
    for _ in range(2):
        system.start_worker(concurrency=2)
    results = waiting(system, 20)
    eventually(lambda: listeners(system.store) == 2, "both listen")
    # When the key is free, and one of them runs
    assert system.task("pay").forget(1)
    system.ledger.wait_for("start", times=2)
    system.ledger.open("go")
    # Then
    got = answers(results, timeout=60)
    assert len({answer["receipt"] for answer in got[1:]}) == 1
    assert sum(deliveries(system, results)) <= 2 * 20 + 2


def test_the_process_is_killed_when_its_end_is_recorded(make_faulty: MakeSystem) -> None:
    """Scenario 79: the end was told in the same step, so that nobody waits for a dead process."""
    # Given
    system = make_faulty(idempotency_lease=300)
    system.start_worker(concurrency=2, environment=kill_at("recorded"))
    results = waiting(system)
    # When
    system.ledger.open("go")
    # Then
    assert len({answer["receipt"] for answer in answers(results, timeout=60)}) == 1
    assert system.ledger.count("killed") == system.ledger.count("effect") == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_more_wait_than_are_let_in_at_once(make_faulty: MakeSystem, pool: str) -> None:
    """The others follow as soon as the worker's loop, or Celery's timer, goes on."""
    # Given
    system = make_faulty(idempotency_lease=30)
    system.start_worker(pool, concurrency=2)
    results = waiting(system, 2 * _AT_ONCE + 10)
    # When
    system.ledger.open("go")
    # Then
    assert len({answer["receipt"] for answer in answers(results, timeout=60)}) == 1
    assert set(deliveries(system, results)) == {2}
