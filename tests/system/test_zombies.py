"""Runs that lost their key and do not know it yet: whatever they do is refused."""

from __future__ import annotations

import os
import signal

from celery.result import AsyncResult

from tests.conftest import MakeSystem
from tests.support.system import System

#: Short, so that it ends while the process that holds it stands still.
LEASE = 1


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
