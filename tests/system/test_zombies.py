"""Runs that lost their key and do not know it yet: whatever they do is refused."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from celery.result import AsyncResult

from tests.conftest import MakeSystem
from tests.support.system import System
from tests.support.waiting import wait_until_dead

#: Short, so that it ends while the process that holds it stands still.
LEASE = 3
#: So late that a copy has taken over and answered, however busy the machine is.
TIME_LIMIT = 15


def overtaken(system: System, name: str, **kwargs: object) -> tuple[AsyncResult, AsyncResult, int]:
    """A run that was stopped for longer than its lease, and the call that ran in its place."""
    zombie: AsyncResult = system.task(name).delay(1, **kwargs)
    (begun,) = system.ledger.wait_for("start")
    os.kill(begun["pid"], signal.SIGSTOP)
    winner: AsyncResult = system.task(name).delay(1, **kwargs)
    system.ledger.wait_for("start", id=winner.id)
    return zombie, winner, begun["pid"]


def test_a_late_completion_is_refused(make_redis_system: MakeSystem) -> None:
    """The winner's outcome stands, and the zombie's caller gets it too."""
    # Given
    system = make_redis_system(idempotency_lease=LEASE)
    system.start_worker()
    zombie, winner, pid = overtaken(system, "charge", gate="go")
    # When
    system.ledger.open("go")
    answer = winner.get(timeout=30)
    os.kill(pid, signal.SIGCONT)
    # Then
    assert zombie.get(timeout=30) == answer
    assert system.task("charge").delay(1, gate="go").get(timeout=30) == answer
    assert system.ledger.count("start") == 2


def test_a_zombie_that_ends_first_waits_for_the_winner(make_redis_system: MakeSystem) -> None:
    """Its own outcome is refused though nobody has another yet; it gets the winner's."""
    # Given
    system = make_redis_system(idempotency_lease=LEASE)
    system.start_worker()
    zombie, winner, pid = overtaken(system, "charge_two_gates", first="a", second="b")
    # When the zombie ends while the winner still runs
    system.ledger.open("a")
    os.kill(pid, signal.SIGCONT)
    system.ledger.wait_for("finished", id=zombie.id)
    assert not zombie.ready()
    system.ledger.open("b")
    # Then
    assert zombie.get(timeout=30) == winner.get(timeout=30)
    assert system.ledger.count("start") == 2


def test_a_late_failure_changes_nothing(make_redis_system: MakeSystem) -> None:
    """A zombie that raises does not free the key, and its caller gets the winner's outcome."""
    # Given
    system = make_redis_system(idempotency_lease=LEASE)
    system.start_worker()
    zombie, winner, pid = overtaken(system, "first_fails", gate="go")
    # When
    system.ledger.open("go")
    answer = winner.get(timeout=30)
    os.kill(pid, signal.SIGCONT)
    # Then
    assert zombie.get(timeout=30) == answer
    assert system.task("first_fails").delay(1, gate="go").get(timeout=30) == answer
    assert system.ledger.count("start") == 2


def test_a_zombie_that_its_own_copy_overtook_leaves_a_message(
    make_redis_system: MakeSystem,
) -> None:
    """On Redis the zombie's ack is the copy's too: if the copy then dies, the task still runs."""
    # Given a run that stands still while its message is delivered again and taken over
    system = make_redis_system(visibility_timeout=2, idempotency_lease=LEASE)
    worker = system.start_worker()
    result = system.task("charge_two_gates").delay(1, first="a", second="b")
    (begun,) = system.ledger.wait_for("start")
    os.kill(begun["pid"], signal.SIGSTOP)
    system.ledger.wait_for("start", times=2, id=result.id)
    # When the zombie ends first, and then everything else dies
    system.ledger.open("a")
    os.kill(begun["pid"], signal.SIGCONT)
    system.ledger.wait_for("finished", id=result.id, pid=begun["pid"])
    system.ledger.wait_for("received", times=3, id=result.id)
    worker.kill()
    system.ledger.open("b")
    system.start_worker()
    # Then
    assert result.get(timeout=60)["order"] == 1
    assert system.ledger.count("start", id=result.id) >= 3
    assert len({entry["token"] for entry in system.ledger.entries("start")}) >= 3


