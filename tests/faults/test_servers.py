"""Servers that are there and refuse: out of memory, read-only, without scripts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.replicas import tell
from tests.support.system import System, answers
from tests.support.waiting import eventually

LEASE = 300


@pytest.fixture
def store_server() -> Iterator[RedisServer]:
    """A server for the records alone, to be spoilt."""
    with RedisServer(args=("--maxmemory-policy", "noeviction")) as server:
        yield server


def fill(server: RedisServer) -> None:
    """Leave a server no memory for any write."""
    tell(server, "CONFIG", "SET", "maxmemory", "1")


def demote(server: RedisServer) -> None:
    """Make a server a read-only replica of nobody that answers, as in a failover."""
    tell(server, "REPLICAOF", "127.0.0.1", "1")


def heal(server: RedisServer) -> None:
    """Let a server write again."""
    tell(server, "CONFIG", "SET", "maxmemory", "0")
    tell(server, "REPLICAOF", "NO", "ONE")


def started(make_faulty: MakeSystem, server: RedisServer) -> System:
    system = make_faulty(store=server, idempotency_lease=LEASE)
    system.start_worker(concurrency=2)
    return system


@pytest.mark.parametrize("spoil", [fill, demote])
def test_a_claim_is_refused(
    make_faulty: MakeSystem, store_server: RedisServer, spoil: object
) -> None:
    """Scenarios 22 and 24: no body runs while the server refuses to write; then each runs once."""
    # Given
    system = started(make_faulty, store_server)
    pay = system.task("pay")
    before = pay.delay(0).get(timeout=30)
    # When
    spoil(store_server)  # type: ignore[operator]
    calls = [pay.delay(1), pay.delay(1), pay.delay(2)]
    for call in calls:
        system.ledger.wait_for("finished", id=call.id)
    # Then
    assert system.ledger.count("start") == 1
    assert not any(call.ready() for call in calls)
    # When
    heal(store_server)
    one, two, three = answers(calls, timeout=60)
    # Then
    assert one == two
    assert three["order"] == 2
    assert pay.delay(0).get(timeout=30) == before
    assert system.ledger.count("start") == system.ledger.count("effect") == 3


@pytest.mark.parametrize("spoil", [fill, demote])
def test_a_completion_is_refused(
    make_faulty: MakeSystem, store_server: RedisServer, spoil: object
) -> None:
    """Scenarios 22 and 24: the caller gets its result at once, and recording is tried again."""
    # Given
    system = started(make_faulty, store_server)
    pay = system.task("pay")
    first = pay.delay(1, gate="go")
    system.ledger.wait_for("start")
    # When
    spoil(store_server)  # type: ignore[operator]
    system.ledger.open("go")
    answer = first.get(timeout=30)
    heal(store_server)
    # Then
    eventually(lambda: pay.idempotency_record(1).is_done, "the outcome recorded")
    assert pay.delay(1, gate="go").get(timeout=30) == answer
    assert system.ledger.count("start") == system.ledger.count("effect") == 1


def test_scripts_are_flushed_in_every_moment(
    make_faulty: MakeSystem, store_server: RedisServer
) -> None:
    """Scenario 24: before the claim, during the run, before the end and the replay: invisible."""
    # Given
    system = started(make_faulty, store_server)
    pay = system.task("pay")
    # When
    tell(store_server, "SCRIPT", "FLUSH")
    first = pay.delay(1, gate="go")
    system.ledger.wait_for("start")
    tell(store_server, "SCRIPT", "FLUSH")
    system.ledger.open("go")
    answer = first.get(timeout=30)
    tell(store_server, "SCRIPT", "FLUSH")
    # Then
    assert pay.delay(1, gate="go").get(timeout=30) == answer
    assert system.ledger.count("start") == 1
    assert system.ledger.count("executed", id=first.id) == 1
