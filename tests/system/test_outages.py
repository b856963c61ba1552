"""The store or the broker away for a while: nothing is lost, nothing is run twice."""

from __future__ import annotations

import pytest
import redis
from celery import Celery

from celery_idempotent import IdempotentTask, State, StoreUnavailable
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.settings import everywhere
from celery_idempotent.stores.urls import store_from_url
from celery_idempotent.testing.deliveries import deliver
from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.brokers import RabbitBroker
from tests.support.locks import LOCKS
from tests.support.system import System, answers

#: A lease that outlasts the test, so that no takeover hides a mistake.
LEASE = 300


def tried(system: System, ids: set[str], times: int = 1) -> None:
    """Wait until each of these calls was tried by a worker, and put back."""
    for task_id in ids:
        system.ledger.wait_for("finished", times=times, id=task_id, timeout=60)


def test_calls_wait_for_a_store_that_is_away(
    make_system: MakeSystem, own_server: RedisServer
) -> None:
    """While the store is dead no body runs; once it is back each key runs once, all get answers."""
    # Given
    system = make_system(store=own_server, idempotency_lease=LEASE)
    system.start_worker()
    charge = system.task("charge")
    before = charge.delay(0).get(timeout=30)
    # When
    own_server.kill()
    results = [charge.delay(order % 3 + 1) for order in range(6)] + [charge.delay(0)]
    tried(system, {result.id for result in results})
    # Then
    assert system.ledger.count("start") == 1
    assert not any(result.ready() for result in results)
    # When
    own_server.restart()
    given = answers(results, timeout=90)
    # Then
    assert [answer["order"] for answer in given] == [1, 2, 3, 1, 2, 3, 0]
    assert given[:3] == given[3:6]
    assert given[6] == before
    assert system.ledger.count("start") == system.ledger.count("effect") == 4


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_at_the_enqueue_keeps_nothing_back(
    make_system: MakeSystem, own_server: RedisServer, lock: str
) -> None:
    """Scenario 57: a base's ``apply_async`` locks; a call that is put back or retried gets past it.

    The lock is held by that very call, from its enqueue to its end.
    """
    # Given
    system = make_system(store=own_server, idempotency_lease=LEASE, test_locks=True)
    system.start_worker(concurrency=2)
    charge = system.task(f"locked_{lock}")
    charge.delay(0).get(timeout=30)
    # When
    own_server.kill()
    first, flaky = charge.delay(1), charge.delay(2, fails=2)
    tried(system, {first.id, flaky.id}, times=2)
    own_server.restart()
    # Then
    given = answers([first, flaky], timeout=60)
    assert [answer["order"] for answer in given] == [1, 2]
    assert system.ledger.count("start", key=2) == 3
    assert system.ledger.count("effect") == 3
    # And the lock is as free as after any call
    system.wait_until_quiet()
    again = charge.delay(1)
    assert again.get(timeout=30) == given[0]


def test_a_paused_store_counts_no_interruptions(
    make_system: MakeSystem, own_server: RedisServer
) -> None:
    """Claims that the server executes after the worker gave up are undone: each body runs once."""
    # Given
    system = make_system(store=own_server, idempotency_lease=LEASE)
    system.start_worker()
    charge = system.task("charge")
    charge.delay(0).get(timeout=30)
    # When it takes what is sent and answers nothing, for longer than the worker waits
    own_server.pause()
    results = [charge.delay(order % 3 + 1) for order in range(6)]
    tried(system, {result.id for result in results})
    system.ledger.wait_until(lambda it: it.count("executed") > 7, "one was tried again", 60)
    own_server.resume()
    # Then
    given = answers(results, timeout=90)
    assert given[:3] == given[3:]
    assert system.ledger.count("start") == system.ledger.count("effect") == 4
    assert not any(entry["interrupted"] for entry in system.ledger.entries("start"))
    for order in (1, 2, 3):
        assert charge.idempotency_record(order).interruptions == 0


@pytest.mark.parametrize("empty", [False, True], ids=["kept", "emptied"])
def test_a_run_that_ends_while_the_store_is_away_is_recorded_later(
    make_redis_system: MakeSystem, own_server: RedisServer, empty: bool
) -> None:
    """Its caller gets its result at once, and a duplicate is replayed, though all was lost."""
    # Given
    system = make_redis_system(store=own_server, idempotency_lease=LEASE)
    system.start_worker()
    charge = system.task("charge")
    first = charge.delay(1, gate="go")
    system.ledger.wait_for("start")
    # When
    own_server.kill()
    system.ledger.open("go")
    answer = first.get(timeout=60)
    own_server.restart(empty=empty)

    def recorded(_: object) -> bool:
        record = charge.idempotency_record(1)
        return record is not None and record.is_done

    system.ledger.wait_until(recorded, "the outcome recorded", 60)
    # Then
    assert charge.delay(1, gate="go").get(timeout=30) == answer
    assert system.ledger.count("start") == system.ledger.count("effect") == 1


