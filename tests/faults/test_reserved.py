"""Scenario 66: what was reserved for a call that never comes; real producers, workers and kills."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from celery_idempotent import IdempotencyInProgress
from tests.conftest import MakeSystem
from tests.support.producer import POINTS, publish_and_die
from tests.support.system import System
from tests.support.tasks import make_app
from tests.support.waiting import eventually


@pytest.fixture
def system(make_system: MakeSystem) -> System:
    return make_system(idempotency_on_enqueue="attach", idempotency_ttl=0)


def call(system: System, order: int) -> Any:
    """Make a call, and return its result, or that of the call that it was refused for."""
    try:
        return system.task("charge").delay(order)
    except IdempotencyInProgress as refused:
        return refused.result


@pytest.mark.parametrize("point", POINTS)
def test_no_call_is_lost_where_a_producer_is_killed(system: System, point: str) -> None:
    """Wherever it dies: who calls next is published, or gets the result of what was."""
    # Given
    publish_and_die(system.settings, point, "charge", 1)
    # When
    result = call(system, 1)
    # Then
    waiting = 2 if point == "published" else 1
    eventually(lambda: system.broker.messages() == waiting, f"{waiting} in the queue")
    # When
    system.start_worker(concurrency=1)
    # Then
    assert result.get(timeout=30)["order"] == 1
    system.wait_until_quiet()
    # What was published ran, for itself or with another; the next call runs again.
    assert call(system, 1).get(timeout=30)["order"] == 1
    assert system.ledger.count("start") == system.ledger.count("effect")


def test_a_publish_that_fails_stops_nobody(system: System) -> None:
    """The broker is away for one call."""
    # Given
    nowhere = {"broker_write_url": "amqp://guest@127.0.0.1:1//", "task_publish_retry": False}
    app = make_app({**system.settings, **nowhere})
    with pytest.raises((OperationalError, OSError)):
        app.tasks["shop.charge"].delay(1)
    # When
    result = call(system, 1)
    system.start_worker(concurrency=1)
    # Then
    assert result.get(timeout=30)["order"] == 1
    assert system.ledger.count("effect") == 1


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_a_queued_call_that_is_never_carried_out_stops_nobody(system: System, how: str) -> None:
    """It is revoked, or expires, before a worker begins with it."""
    # Given
    charge = system.task("charge")
    system.start_worker(concurrency=1)
    holder = charge.delay(2, gate="go")
    system.ledger.wait_for("start", id=holder.id)
    first = charge.apply_async((1,), expires=1 if how == "expired" else None)
    made = time.time()
    if how == "revoked":
        system.app.control.revoke(first.id, reply=True, timeout=30, limit=1)
    else:
        eventually(lambda: time.time() > made + 1, "expired")
    system.ledger.open("go")
    eventually(lambda: first.state == "REVOKED", "revoked")
    # When
    second = call(system, 1)
    # Then
    assert second.id != first.id
    assert second.get(timeout=30)["order"] == 1
    assert system.ledger.ids("effect") == {holder.id, second.id}


@pytest.mark.parametrize("how", ["attach", "raise"])
def test_what_is_queued_is_not_published_twice_and_runs_once(
    make_redis_system: MakeSystem, how: str
) -> None:
    """Twenty calls, no worker yet: one message, one effect, one result for all; then again."""
    # Given
    system = make_redis_system(idempotency_on_enqueue=how, idempotency_ttl=0)
    # When
    results = [call(system, 1) for _ in range(20)]
    # Then
    assert len({result.id for result in results}) == 1
    assert system.broker.messages() == 1
    # When
    system.start_worker(concurrency=2)
    # Then
    assert len({result.get(timeout=30)["receipt"] for result in results}) == 1
    again = call(system, 1)
    assert again.id != results[0].id
    assert again.get(timeout=30)["order"] == 1
    assert system.ledger.ids("effect") == {results[0].id, again.id}


def test_a_message_that_was_purged_stops_others_for_as_long_as_is_said(
    make_redis_system: MakeSystem,
) -> None:
    """``idempotency_queued_ttl``; ``forget`` ends it at once."""
    # Given
    system = make_redis_system(idempotency_on_enqueue="raise", idempotency_queued_ttl=2)
    charge = system.task("charge")
    first = charge.delay(1)
    system.app.control.purge()
    with pytest.raises(IdempotencyInProgress):
        charge.delay(1)
    # When
    system.start_worker(concurrency=1)

    def published() -> Any:
        with contextlib.suppress(IdempotencyInProgress):
            return charge.delay(1)
        return None

    # Then
    second = eventually(published, "published")
    assert second.id != first.id
    assert second.get(timeout=30)["order"] == 1
    # When
    gone = charge.apply_async((2,), queue="nobody-reads-this")
    with pytest.raises(IdempotencyInProgress):
        charge.delay(2)
    assert charge.forget(2)
    # Then
    again = charge.delay(2)
    assert again.id != gone.id
    assert again.get(timeout=30)["order"] == 2
