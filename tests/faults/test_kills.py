"""SIGKILL at every instant between claim and ack: of a pool process, and of a whole machine."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from celery import chord

from celery_idempotent.core.record import Process
from tests.conftest import MakeSystem
from tests.support.faults import CONTAINER_VARIABLE, ENDED_VARIABLE, POINTS, kill_at
from tests.support.system import System

#: Outlasts each test: where the worker's parent lives, nobody waits for a lease to run out.
LONG_LEASE = 300


def pay_and_die(system: System, point: str, victim: str, **call: Any) -> Any:
    """A payment with a callback whose worker dies at that point, and what its caller gets."""
    dying = system.start_worker(concurrency=2, environment=kill_at(point, victim))
    result = system.task("pay").apply_async((1,), call, link=system.task("tail").s())
    system.ledger.wait_for("killed", point=point)
    if victim == "machine":
        dying.kill()
        system.start_worker(concurrency=2)
    answer = result.get(timeout=60)
    system.ledger.wait_for("tail")
    system.wait_until_quiet()
    return answer


@pytest.mark.parametrize("point", POINTS)
def test_a_process_that_dies(make_faulty: MakeSystem, point: str) -> None:
    """Scenarios 1 to 5: the effect is made twice only where it was made and not recorded."""
    # Given
    system = make_faulty(idempotency_lease=LONG_LEASE)
    # When
    answer = pay_and_die(system, point, "process")
    # Then
    starts = system.ledger.entries("start")
    tokens = [entry["token"] for entry in starts]
    assert tokens == sorted(set(tokens))
    assert len({entry["downstream"] for entry in starts}) == 1
    assert system.ledger.count("effect") == (2 if point == "effect made" else 1)
    assert starts[-1]["interrupted"] is (point in ("claimed", "effect made"))
    assert system.ledger.count("killed") == 1
    # Then the callback went out once, but where it was sent and that could not be noted
    tails = system.ledger.entries("tail")
    assert {entry["values"][0]["receipt"] for entry in tails} == {answer["receipt"]}
    assert len({entry["id"] for entry in tails}) == 1
    assert len(tails) == 1 or (point in ("answered", "noting") and len(tails) == 2)
    # Then a duplicate is answered with the same
    assert system.task("pay").delay(1).get(timeout=30) == answer


@pytest.mark.parametrize("point", ["before the claim", "claimed", "effect made", "recorded"])
def test_a_machine_that_dies(make_faulty: MakeSystem, point: str) -> None:
    """Scenarios 1 to 4, with nobody left to end a lease: the next worker takes over after it."""
    # Given
    system = make_faulty(idempotency_lease=2, visibility_timeout=3)
    # When
    answer = pay_and_die(system, point, "machine")
    # Then
    starts = system.ledger.entries("start")
    assert system.ledger.count("effect") == (2 if point == "effect made" else 1)
    assert starts[-1]["interrupted"] is (point in ("claimed", "effect made"))
    assert system.ledger.count("tail") == 1
    assert system.task("pay").delay(1).get(timeout=30) == answer


@pytest.mark.parametrize("point", ["retrying", "retried"])
def test_a_process_that_dies_in_its_retry(make_faulty: MakeSystem, point: str) -> None:
    """Scenario 31: a retry's message and the killed one's copy make one effect together."""
    # Given
    system = make_faulty(idempotency_lease=LONG_LEASE)
    # When
    answer = pay_and_die(system, point, "process", retries=1)
    # Then
    assert system.ledger.count("effect") == 1
    assert [entry["retries"] for entry in system.ledger.entries("start")][-1] == 1
    assert system.task("pay").delay(1, retries=1).get(timeout=30) == answer


def test_a_process_that_dies_between_two_steps(make_faulty: MakeSystem) -> None:
    """Scenario 6: the next run goes on after the last step that was recorded."""
    # Given
    system = make_faulty(idempotency_lease=LONG_LEASE)
    system.start_worker(concurrency=2, environment=kill_at("step pack"))
    # When
    result = system.task("ship").delay(1)
    # Then
    assert result.get(timeout=30) == ["charge", "pack", "send"]
    assert [entry["step"] for entry in system.ledger.entries("step")] == ["charge", "pack", "send"]
    first, second = system.ledger.entries("start")
    assert second["interrupted"]
    tokens = [entry["token"] for entry in system.ledger.entries("step")]
    assert tokens == [first["token"], first["token"], second["token"]]


def test_a_process_that_dies_while_it_undoes(make_faulty: MakeSystem) -> None:
    """Scenario 47: the compensation goes on, each step is undone once, the body runs no more."""
    # Given
    system = make_faulty(idempotency_lease=LONG_LEASE)
    system.start_worker(concurrency=2, environment=kill_at("undone pack"))
    # When
    result = system.task("ship").delay(1, fails=True)
    # Then
    with pytest.raises(ValueError, match="came back"):
        result.get(timeout=30)
    system.wait_until_quiet()
    assert system.ledger.count("killed") == 1
    assert [entry["step"] for entry in system.ledger.entries("undo")] == ["send", "pack", "charge"]
    assert system.ledger.count("start") == 1


def test_two_containers_with_one_host_name_and_pid(make_faulty: MakeSystem) -> None:
    """Scenario 49: a death in one ends what its own process held, never what the other's holds."""
    # Given two workers whose processes have one name, and a run in the first
    container = {CONTAINER_VARIABLE: "web:8"}
    system = make_faulty(
        idempotency_lease=LONG_LEASE, visibility_timeout=2, worker_prefetch_multiplier=1
    )
    system.start_worker(concurrency=1, environment=container)
    pay = system.task("pay")
    result = pay.delay(1, gate="go")
    (begun,) = system.ledger.wait_for("start")
    holder = pay.idempotency_record(1).process
    # When the second gets a copy of its message, loses its process with it, and gets it again
    second = system.start_worker(
        concurrency=1, environment={**container, **kill_at("before the claim")}
    )
    system.ledger.wait_for("killed")
    system.ledger.wait_for("finished", id=result.id)
    # Then its parent has asked for the end of what a process of that name held, and nothing ended
    host, number, boot = Process.unpack(holder)
    (lost,) = system.ledger.entries("named", pid=second.pid)
    assert (lost["host"], lost["number"]) == (host, number) == ("web", 8)
    assert lost["boot"] != boot
    assert pay.idempotency_record(1).process == holder
    assert system.ledger.count("start") == 1
    # When the process of the first dies, which nobody waits for: its own parent says so
    os.kill(begun["pid"], signal.SIGKILL)
    system.ledger.open("go")
    # Then
    answer = result.get(timeout=30)
    system.wait_until_quiet()
    assert answer["order"] == 1
    assert [entry["interrupted"] for entry in system.ledger.entries("start")] == [False, True]
    assert system.ledger.count("effect") == 1


def test_a_process_that_is_told_to_end_as_it_counts_a_part_of_a_chord(
    make_faulty: MakeSystem,
) -> None:
    """Scenario 83: it publishes the chord's body first, which nobody else would do."""
    # Given
    system = make_faulty(idempotency_lease=LONG_LEASE)
    system.start_worker(concurrency=2, environment={ENDED_VARIABLE: "1"})
    pay, body = system.task("pay"), system.task("body")
    # When
    result = chord([pay.s(1), pay.s(2)])(body.s())
    system.ledger.wait_for("told to end")
    # Then
    assert [it["order"] for it in result.get(timeout=60)] == [1, 2]
    system.wait_until_quiet()
    assert system.ledger.count("body") == 1
    assert system.ledger.count("start") == system.ledger.count("effect") == 2