def test_an_end_is_told_until_the_server_is_back(own_server: RedisServer) -> None:
    """The server is away at the end, and at the next try: the outcome is recorded all the same."""
    # Given a body during which the server goes away
    app = Celery("outages", broker="memory://", set_as_current=False)

    @app.task(base=IdempotentTask, idempotency_key="order:{order}", shared=False)
    def charge(order: int) -> str:
        own_server.kill()
        return "charged"

    store = store_from_url(own_server.url())
    with everywhere(store):
        first = deliver(charge, (1,))
        # When it is told again, and again once the server is back
        assert not heartbeat.flush(0.1)
        own_server.restart()
        assert heartbeat.flush(30)
        # Then the next call runs nothing
        assert first.get() == deliver(charge, (1,)).get() == "charged"
        assert charge.idempotency_record(1).state is State.SUCCEEDED
    store.close()


def test_an_outage_can_be_an_error(make_redis_system: MakeSystem, own_server: RedisServer) -> None:
    """With on_store_error="raise" the call fails with StoreUnavailable, its body not run."""
    # Given
    system = make_redis_system(store=own_server, idempotency_on_store_error="raise")
    system.start_worker()
    own_server.kill()
    # When
    result = system.task("charge").delay(1)
    # Then
    with pytest.raises(StoreUnavailable):
        result.get(timeout=60)
    assert system.ledger.count("start") == 0
    # When
    own_server.restart()
    # Then
    assert system.task("charge").delay(1).get(timeout=30)["order"] == 1


def test_an_outage_can_be_run_through(
    make_redis_system: MakeSystem, own_server: RedisServer
) -> None:
    """With on_store_error="run" the body runs, without a token, though nobody guards it."""
    # Given
    system = make_redis_system(store=own_server, idempotency_on_store_error="run")
    system.start_worker()
    own_server.kill()
    # When
    results = [system.task("charge").delay(1) for _ in range(2)]
    # Then
    assert [answer["order"] for answer in answers(results, timeout=60)] == [1, 1]
    assert [entry["token"] for entry in system.ledger.entries("start")] == [None, None]


def test_forgotten_scripts_are_sent_again(
    make_redis_system: MakeSystem, own_server: RedisServer
) -> None:
    """A server that has lost the scripts (restart, failover, SCRIPT FLUSH) is no outage."""
    # Given
    system = make_redis_system(store=own_server)
    system.start_worker(concurrency=1)
    charge = system.task("charge")
    first = charge.delay(1).get(timeout=30)
    # When
    with redis.Redis.from_url(own_server.url()) as client:
        client.script_flush()
    # Then
    assert charge.delay(1).get(timeout=30) == first
    second = charge.delay(2)
    assert second.get(timeout=30)["order"] == 2
    assert system.ledger.count("executed", id=second.id) == 1


def test_a_wait_that_cannot_be_published_goes_back_to_the_broker(
    make_rabbit_system: MakeSystem,
) -> None:
    """With the broker away a waiting duplicate is not lost: it is answered when all is back."""
    # Given
    system = make_rabbit_system(idempotency_lease=LEASE)
    broker = system.broker
    assert isinstance(broker, RabbitBroker)
    system.start_worker()
    charge = system.task("charge")
    first = charge.delay(1, gate="go")
    system.ledger.wait_for("start", id=first.id)
    second = charge.delay(1, gate="go")
    system.ledger.wait_for("finished", id=second.id)
    # When
    broker.proxy.refuse()
    system.ledger.open("go")
    first.get(timeout=30)
    broker.proxy.accept()
    # Then
    one, two = answers([first, second], timeout=90)
    assert one == two
    assert system.ledger.count("start") == system.ledger.count("effect") == 1


def test_a_retry_that_cannot_be_published_goes_back_to_the_broker(
    make_rabbit_system: MakeSystem,
) -> None:
    """Celery would drop the message there and fail the call: it comes again, no retry is spent."""
    # Given
    system = make_rabbit_system(idempotency_lease=LEASE)
    broker = system.broker
    assert isinstance(broker, RabbitBroker)
    system.start_worker()
    result = system.task("never_works").delay(1, gate="attempt", countdown=0)
    system.ledger.wait_for("start", id=result.id)
    # When
    broker.proxy.refuse()
    system.ledger.open("attempt-0")
    (finished,) = system.ledger.wait_for("finished", id=result.id, timeout=60)
    broker.proxy.accept()
    # Then
    assert finished["state"] == "REJECTED"
    system.ledger.open("attempt-1")
    system.ledger.open("attempt-2")
    system.ledger.wait_for("start", id=result.id, retries=2, timeout=90)
    assert isinstance(result.get(timeout=60, propagate=False), ValueError)
    assert [entry["retries"] for entry in system.ledger.entries("start")] == [0, 0, 1, 2]


def test_callbacks_that_cannot_be_sent_are_sent_later(make_rabbit_system: MakeSystem) -> None:
    """A run that ends while the broker is away is no failure: its tail comes with the broker."""
    # Given
    system = make_rabbit_system(idempotency_lease=LEASE)
    broker = system.broker
    assert isinstance(broker, RabbitBroker)
    system.start_worker()
    first = system.task("charge").apply_async(
        (1,), {"gate": "go"}, link=system.task("tail").s("linked")
    )
    system.ledger.wait_for("start", id=first.id)
    # When
    broker.proxy.refuse()
    system.ledger.open("go")
    system.ledger.wait_for("finished", id=first.id, timeout=60)
    broker.proxy.accept()
    # Then
    system.ledger.wait_for("tail", timeout=90)
    assert first.get(timeout=60)["order"] == 1
    system.wait_until_quiet()
    assert system.ledger.count("tail") == 1
    assert system.ledger.count("start") == system.ledger.count("effect") == 1
