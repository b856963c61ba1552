"""A master that dies with what its replica has not heard of, and Sentinels that choose another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from celery_idempotent import ConfigurationError, StoreUnavailable
from celery_idempotent.core.verdicts import Claim, Recorded
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.urls import store_from_url
from celery_idempotent.testing.contract.given_back import give_back
from celery_idempotent.testing.contract.kit import (
    FIRST,
    KEEP_MS,
    LEASE_MS,
    WRITES,
    Ending,
    complete,
    hold,
    retry,
    stored,
)
from tests.conftest import MakeSystem
from tests.support.replicas import Pair, Sentinel, info
from tests.support.system import STORE_DB, System, answers
from tests.support.waiting import eventually

#: Outlasts each test: no takeover hides a mistake.
LEASE = 300


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def behind(make_faulty: MakeSystem, pair: Pair, **settings: object) -> System:
    """A system on the master of a pair, both of which know what there is."""
    pair.follow()
    system = make_faulty(
        idempotency_store_url=pair.url(STORE_DB), idempotency_lease=LEASE, **settings
    )
    system.start_worker(concurrency=2)
    system.task("pay").delay(0).get(timeout=30)
    pair.wait_until_same()
    return system


def test_a_failover_that_loses_a_claim(make_faulty: MakeSystem, pair: Pair) -> None:
    """Scenario 18: two runs, of which one is accepted; the other is told, and both get one answer.

    That is the limit: what a master had not told its replica is gone.
    """
    # Given
    system = behind(make_faulty, pair)
    pay = system.task("pay")
    pair.line.refuse()
    first = pay.delay(1, gate="go")
    system.ledger.wait_for("start", id=first.id)
    # When
    pair.fail_over()
    second = pay.delay(1, gate="go")
    system.ledger.wait_for("start", id=second.id)
    system.ledger.open("go")
    # Then
    one, two = answers([first, second])
    assert one == two
    assert pay.delay(1, gate="go").get(timeout=30) == one
    assert system.ledger.count("start", key=1) == system.ledger.count("effect", key=1) == 2
    system.ledger.wait_for("lost")


def test_a_failover_that_loses_a_completion(make_faulty: MakeSystem, pair: Pair) -> None:
    """Scenario 19: the next call runs again, which is the limit of a store that answers first."""
    # Given
    system = behind(make_faulty, pair)
    pay = system.task("pay")
    pair.line.refuse()
    first = pay.delay(1).get(timeout=30)
    # When
    pair.fail_over()
    # Then
    second = pay.delay(1).get(timeout=30)
    assert second["receipt"] != first["receipt"]
    assert system.ledger.count("effect", key=1) == 2
    # And the one that was recorded is answered
    assert pay.delay(1).get(timeout=30) == second


def test_waiting_for_a_replica_loses_no_completion(make_faulty: MakeSystem, pair: Pair) -> None:
    """Scenario 19, with idempotency_wait_replicas: what no replica has is told again."""
    # Given a claim that the replica has, and an end that it has not
    system = behind(make_faulty, pair, idempotency_wait_replicas=1)
    pay = system.task("pay")
    first = pay.delay(1, gate="go")
    system.ledger.wait_for("start", id=first.id)
    pair.wait_until_same()
    pair.line.refuse()
    system.ledger.open("go")
    answer = first.get(timeout=30)
    # When
    pair.fail_over()
    # Then
    eventually(lambda: pay.idempotency_record(1).is_done, "recorded by the new master")
    assert pay.delay(1, gate="go").get(timeout=30) == answer
    assert system.ledger.count("effect", key=1) == 1


@pytest.mark.parametrize(
    "ending", sorted(set(WRITES) - {"renew", "step", "interrupt", "compensate"})
)
def test_an_end_told_again_is_counted_by_itself(pair: Pair, ending: str) -> None:
    """Scenario 61: a replica that lags while connected has none of the tellings of an end.

    From version 7.2 on a server waits for what its *connection* wrote last. On another one than the
    first telling's that would be nothing, or something which the replica has.
    """
    # Given a claim that the replica has, and a second connection whose last write it has
    pair.follow()
    options = {"wait_replicas": 1, "socket_timeout": 1.0}
    first, second, fresh = (store_from_url(pair.url(STORE_DB), options) for _ in range(3))
    held = hold(first)
    second.claim("another {key}", Claim(FIRST.candidate(), LEASE_MS, KEEP_MS))
    pair.wait_until_same()
    pair.line.hold_answers()
    # Then
    for store in (first, second, fresh, second):
        with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
            WRITES[ending](store, held)
    # When the replica is there again
    ended = stored(first)
    pair.line.accept()
    # Then
    assert isinstance(WRITES[ending](second, held), Recorded)
    assert stored(second) == ended


@pytest.mark.parametrize("ending", [give_back, complete, retry])
def test_the_end_of_a_run_that_gave_its_key_up_is_counted_by_itself(
    pair: Pair, ending: Ending
) -> None:
    """Scenario 61: so is that, and that it gives its key up. Both stand in its slip."""
    # Given a run that has given its key up, as the replica knows
    pair.follow()
    options = {"wait_replicas": 1, "socket_timeout": 1.0}
    first, second = (store_from_url(pair.url(STORE_DB), options) for _ in range(2))
    held = hold(first)
    if ending is not give_back:
        give_back(first, held)
    second.claim("another {key}", Claim(FIRST.candidate(), LEASE_MS, KEEP_MS))
    pair.wait_until_same()
    pair.line.hold_answers()
    # Then
    for store in (first, second, second):
        with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
            ending(store, held)
    # When the replica is there again
    before = first.slip(FIRST.slip_key)
    pair.line.accept()
    # Then
    assert isinstance(ending(second, held), Recorded)
    assert second.slip(FIRST.slip_key) == before


def test_an_end_on_no_replica_is_told_on(make_faulty: MakeSystem, pair: Pair) -> None:
    """Scenario 61: the end that a lagging replica doesn't have is told to it as the new master."""
    # Given a claim that the replica has
    options = {"socket_timeout": 1.0}
    system = behind(
        make_faulty, pair, idempotency_wait_replicas=1, idempotency_store_options=options
    )
    pay = system.task("pay")
    first = pay.delay(1, gate="go")
    system.ledger.wait_for("start", id=first.id)
    pair.wait_until_same()
    # When it lags, and the end is told again on a connection that wrote nothing before
    pair.line.hold_answers()
    system.ledger.open("go")
    answer = first.get(timeout=30)
    before = waits(pair)
    pair.front.cut()
    eventually(lambda: waits(pair) > before, "told again")
    pair.fail_over()
    # Then
    eventually(lambda: pay.idempotency_record(1).is_done, "recorded by the new master")
    assert pay.delay(1, gate="go").get(timeout=30) == answer
    assert system.ledger.count("effect", key=1) == 1


