"""Runs that stand still for longer than their lease, and go on as if nothing had been."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from celery_idempotent.settings import environment_of
from tests.conftest import MakeSystem
from tests.support.system import System, answers
from tests.support.waiting import eventually

#: Short, so that it ends while the process that holds it stands still.
LEASE = 1


def now_ms(system: System) -> int:
    """The store's clock."""
    return environment_of(system.app).store.now_ms()


def test_a_late_completion_that_nobody_overtook(make_faulty: MakeSystem) -> None:
    """Scenario 11: stopped for longer than its lease, and nobody took over: it is accepted."""
    # Given
    system = make_faulty(idempotency_lease=LEASE)
    system.start_worker(concurrency=1)
    pay = system.task("pay")
    result = pay.delay(1, gate="go")
    (begun,) = system.ledger.wait_for("start")
    # When
    os.kill(begun["pid"], signal.SIGSTOP)
    eventually(
        lambda: pay.idempotency_record(1).until_ms <= now_ms(system),
        "the lease over",
    )
    system.ledger.open("go")
    os.kill(begun["pid"], signal.SIGCONT)
    # Then
    answer = result.get(timeout=30)
    assert pay.delay(1, gate="go").get(timeout=30) == answer
    assert system.ledger.count("start") == system.ledger.count("effect") == 1
    assert system.ledger.count("lost") == 0


def test_a_zombie_can_ask(make_faulty: MakeSystem) -> None:
    """Scenario 12: its heartbeat is refused, and check() says so before the effect."""
    # Given
    system = make_faulty(idempotency_lease=LEASE)
    system.start_worker(concurrency=2)
    asks = system.task("asks")
    zombie = asks.delay(1, gate="go")
    (begun,) = system.ledger.wait_for("start")
    os.kill(begun["pid"], signal.SIGSTOP)
    winner = asks.delay(1, gate="go")
    system.ledger.wait_for("start", id=winner.id)
    # When it goes on while the winner runs
    os.kill(begun["pid"], signal.SIGCONT)
    system.ledger.wait_for("lost")
    system.ledger.open("go")
    # Then
    (refused,) = system.ledger.wait_for("refused")
    assert refused["token"] == begun["token"]
    answer = winner.get(timeout=30)
    assert zombie.get(timeout=30) == answer
    assert system.ledger.count("effect") == 1


def test_a_zombies_retry_changes_nothing(make_faulty: MakeSystem) -> None:
    """Scenario 10: a run that retries after it was overtaken gets the winner's outcome."""
    # Given
    system = make_faulty(idempotency_lease=LEASE)
    system.start_worker(concurrency=2)
    task = system.task("first_retries")
    zombie = task.delay(1, gate="go")
    (begun,) = system.ledger.wait_for("start")
    os.kill(begun["pid"], signal.SIGSTOP)
    winner = task.delay(1, gate="go")
    system.ledger.wait_for("start", id=winner.id)
    # When
    system.ledger.open("go")
    answer = winner.get(timeout=30)
    os.kill(begun["pid"], signal.SIGCONT)
    # Then
    assert zombie.get(timeout=30) == answer
    system.wait_until_quiet()
    assert system.ledger.count("start") == 2
    assert system.ledger.count("effect") == 1


@pytest.mark.parametrize("overtaken", [True, False], ids=["overtaken", "alone"])
def test_the_gil_is_held(make_faulty: MakeSystem, tmp_path: Path, overtaken: bool) -> None:
    """Scenario 14: no heartbeat comes while it is held: the run is overtaken, or accepted late."""
    # Given
    system = make_faulty(idempotency_lease=LEASE)
    system.start_worker(concurrency=2)
    stall, pipe = system.task("stall"), str(tmp_path / "pipe")
    os.mkfifo(pipe)
    calls = [stall.delay(1, pipe)]
    (begun,) = system.ledger.wait_for("start")
    # When
    if overtaken:
        calls.append(stall.delay(1, pipe))
        system.ledger.wait_for("start", times=2)
    else:
        eventually(
            lambda: stall.idempotency_record(1, pipe).until_ms <= now_ms(system), "the lease over"
        )
    os.close(os.open(pipe, os.O_WRONLY))
    # Then
    given = answers(calls)
    assert stall.delay(1, pipe).get(timeout=30) == given[0]
    assert len({answer["receipt"] for answer in given}) == 1
    starts = system.ledger.entries("start")
    assert len(starts) == (2 if overtaken else 1)
    assert starts[-1]["token"] >= begun["token"]
    assert starts[-1]["interrupted"] is overtaken