def test_a_forgotten_run_ends_unrecorded(make_redis_system: MakeSystem) -> None:
    """forget during a run: its caller gets its result, and the next call runs anew."""
    # Given
    system = make_redis_system(idempotency_lease=300)
    system.start_worker()
    charge = system.task("charge")
    first = charge.delay(1, gate="go")
    system.ledger.wait_for("start")
    # When
    assert charge.forget(1)
    system.ledger.open("go")
    # Then
    answer = first.get(timeout=30)
    again = charge.delay(1, gate="go").get(timeout=30)
    assert again["receipt"] != answer["receipt"]
    assert charge.delay(1, gate="go").get(timeout=30) == again
    assert system.ledger.count("effect") == 2


def told(result: AsyncResult) -> tuple[str, Any]:
    """What the result backend has of a call now."""
    meta = result.backend.get_task_meta(result.id, cache=False)
    return meta["status"], repr(meta["result"])


@pytest.mark.long(25)
@pytest.mark.parametrize("results", ["redis", "sql"])
def test_a_hard_time_limit_of_a_zombie_changes_no_answer(
    make_system: MakeSystem, tmp_path: Path, results: str
) -> None:
    """The worker's parent stores no failure over what another delivery, or call, has answered."""
    # Given three runs that stand still until they meet their time limit
    backend = {"result_backend": f"db+sqlite:///{tmp_path / 'results.db'}"}
    system = make_system(
        visibility_timeout=2, idempotency_lease=LEASE, **(backend if results == "sql" else {})
    )
    system.start_worker(concurrency=8)
    options: dict[str, Any] = {"time_limit": TIME_LIMIT, "link_error": system.task("errback").s()}
    fails, charges = system.task("fails_at_gate"), system.task("charge")
    copied = [
        fails.apply_async((1,), {"gate": "go"}, **options),
        charges.apply_async((2,), {"gate": "go"}, **options),
    ]
    begun = system.ledger.wait_for("start", times=2)
    for one in begun:
        os.kill(one["pid"], signal.SIGSTOP)
    # When copies of their messages take over, and answer
    system.redeliver()
    for call in copied:
        system.ledger.wait_for("start", times=2, id=call.id)
    system.ledger.open("go")
    for call in copied:
        call.get(timeout=30, propagate=False)
    answers = [told(call) for call in copied]
    for one in begun:
        wait_until_dead(one["pid"])
    system.wait_until_quiet()
    # Then
    assert [state for state, _ in answers] == ["FAILURE", "SUCCESS"]
    assert [told(call) for call in copied] == answers
    assert [entry["failed"] for entry in system.ledger.entries("errback")] == [copied[0].id]
    assert system.ledger.count("start") == 4


@pytest.mark.long(25)
def test_a_zombie_with_a_hard_time_limit_gets_the_winners_outcome(make_system: MakeSystem) -> None:
    """As one that raises does: its message goes back, and waits for that outcome."""
    # Given
    system = make_system(visibility_timeout=60, idempotency_lease=LEASE)
    system.start_worker()
    errback = system.task("errback").s()
    zombie = system.task("charge").apply_async(
        (1,), {"gate": "go"}, time_limit=TIME_LIMIT, link_error=errback
    )
    (begun,) = system.ledger.wait_for("start")
    os.kill(begun["pid"], signal.SIGSTOP)
    winner = system.task("charge").delay(1, gate="go")
    system.ledger.wait_for("start", id=winner.id)
    # When it meets its limit before the winner ends
    wait_until_dead(begun["pid"])
    system.ledger.wait_for("finished", id=zombie.id)
    system.ledger.open("go")
    # Then
    assert zombie.get(timeout=30) == winner.get(timeout=30)
    assert system.ledger.count("start") == 2
    assert system.ledger.count("errback") == 0


@pytest.mark.parametrize("results", ["redis", "sql"])
def test_a_run_that_holds_its_key_fails_once_by_its_hard_time_limit(
    make_system: MakeSystem, tmp_path: Path, results: str
) -> None:
    """Its caller gets the failure, and its errback goes out once; Celery does both twice."""
    # Given
    backend = {"result_backend": f"db+sqlite:///{tmp_path / 'results.db'}"}
    system = make_system(idempotency_lease=30, **(backend if results == "sql" else {}))
    system.start_worker()
    # When
    limited = system.task("charge").apply_async(
        (1,), {"gate": "go"}, time_limit=1, link_error=system.task("errback").s()
    )
    # Then
    assert "TimeLimitExceeded" in repr(limited.get(timeout=30, propagate=False))
    wait_until_dead(system.ledger.entries("start")[0]["pid"])
    system.wait_until_quiet()
    assert told(limited)[0] == "FAILURE"
    assert [entry["failed"] for entry in system.ledger.entries("errback")] == [limited.id]
