"""Scenario 60: the store is away or stands still for longer than the leases; all processes live."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.system import System, answers

LEASE = 2
ORDERS = (1, 2, 3)

#: How a server goes away, and comes back.
OUTAGES: dict[str, tuple[Callable[[RedisServer], None], Callable[[RedisServer], None]]] = {
    "stands still": (RedisServer.pause, RedisServer.resume),
    "is dead": (RedisServer.kill, RedisServer.restart),
}


def begun(system: System) -> list[object]:
    """Three runs that stand at the gate."""
    charge = system.task("charge")
    results = [charge.delay(order, gate="go") for order in ORDERS]
    system.ledger.wait_for("start", times=len(ORDERS))
    return results


def tried(system: System, results: list[object], more: int) -> None:
    """Wait until each of these calls has been delivered so many times more, and put back."""
    ids = [result.id for result in results]  # type: ignore[attr-defined]
    before = {task_id: system.ledger.count("finished", id=task_id) for task_id in ids}
    for task_id in ids:
        system.ledger.wait_for("finished", times=before[task_id] + more, id=task_id, timeout=60)


@pytest.mark.parametrize("outage", OUTAGES)
def test_no_duplicate_takes_over_from_a_run_that_lives(
    make_redis_system: MakeSystem, own_server: RedisServer, outage: str
) -> None:
    """Leases ran out meanwhile: the runs renew first, then the duplicates find them."""
    # Given
    goes, comes_back = OUTAGES[outage]
    system = make_redis_system(store=own_server, idempotency_lease=LEASE)
    system.start_worker(concurrency=6)
    firsts = begun(system)
    # When duplicates meet the outage, and come again when it is over
    goes(own_server)
    duplicates = [system.task("charge").delay(order, gate="go") for order in ORDERS]
    tried(system, duplicates, more=3)
    comes_back(own_server)
    tried(system, duplicates, more=3)
    system.ledger.open("go")
    # Then
    given = answers([*firsts, *duplicates], timeout=90)
    assert given[:3] == given[3:]
    assert system.ledger.count("start") == system.ledger.count("effect") == len(ORDERS)


@pytest.mark.parametrize("outage", OUTAGES)
def test_no_body_that_has_ended_runs_again(
    make_redis_system: MakeSystem, own_server: RedisServer, outage: str
) -> None:
    """Claims lie in the server's sockets, in front of the ends: as it wakes they get nothing."""
    # Given
    goes, comes_back = OUTAGES[outage]
    system = make_redis_system(store=own_server, idempotency_lease=LEASE)
    system.start_worker(concurrency=6)
    firsts = begun(system)
    # When the bodies end while their store is away
    goes(own_server)
    duplicates = [system.task("charge").delay(order, gate="go") for order in ORDERS]
    tried(system, duplicates, more=2)
    system.ledger.open("go")
    results = answers(firsts, timeout=60)
    tried(system, duplicates, more=1)
    comes_back(own_server)
    # Then
    assert answers(duplicates, timeout=90) == results
    assert system.ledger.count("start") == system.ledger.count("effect") == len(ORDERS)
