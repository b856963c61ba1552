"""Redis Cluster: records on three masters, slots that move meanwhile, and a master that dies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from celery_idempotent import ConfigurationError, StoreUnavailable
from celery_idempotent.core.verdicts import Claim, Claimed, Recorded, Renewal
from celery_idempotent.stores.redis.store import RedisStore
from celery_idempotent.stores.urls import store_from_url
from celery_idempotent.testing.contract.kit import (
    FIRST,
    KEEP_MS,
    KEY,
    LEASE_MS,
    RESULT,
    complete,
    hold,
    renew,
    replace,
    step,
    stored,
)
from tests.conftest import MakeSystem
from tests.support.clusters import Cluster
from tests.support.replicas import tell
from tests.support.system import answers


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.close()


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A cluster for this test alone, to be broken."""
    made = Cluster()
    yield made
    made.close()


def record_key(order: object) -> str:
    """Under which key the store has the record of a payment, as far as its slot goes."""
    return f"{{shop.pay:order:{order}}}"


def test_a_slot_moves_during_a_run(make_faulty: MakeSystem, cluster: Cluster) -> None:
    """Scenario 24: MOVED, ASK and TRYAGAIN are followed or waited for; every call is answered."""
    # Given runs on every node
    system = make_faulty(idempotency_store_url=cluster.url, idempotency_lease=300)
    system.start_worker(concurrency=3)
    pay = system.task("pay")
    before = answers([pay.delay(order) for order in range(20)])
    held = pay.delay("moving", gate="go")
    system.ledger.wait_for("start", key="moving")
    # When the slot of one key is neither here nor there
    source, slot = cluster.owner_of(record_key("moving"))
    target = cluster.another(source)
    cluster.begin_move(slot, source, target)
    duplicate = pay.delay("moving", gate="go")
    system.ledger.wait_for("finished", id=duplicate.id)
    cluster.end_move(slot, source, target)
    system.ledger.open("go")
    # Then
    one, two = answers([held, duplicate], timeout=60)
    assert one == two
    assert answers([pay.delay(order) for order in range(20)]) == before
    assert system.ledger.count("start") == system.ledger.count("effect") == 21
    assert tell(target, "CLUSTER", "COUNTKEYSINSLOT", slot) > 0
    # When it goes back, an idle client is told that it has moved
    store = store_from_url(cluster.url)
    assert pay.idempotency_record("moving").is_done
    cluster.begin_move(slot, target, source)
    cluster.end_move(slot, target, source)
    assert pay.idempotency_record("moving").is_done
    store.close()


def test_slots_move_under_load(make_faulty: MakeSystem, cluster: Cluster) -> None:
    """Scenario 24: slots move while calls begin and end in them: one effect each, all answered.

    Each key is called twice, and it is always the slot of the newest one that moves.
    """
    # Given
    system = make_faulty(idempotency_store_url=cluster.url, idempotency_lease=300)
    system.start_worker(concurrency=4)
    pay = system.task("pay")
    orders = ["load-0"]
    moved: list[int] = []
    enough = threading.Event()

    def keep_moving() -> None:
        while not enough.is_set():
            source, slot = cluster.owner_of(record_key(orders[-1]))
            target = cluster.another(source)
            cluster.begin_move(slot, source, target)
            cluster.end_move(slot, source, target)
            moved.append(slot)

    # When
    with ThreadPoolExecutor(1) as mover:
        moving = mover.submit(keep_moving)
        try:
            calls = [pay.delay("load-0"), pay.delay("load-0")]
            while (len(orders) < 60 or len(set(moved)) < 10) and not moving.done():
                orders.append(f"load-{len(orders)}")
                calls += [pay.delay(orders[-1]), pay.delay(orders[-1])]
                system.ledger.wait_for("effect", times=len(orders) - 20)
        finally:
            enough.set()
        moving.result()
    # Then
    given = answers(calls, timeout=60)
    assert [answer["order"] for answer in given] == [it for order in orders for it in (order,) * 2]
    assert given[::2] == given[1::2]
    assert system.ledger.count("start") == system.ledger.count("effect") == len(orders)


def test_what_has_moved_is_found_in_a_slot_that_moves(cluster: Cluster) -> None:
    """Scenario 24: ASK is followed by scripts and plain commands, and replicas are waited for."""
    # Given a run with a step and a slip, all of which have moved, in a slot that has not
    store = store_from_url(cluster.url)
    careful = store_from_url(cluster.url, {"wait_replicas": 1, "socket_timeout": 2.0})
    held = hold(store)
    step(store, held)
    source, slot = cluster.owner_of(KEY)
    target = cluster.another(source)
    tell(source, "SET", FIRST.slip_key, replace(FIRST.slip, digests=b"").pack())
    cluster.begin_move(slot, source, target)
    cluster.move_keys(slot, source, target)
    tell(target, "SCRIPT", "FLUSH")
    # Then
    assert stored(store).token == held.token
    assert [it.token for it in store.get_many([KEY])] == [held.token]
    assert store.steps(KEY) == {"charge": b"42"}
    assert renew(store, held) == Recorded(held.token)
    with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
        complete(careful, held)
    assert complete(store, held) == Recorded(held.token)
    cluster.end_move(slot, source, target)
    assert stored(store).outcome == RESULT
    store.close()
    careful.close()


