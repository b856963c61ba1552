"""Each pool that Celery has: prefork, threads, solo and gevent."""

from __future__ import annotations

import signal

import pytest

from tests.conftest import MakeSystem
from tests.support.system import answers, outlive_lease

POOLS = pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])


@POOLS
def test_duplicates_retries_and_replays(make_system: MakeSystem, pool: str) -> None:
    """Many calls of few keys, some of which retry: one effect a key, an answer for everyone."""
    # Given
    system = make_system()
    system.start_worker(pool)
    charge, flaky = system.task("charge"), system.task("charge_flaky")
    # When
    charges = [charge.delay(order % 4) for order in range(16)]
    retried = [flaky.delay("retried", fails=2, countdown=0.5) for _ in range(4)]
    # Then
    given = answers(charges, timeout=60)
    assert [answer["order"] for answer in given] == [order % 4 for order in range(16)]
    assert len({answer["receipt"] for answer in given}) == 4
    assert len({answer["receipt"] for answer in answers(retried, timeout=60)}) == 1
    assert charge.delay(0).get(timeout=30) == given[0]
    assert system.ledger.count("effect") == 5
    assert system.ledger.count("start", name="shop.charge_flaky") == 3


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_lease_is_kept_while_the_body_runs(make_redis_system: MakeSystem, pool: str) -> None:
    """The heartbeat renews it: a body that outlives its lease many times over is not taken over."""
    # Given
    system = make_redis_system(idempotency_lease=3)
    system.start_worker(pool)
    charge = system.task("charge")
    first = charge.delay(1, gate="go")
    (begun,) = system.ledger.wait_for("start")
    # When a duplicate has waited for longer than the lease it saw at first
    second = charge.delay(1, gate="go")
    system.ledger.wait_for("finished", id=second.id)
    outlive_lease(charge, 1)
    system.ledger.open("go")
    # Then
    one, two = answers([first, second])
    assert one == two
    assert system.ledger.entries("start") == [begun]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_a_warm_shutdown_leaves_nothing_behind(make_redis_system: MakeSystem, pool: str) -> None:
    """After TERM the process ends by itself: no thread of ours keeps it, and no key is held."""
    # Given
    system = make_redis_system(idempotency_lease=3)
    worker = system.start_worker(pool)
    result = system.task("charge").delay(1, gate="go")
    system.ledger.wait_for("start")
    # When
    worker.signal(signal.SIGTERM)
    system.ledger.open("go")
    # Then
    assert worker.wait_until_gone() == 0
    assert result.get(timeout=30)["order"] == 1
    assert system.task("charge").idempotency_record(1).is_done
