"""A short pass over what matters most, run for every version of Python and Celery."""

from __future__ import annotations

import os
import signal

import pytest
from celery import chord

from tests.conftest import MakeSystem
from tests.support.system import answers

pytestmark = pytest.mark.matrix


def test_a_duplicate_gets_the_first_calls_result(make_system: MakeSystem) -> None:
    """Calls that are equal, however they are written, are one effect and one answer."""
    # Given
    system = make_system()
    system.start_worker()
    charge = system.task("charge")
    # When
    first = charge.delay(42, 100).get(timeout=30)
    later = answers([charge.delay(order=42, amount=100), charge.delay(42), charge.delay(42)])
    other = charge.delay(43, 100).get(timeout=30)
    # Then
    assert later == [first] * 3
    assert other["receipt"] != first["receipt"]
    assert system.ledger.count("effect", key=42) == 1
    assert system.ledger.count("effect", key=43) == 1


def test_a_duplicate_waits_for_the_running_call(make_system: MakeSystem) -> None:
    """A call whose key is running is answered when that run ends, and does not run itself."""
    # Given
    system = make_system()
    system.start_worker()
    charge = system.task("charge")
    first = charge.delay(1, gate="go")
    system.ledger.wait_for("start", id=first.id)
    # When
    second = charge.delay(1, gate="go")
    system.ledger.wait_for("finished", id=second.id)
    system.ledger.open("go")
    # Then
    one, two = answers([first, second])
    assert one == two
    assert system.ledger.count("start") == system.ledger.count("effect") == 1


def test_a_retry_keeps_its_key(make_system: MakeSystem) -> None:
    """A task that retries itself runs as often as it asks, and its duplicate not once."""
    # Given
    system = make_system()
    system.start_worker()
    flaky = system.task("charge_flaky")
    # When
    first = flaky.delay(1, fails=2)
    system.ledger.wait_for("start", id=first.id)
    second = flaky.delay(1, fails=2)
    # Then
    one, two = answers([first, second])
    assert one == two
    assert one["order"] == 1
    assert system.ledger.ids("start") == {first.id}
    assert system.ledger.count("start") == 3
    assert system.ledger.count("effect") == 1


def test_a_chord_with_a_duplicate_in_its_header_runs_its_body_once(make_system: MakeSystem) -> None:
    """Each part is answered, the duplicate with the first one's result, and the body runs once."""
    # Given
    system = make_system()
    system.start_worker()
    charge = system.task("charge")
    # When
    result = chord([charge.s(1), charge.s(1), charge.s(2)])(system.task("body").s())
    parts = result.get(timeout=30)
    # Then
    assert [part["order"] for part in parts] == [1, 1, 2]
    assert parts[0] == parts[1]
    system.wait_until_quiet()
    assert system.ledger.count("body") == 1
    assert system.ledger.count("effect") == 2


def test_a_pool_child_that_dies_is_followed_by_another_run(make_system: MakeSystem) -> None:
    """A run whose process is killed before its effect is run again, long before its lease ends."""
    # Given
    system = make_system(idempotency_lease=300)
    system.start_worker()
    result = system.task("charge").delay(1, gate="go")
    (begun,) = system.ledger.wait_for("start")
    # When
    os.kill(begun["pid"], signal.SIGKILL)
    system.ledger.open("go")
    # Then
    assert result.get(timeout=60)["order"] == 1
    first, second = system.ledger.entries("start")
    assert second["interrupted"]
    assert second["token"] > first["token"]
    assert system.ledger.count("effect") == 1
