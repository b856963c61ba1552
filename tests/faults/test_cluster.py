"""Redis Cluster: records on three masters, and a slot that moves while a run has its key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_idempotent import ConfigurationError, StoreUnavailable
from celery_idempotent.stores.base import store_from_url
from celery_idempotent.stores.redis import RedisStore
from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.clusters import Cluster
from tests.support.replicas import tell
from tests.support.system import answers


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.close()


def other(cluster: Cluster, server: RedisServer) -> RedisServer:
    return next(it for it in cluster.servers if it is not server)


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
    source, slot = cluster.owner_of("{shop.pay:order:moving}")
    target = other(cluster, source)
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
