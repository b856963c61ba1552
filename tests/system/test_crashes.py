"""Processes that are killed: the run is taken over, counted, and in the end given up."""

from __future__ import annotations

import os
import signal

import pytest

from celery_idempotent import OutcomeUnknown
from tests.conftest import MakeSystem
from tests.support.system import answers

#: Far longer than any test: a lease that ends sooner was ended by somebody.
LONG_LEASE = 300
SHORT_LEASE = 3


def test_a_killed_pool_child_frees_its_key_at_once(make_system: MakeSystem) -> None:
    """The worker's parent ends the lease of a child that died: nobody waits for it to run out."""
    # Given
    system = make_system(idempotency_lease=LONG_LEASE)
    system.start_worker()
    result = system.task("charge").delay(1, gate="go")
    (begun,) = system.ledger.wait_for("start")
    # When
    os.kill(begun["pid"], signal.SIGKILL)
    system.ledger.open("go")
    # Then
    system.ledger.wait_for("effect", timeout=60)
    assert result.get(timeout=30)["order"] == 1
    first, second = system.ledger.entries("start")
    assert second["token"] > first["token"]
    assert (first["interrupted"], second["interrupted"]) == (False, True)
    assert system.ledger.count("received", id=result.id) >= 2
    assert system.ledger.count("effect") == 1


def test_the_death_of_one_child_leaves_the_keys_of_the_others(make_system: MakeSystem) -> None:
    """Only the dead process's own lease is ended: a call in the next child keeps its key."""
    # Given
    system = make_system(idempotency_lease=LONG_LEASE)
    system.start_worker(concurrency=3)
    charge = system.task("charge")
    dying, living = charge.delay(1, gate="one"), charge.delay(2, gate="two")
    (begun,) = system.ledger.wait_for("start", key=1)
    system.ledger.wait_for("start", key=2)
    # When
    os.kill(begun["pid"], signal.SIGKILL)
    system.ledger.open("one")
    dying.get(timeout=30)
    duplicate = charge.delay(2, gate="two")
    system.ledger.wait_for("finished", id=duplicate.id)
    # Then
    assert system.ledger.count("start", key=2) == 1
    system.ledger.open("two")
    one, two = answers([living, duplicate])
    assert one == two
    assert system.ledger.count("effect", key=2) == 1


def test_children_after_a_death_share_no_connection_with_their_parent(
    make_system: MakeSystem,
) -> None:
    """A child forked after the parent has talked to the store works as any other."""
    # Given
    system = make_system(idempotency_lease=LONG_LEASE)
    system.start_worker(concurrency=2)
    charge = system.task("charge")
    result = charge.delay(0, gate="go")
    (begun,) = system.ledger.wait_for("start")
    os.kill(begun["pid"], signal.SIGKILL)
    system.ledger.open("go")
    result.get(timeout=30)
    # When
    results = [charge.delay(order % 10 + 1) for order in range(40)]
    # Then
    given = answers(results, timeout=60)
    assert [answer["order"] for answer in given] == [order % 10 + 1 for order in range(40)]
    assert len({answer["receipt"] for answer in given}) == 10
    assert system.ledger.count("effect") == 11


def test_a_killed_worker_is_followed_by_another(make_system: MakeSystem) -> None:
    """When the broker delivers again, the next worker takes the key over once the lease is over."""
    # Given
    system = make_system(visibility_timeout=3, idempotency_lease=SHORT_LEASE)
    first_worker = system.start_worker()
    result = system.task("charge").delay(1, gate="go")
    (begun,) = system.ledger.wait_for("start")
    # When
    first_worker.kill()
    system.ledger.open("go")
    system.start_worker()
    # Then
    assert result.get(timeout=60)["order"] == 1
    again = system.ledger.entries("start")[-1]
    assert again["id"] == begun["id"]
    assert again["token"] > begun["token"]
    assert again["interrupted"]
    assert system.ledger.count("received", id=result.id) >= 2
    assert system.ledger.count("start") == 2
    assert system.ledger.count("effect") == 1


def test_a_duplicate_takes_over_what_nobody_delivers_again(make_redis_system: MakeSystem) -> None:
    """Where the first message stays lost, a waiting duplicate runs once the lease is over."""
    # Given a visibility timeout that outlasts the test
    system = make_redis_system(visibility_timeout=3600, idempotency_lease=SHORT_LEASE)
    first_worker = system.start_worker()
    lost = system.task("charge").delay(1, gate="go")
    system.ledger.wait_for("start", id=lost.id)
    first_worker.kill()
    system.ledger.open("go")
    # When
    system.start_worker()
    duplicate = system.task("charge").delay(1, gate="go")
    # Then
    assert duplicate.get(timeout=60)["order"] == 1
    assert [entry["id"] for entry in system.ledger.entries("start")] == [lost.id, duplicate.id]
    assert system.ledger.count("effect") == 1


def test_a_task_that_kills_its_worker_is_given_up(make_system: MakeSystem) -> None:
    """After max_interruptions it fails with OutcomeUnknown, and so do its duplicates, unrun."""
    # Given
    system = make_system(idempotency_lease=LONG_LEASE, idempotency_max_interruptions=2)
    system.start_worker(concurrency=1)
    task = system.task("kills_its_process")
    # When
    result = task.delay(1)
    # Then
    with pytest.raises(OutcomeUnknown):
        result.get(timeout=60)
    assert system.ledger.count("start") == 3
    # When
    duplicate = task.delay(1)
    # Then
    with pytest.raises(OutcomeUnknown):
        duplicate.get(timeout=30)
    assert system.ledger.count("start") == 3


def test_an_interruption_can_be_final(make_system: MakeSystem) -> None:
    """With on_interrupted="unknown" a run that was killed is not run again."""
    # Given
    system = make_system(idempotency_lease=LONG_LEASE, idempotency_on_interrupted="unknown")
    system.start_worker()
    result = system.task("charge").delay(1, gate="go")
    (begun,) = system.ledger.wait_for("start")
    # When
    os.kill(begun["pid"], signal.SIGKILL)
    system.ledger.open("go")
    # Then
    with pytest.raises(OutcomeUnknown):
        result.get(timeout=30)
    assert system.ledger.count("start") == 1
    assert system.ledger.count("effect") == 0
