"""``idempotency_after_wait = "last"`` on real workers: the newest call runs, and answers others."""

from __future__ import annotations

import os
import signal
from typing import Any

from celery import chord
from celery.result import AsyncResult

from tests.conftest import MakeSystem
from tests.support.system import System, answers
from tests.support.waiting import PATIENCE_SECONDS, eventually

OPTIONS: dict[str, Any] = {
    "idempotency_ttl": 0,
    "idempotency_after_wait": "last",
    "idempotency_lease": 5,
}


def one_runs_and_three_wait(system: System) -> list[AsyncResult]:
    """Make four calls; each is made once the call before it runs, or waits."""
    charge, ledger = system.task("charge"), system.ledger
    results = [charge.delay(1, 0, gate="the first")]
    ledger.wait_for("start", id=results[0].id)
    for amount in (1, 2, 3):
        results.append(charge.delay(1, amount))
        ledger.wait_for("finished", id=results[-1].id, state="RETRY")
    return results


def amounts(got: list[Any]) -> list[int]:
    return [it["amount"] for it in got]


def ran(system: System) -> list[str]:
    """The ids of the calls that ran, in their order."""
    return [entry["id"] for entry in system.ledger.entries("start")]


def test_the_newest_of_those_that_wait_runs_and_answers_them(make_system: MakeSystem) -> None:
    """One long run, and three calls meanwhile: two runs, one after the other, and four answers."""
    # Given
    system = make_system(**OPTIONS)
    system.start_worker(concurrency=4)
    results = one_runs_and_three_wait(system)
    # When
    system.ledger.open("the first")
    # Then
    assert amounts(answers(results)) == [0, 3, 3, 3]
    assert ran(system) == [results[0].id, results[3].id]
    assert system.ledger.most_at_once() == 1


def test_the_child_that_ran_is_killed(make_redis_system: MakeSystem) -> None:
    """The calls that wait go on; the one that was cut off gets its own outcome, or the newest's."""
    # Given
    system = make_redis_system(**OPTIONS)
    system.start_worker(concurrency=4)
    results = one_runs_and_three_wait(system)
    (start,) = system.ledger.entries("start")
    # When
    os.kill(start["pid"], signal.SIGKILL)
    system.ledger.open("the first")
    got = amounts(answers(results))
    # Then
    assert got[0] in (0, 3)
    assert got[1:] == [3, 3, 3]
    assert ran(system)[-1] == results[3].id
    ends = [entry["id"] for entry in system.ledger.entries("end")]
    assert ends == ran(system)[1:]


def test_the_worker_is_killed_that_holds_those_that_wait(make_rabbit_system: MakeSystem) -> None:
    """Their messages come again, to another worker, and keep their places."""
    # Given
    system = make_rabbit_system(**OPTIONS, worker_prefetch_multiplier=1)
    first = system.start_worker(concurrency=1)
    charge, ledger = system.task("charge"), system.ledger
    results = [charge.delay(1, 0, gate="the first")]
    ledger.wait_for("start", id=results[0].id)
    second = system.start_worker(concurrency=1)
    for amount in (1, 2, 3):
        results.append(charge.delay(1, amount))
        ledger.wait_for("finished", id=results[-1].id, state="RETRY")
    # When
    second.kill()
    assert first.running
    system.start_worker(concurrency=2)
    ledger.open("the first")
    # Then
    assert amounts(answers(results)) == [0, 3, 3, 3]
    assert ran(system) == [results[0].id, results[3].id]
    assert ledger.most_at_once() == 1


def test_the_call_that_waits_is_revoked(make_redis_system: MakeSystem) -> None:
    """The one before it runs in its stead, once it was waited for, and answers the others."""
    # Given
    system = make_redis_system(**{**OPTIONS, "idempotency_lease": 2})
    system.start_worker(concurrency=4)
    results = one_runs_and_three_wait(system)
    # When
    results[3].revoke()
    eventually(lambda: results[3].state == "REVOKED", "the newest is revoked")
    system.ledger.open("the first")
    # Then
    first, second, third = amounts(answers(results[:3]))
    assert (first, third) == (0, 2)
    assert second in (1, 2)  # its own, where it came first of the two
    assert results[3].id not in ran(system)
    assert system.ledger.most_at_once() == 1


def test_members_of_a_chord_wait_and_are_displaced(make_redis_system: MakeSystem) -> None:
    """Each part is an outcome that began after its call was made; the body runs once."""
    # Given
    system = make_redis_system(**OPTIONS)
    system.start_worker(concurrency=4)
    charge, ledger = system.task("charge"), system.ledger
    first = charge.delay(1, 0, gate="the first")
    ledger.wait_for("start", id=first.id)
    total = chord([charge.s(1, 1), charge.s(1, 2)])(system.task("body").s())
    parts = total.parent.results
    for part in parts:
        ledger.wait_for("finished", id=part.id, state="RETRY")
    newest = charge.delay(1, 3)
    ledger.wait_for("finished", id=newest.id, state="RETRY")
    # When
    ledger.open("the first")
    # Then
    assert amounts(answers([first, newest])) == [0, 3]
    assert amounts(total.get(timeout=PATIENCE_SECONDS)) == [3, 3]
    assert ledger.count("body") == 1
    assert ran(system) == [first.id, newest.id]