def waits(pair: Pair) -> int:
    """How often the master has waited for its replica."""
    found = info(pair.master, "commandstats").get("cmdstat_wait", {"calls": 0})
    return int(found["calls"])


def test_sentinel_fails_over_under_load(
    make_faulty: MakeSystem, pair: Pair, tmp_path: Path
) -> None:
    """Scenario 24: the workers find the new master by themselves, and every call is answered."""
    # Given
    pair.follow(pair.master.port)
    sentinel = Sentinel(tmp_path, pair.master)
    try:
        system = make_faulty(
            idempotency_store_url=f"sentinel://127.0.0.1:{sentinel.port}/{STORE_DB}",
            idempotency_store_options={"master_name": "shop"},
            idempotency_lease=LEASE,
        )
        system.start_worker(concurrency=3)
        pay = system.task("pay")
        held = pay.delay(0, gate="go")
        system.ledger.wait_for("start", key=0)
        pair.wait_until_same()
        # When calls come before the failover, while it goes on, and after it
        calls = [pay.delay(order) for order in range(1, 11)]
        pair.master.kill()
        calls += [pay.delay(order) for order in range(1, 21)]
        eventually(
            lambda: sentinel.master_port() == pair.replica.port, "another master", timeout=60
        )
        system.ledger.open("go")
        calls += [pay.delay(order) for order in range(11, 26)]
        # Then
        given = answers([held, *calls], timeout=90)
        orders = [*range(1, 11), *range(1, 21), *range(11, 26)]
        assert [answer["order"] for answer in given[1:]] == orders
        # What came before the kill may not have reached the replica; the rest is made once.
        assert all(system.ledger.count("effect", key=order) == 1 for order in [0, *range(11, 26)])
        later = answers([pay.delay(order) for order in range(11, 26)])
        assert len({answer["receipt"] for answer in later}) == 15
        assert later == given[-15:]
    finally:
        sentinel.close()


def test_only_redis_has_replicas_to_wait_for() -> None:
    """Another store with idempotency_wait_replicas is a mistake, and is called one."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(idempotency_store_url="memory://", idempotency_wait_replicas=1)
    with pytest.raises(ConfigurationError, match="idempotency_wait_replicas is for a store in"):
        environment_of(app)
