"""Scenario 60: the store is away or stands still for longer than the leases; all processes live."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.system import System, answers

LEASE = 8
ORDERS = (1, 2, 3)
CONCURRENCY = 6

#: How a server goes away, and comes back.
OUTAGES: dict[str, tuple[Callable[[RedisServer], None], Callable[[RedisServer], None]]] = {
    "stands still": (RedisServer.pause, RedisServer.resume),
    "is dead": (RedisServer.kill, RedisServer.restart),
}


def begun(system: System) -> list[Any]:
    """Three runs that stand at a gate, in a worker whose processes all know the store."""
    system.start_worker(concurrency=CONCURRENCY)
    charge = system.task("charge")
    known = [charge.delay(f"known {number}", gate="known") for number in range(CONCURRENCY)]
    system.ledger.wait_for("start", times=CONCURRENCY)
    system.ledger.open("known")
    answers(known)
    results = [charge.delay(order, gate="go") for order in ORDERS]
    for order in ORDERS:
        system.ledger.wait_for("start", key=order)
    return results


def tried(system: System, results: list[Any], more: int = 1) -> None:
    """Wait until each of these calls has been delivered so many times more, and put back."""
    before = {result.id: system.ledger.count("finished", id=result.id) for result in results}
    for task_id, count in before.items():
        system.ledger.wait_for("finished", times=count + more, id=task_id, timeout=60)


def starts(system: System) -> dict[int, int]:
    """How many bodies of each order have begun."""
    return {order: system.ledger.count("start", key=order) for order in ORDERS}


@pytest.mark.parametrize("outage", OUTAGES)
def test_no_duplicate_takes_over_from_a_run_that_lives(
    make_redis_system: MakeSystem, own_server: RedisServer, outage: str
) -> None:
    """Scenario 60: the leases ran out; the runs renew first, though they are slow to notice."""
    # Given
    goes, comes_back = OUTAGES[outage]
    system = make_redis_system(store=own_server, idempotency_lease=LEASE)
    firsts = begun(system)
    runs = [entry["pid"] for entry in system.ledger.entries("start") if entry["key"] in ORDERS]
    # When duplicates meet the outage, and come again when it is over
    goes(own_server)
    over = time.monotonic() + LEASE + 1
    duplicates = [system.task("charge").delay(order, gate="go") for order in ORDERS]
    tried(system, duplicates)
    system.ledger.wait_until(lambda _: time.monotonic() > over, "the leases are over", 60)
    for pid in runs:
        os.kill(pid, signal.SIGSTOP)
    try:
        comes_back(own_server)
        tried(system, duplicates)
    finally:
        for pid in runs:
            os.kill(pid, signal.SIGCONT)
    system.ledger.open("go")
    # Then
    given = answers([*firsts, *duplicates], timeout=90)
    assert given[:3] == given[3:]
    assert starts(system) == dict.fromkeys(ORDERS, 1)


@pytest.mark.parametrize("outage", OUTAGES)
def test_no_body_that_has_ended_runs_again(
    make_redis_system: MakeSystem, own_server: RedisServer, outage: str
) -> None:
    """Scenario 60: claims lie in its sockets, before the ends; as it wakes they get nothing."""
    # Given
    goes, comes_back = OUTAGES[outage]
    system = make_redis_system(store=own_server, idempotency_lease=LEASE)
    firsts = begun(system)
    # When the bodies end while their store is away
    goes(own_server)
    over = time.monotonic() + LEASE + 1
    duplicates = [system.task("charge").delay(order, gate="go") for order in ORDERS]
    tried(system, duplicates)
    system.ledger.open("go")
    results = answers(firsts, timeout=60)
    system.ledger.wait_until(lambda _: time.monotonic() > over, "the leases are over", 60)
    comes_back(own_server)
    # Then
    assert answers(duplicates, timeout=90) == results
    assert starts(system) == dict.fromkeys(ORDERS, 1)