def test_a_slot_without_an_end_is_an_outage(cluster: Cluster) -> None:
    """Scenario 24: where only a part of what a script needs has moved, the store is away for it."""
    # Given
    store = store_from_url(cluster.url)
    source, slot = cluster.owner_of("{half}")
    target = cluster.another(source)
    cluster.begin_move(slot, source, target)
    # Then
    with pytest.raises(StoreUnavailable, match="refused to work"):
        store.claim("{half}", Claim(FIRST.candidate(), LEASE_MS, KEEP_MS))
    # When
    cluster.end_move(slot, source, target)
    # Then
    assert isinstance(store.claim("{half}", Claim(FIRST.candidate(), LEASE_MS, KEEP_MS)), Claimed)
    store.close()


def test_a_master_dies_and_its_replica_takes_over(
    make_faulty: MakeSystem, own_cluster: Cluster
) -> None:
    """Scenario 23 on one node: its keys wait, all others go on; the replica then has them."""
    # Given
    cluster = own_cluster
    dead, _ = cluster.owner_of(record_key("held"))
    replica = cluster.add_replica(dead)
    system = make_faulty(idempotency_store_url=cluster.url, idempotency_lease=300)
    system.start_worker(concurrency=3)
    pay = system.task("pay")
    held = pay.delay("held", gate="go")
    system.ledger.wait_for("start", key="held")
    there = [number for number in range(9) if cluster.owner_of(record_key(number))[0] is dead]
    elsewhere = [number for number in range(9) if number not in there]
    assert there
    assert elsewhere
    cluster.wait_until_same(dead, replica)
    # When
    dead.kill()
    waiting = [pay.delay("held", gate="go"), *(pay.delay(number) for number in there)]
    going_on = [pay.delay(number) for number in elsewhere]
    # Then
    assert [answer["order"] for answer in answers(going_on)] == elsewhere
    for call in waiting:
        system.ledger.wait_for("finished", id=call.id)
    assert not any(call.ready() for call in waiting)
    # When the run ends before anybody has taken over
    system.ledger.open("go")
    answer = held.get(timeout=30)
    cluster.take_over(replica)
    # Then
    given = answers(waiting, timeout=60)
    assert given[0] == answer
    assert [it["order"] for it in given[1:]] == there
    assert system.ledger.count("start") == system.ledger.count("effect") == 10


def test_a_dead_master_keeps_no_other_from_being_heard(
    own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One heartbeat renews leases on every node: those on a dead one are refused, the rest hold."""
    # Given
    cluster = own_cluster
    store = store_from_url(cluster.url)
    claimed = []
    for number in range(30):
        message, key = FIRST.candidate(), f"{{{number}}}"
        token = store.claim(key, Claim(message, LEASE_MS, KEEP_MS)).token
        claimed.append(Renewal(key, replace(message, token=token), LEASE_MS, KEEP_MS))
    dead = cluster.owner_of("{0}")[0]
    lost = [cluster.owner_of(one.key)[0] is dead for one in claimed]
    tried = []
    connect = store._wire._connect
    monkeypatch.setattr(
        store._wire, "_connect", lambda host, port: tried.append(port) or connect(host, port)
    )
    # When
    dead.kill()
    renewed = store.renew(claimed)
    # Then
    assert [isinstance(answer, StoreUnavailable) for answer in renewed] == lost
    assert [isinstance(answer, Recorded) for answer in renewed] == [not it for it in lost]
    assert 3 < sum(lost) < 30
    # And it is not waited for once for each of them
    assert tried.count(dead.port) <= 3
    store.close()


def test_a_node_alone_says_where_the_key_is(cluster: Cluster) -> None:
    """Scenario 24: a URL of one server, where there is a cluster, is an error that says MOVED."""
    elsewhere = next(
        f"{{{order}}}"
        for order in range(100)
        if cluster.owner_of(f"{{{order}}}")[0] is not cluster.servers[0]
    )
    store = RedisStore.from_url(cluster.servers[0].url())
    with pytest.raises(StoreUnavailable, match="MOVED"):
        store.peek(elsewhere)
    store.close()


@pytest.mark.parametrize("url", ["redis+cluster://host", "redis+cluster://host:1/2"])
def test_a_wrong_url_is_said(url: str) -> None:
    """Nodes are host:port, and there is only one database."""
    with pytest.raises(ConfigurationError):
        store_from_url(url)
