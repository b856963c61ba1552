"""A Django project with real workers: what a body writes and its completion are one transaction."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_idempotent.testing.servers import RedisServer
from tests.support.django_system import DjangoSystem, kill
from tests.support.djangos import database_of
from tests.support.waiting import eventually

MakeSystem = Callable[..., DjangoSystem]


@pytest.fixture(params=["postgresql", "sqlite"])
def make(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path
) -> Iterator[MakeSystem]:
    """Make a project with an empty database of each kind."""
    made: list[DjangoSystem] = []
    with database_of(request.param, tmp_path) as alias:

        def make_one(**settings: Any) -> DjangoSystem:
            from tests.django_project.shop.models import Account

            Account.objects.using(alias).create(name="ann")
            made.append(DjangoSystem(redis_server, alias, tmp_path, **settings))
            return made[-1]

        yield make_one
        for system in made:
            system.close()


def test_a_duplicate_is_answered_and_pays_once(make: MakeSystem) -> None:
    """As with every store."""
    # Given
    system = make()
    system.start_worker()
    # When
    first, second = system.send("shop.deposit", 1, 100), system.send("shop.deposit", 1, 100)
    # Then
    assert (first.get(timeout=30), second.get(timeout=30)) == (100, 100)
    assert system.balance() == 100
    assert system.ledger.count("start") == 1


def test_a_run_killed_after_its_write_leaves_nothing_of_it(make: MakeSystem) -> None:
    """The redelivery pays; the killed run's increment was never committed."""
    # Given
    system = make(idempotency_lease=3)
    system.start_worker()
    result = system.send("shop.deposit", 1, 100, gates=True)
    system.ledger.open("before-1")
    (written,) = system.ledger.wait_for("written")
    before = system.balance()
    # When
    os.kill(written["pid"], signal.SIGKILL)
    system.ledger.open("after-1")
    # Then
    assert result.get(timeout=60) == 100
    assert (before, system.balance()) == (0, 100)
    assert system.ledger.count("start") == 2


def test_a_worker_killed_in_any_moment_pays_once(make: MakeSystem) -> None:
    """Twenty payments, and a worker that is lost in the middle of them, pool and all."""
    # Given
    system = make(
        idempotency_lease=2,
        broker_transport_options=_redeliver_soon(4),
        worker_prefetch_multiplier=10,
    )
    worker = system.start_worker()
    results = [system.send("shop.deposit", number, 10, gates=True) for number in range(20)]
    # And a kill between kombu's taking a message from Redis and its noting that would lose it
    eventually(lambda: system.log.count("] received") == 20, "the worker has all messages")
    # When
    for number in range(20):
        system.ledger.open(f"before-{number}")
        system.ledger.open(f"after-{number}")
    system.ledger.wait_for("written", times=5)
    kill(worker)
    system.start_worker()
    # Then
    assert [result.get(timeout=80) for result in results] == [10] * 20
    assert system.balance() == 200
    keys = [entry["key"] for entry in system.ledger.entries("committed")]
    assert len(keys) == len(set(keys))


def test_a_body_that_fails_leaves_nothing_and_may_be_tried_again(make: MakeSystem) -> None:
    """Its writes are rolled back, and the key is free."""
    # Given
    system = make()
    system.start_worker()
    # When
    with pytest.raises(ValueError, match="declined"):
        system.send("shop.deposit", 1, 100, fails=True).get(timeout=30)
    after_failure = system.balance()
    # Then
    assert system.send("shop.deposit", 1, 100).get(timeout=30) == 100
    assert (after_failure, system.balance()) == (0, 100)


def test_a_run_that_lost_its_key_leaves_nothing(make: MakeSystem) -> None:
    """The key was forgotten while the body ran: its writes are rolled back, and it begins anew."""
    # Given
    from celery_idempotent.django.store import DjangoStore

    system = make()
    if system.settings["url"].startswith("sqlite"):
        return  # one writer: nobody can forget a key whose body is under way
    system.start_worker()
    lost = system.send("shop.deposit", 1, 100, gates=True)
    system.ledger.wait_for("start")
    # When
    store = DjangoStore(system.alias)
    (name,) = store.scan("*{shop.deposit:*")
    assert store.forget(name, 60_000)
    system.ledger.open("before-1")
    system.ledger.open("after-1")
    # Then
    assert lost.get(timeout=60) == 100
    assert system.ledger.count("written") == 2
    assert system.ledger.count("committed") == 1
    assert system.balance() == 100


def test_a_long_body_keeps_its_key(make: MakeSystem) -> None:
    """By the heartbeat where others may write, by its write lock where they may not."""
    # Given
    system = make(idempotency_lease=1, idempotency_wait_timeout=60)
    system.start_worker()
    first = system.send("shop.deposit", 1, 100, gates=True)
    system.ledger.wait_for("start")
    # When the lease would be over several times
    system.ledger.open("before-1")
    system.ledger.wait_for("written")
    second = system.send("shop.deposit", 1, 100, gates=True)
    since = time.monotonic()
    eventually(lambda: time.monotonic() - since > 4, "four leases have passed")
    system.ledger.open("after-1")
    # Then
    assert (first.get(timeout=60), second.get(timeout=60)) == (100, 100)
    assert system.balance() == 100
    assert system.ledger.count("start") == 1


def _redeliver_soon(visibility_timeout: int) -> dict[str, Any]:
    return {
        "visibility_timeout": visibility_timeout,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }


def test_the_token_fences_an_assignment(make: MakeSystem) -> None:
    """An update by a queryset is refused, and says so, where a later run has written."""
    # Given
    from tests.django_project.shop.models import Account

    system = make()
    system.start_worker()
    rows = Account.objects.using(system.alias).filter(name="ann")
    # When
    assert system.send("shop.settle", 1, 50).get(timeout=30) == 1
    token = rows.get().token
    rows.update(token=token + 10**12)
    # Then
    assert token > 0
    late = system.send("shop.settle", 2, 70)
    assert "a later run has written" in str(late.get(timeout=30, propagate=False))
    assert system.balance() == 50
