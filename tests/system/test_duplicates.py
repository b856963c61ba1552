"""Duplicates of one call, at once and later: one effect, and an answer for everyone."""

from __future__ import annotations

import pytest
from celery import group as celery_group
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from celery_idempotent import IdempotencyInProgress
from tests.conftest import MakeSystem
from tests.support.system import System, answers


def running_call(system: System, order: int = 1) -> AsyncResult:
    """A call whose body has begun and waits at the gate ``go``."""
    result: AsyncResult = system.task("charge").delay(order, gate="go")
    system.ledger.wait_for("start", id=result.id)
    return result


def test_twenty_at_once_are_one_effect_and_twenty_equal_answers(make_system: MakeSystem) -> None:
    """While one runs the nineteen others wait, without a pool slot each, and get its result."""
    # Given a pool with fewer slots than there are calls
    system = make_system()
    system.start_worker(concurrency=2)
    charge = system.task("charge")
    # When
    results = [charge.delay(1, gate="go") for _ in range(20)]
    system.ledger.wait_until(lambda it: len(it.ids("finished")) == 19, "each other was tried")
    assert system.ledger.count("effect") == 0
    system.ledger.open("go")
    # Then
    receipts = {answer["receipt"] for answer in answers(results, timeout=60)}
    assert len(receipts) == 1
    assert system.ledger.count("start") == system.ledger.count("effect") == 1
    assert {result.state for result in results} == {"SUCCESS"}


def test_ten_later_are_replayed(make_system: MakeSystem) -> None:
    """Calls that come when the outcome is known get it at once: one delivery each, no body."""
    # Given
    system = make_system()
    system.start_worker()
    charge = system.task("charge")
    first = charge.delay(1).get(timeout=30)
    # When
    later = [charge.delay(1) for _ in range(10)]
    # Then
    assert answers(later) == [first] * 10
    for result in later:
        assert system.ledger.count("executed", id=result.id) == 1
    assert system.ledger.count("start") == system.ledger.count("effect") == 1


def test_calls_that_differ_do_not_meet(make_system: MakeSystem) -> None:
    """Other keys, and the same key of another task, are other calls."""
    # Given
    system = make_system()
    system.start_worker()
    # When
    charges = [system.task("charge").delay(order) for order in (1, "1", 2)]
    echoes = [system.task("echo").delay("1", answer=answer) for answer in ("a", "b")]
    # Then
    assert len({answer["receipt"] for answer in answers(charges)}) == 3
    assert len(set(answers(echoes))) == 1
    assert system.ledger.count("effect") == 3


def test_raise_answers_with_an_error_at_once(make_system: MakeSystem) -> None:
    """With on_running="raise" a duplicate fails while the first runs, and is replayed after."""
    # Given
    system = make_system(idempotency_on_running="raise")
    system.start_worker()
    first = running_call(system)
    # When
    during = system.task("charge").delay(1, gate="go")
    # Then
    with pytest.raises(IdempotencyInProgress):
        during.get(timeout=30)
    assert first.state != "SUCCESS"
    # When
    system.ledger.open("go")
    answer = first.get(timeout=30)
    # Then
    assert system.task("charge").delay(1, gate="go").get(timeout=30) == answer
    assert system.ledger.count("start") == 1


def test_a_dropped_duplicate_ends_as_revoked(make_system: MakeSystem) -> None:
    """With on_running="drop" a duplicate is executed once and told why; a group does not hang."""
    # Given
    system = make_system(idempotency_on_running="drop")
    system.start_worker()
    first = running_call(system)
    # When
    dropped = system.task("charge").delay(1, gate="go")
    with pytest.raises(TaskRevokedError, match=f"is being run by task {first.id}"):
        dropped.get(timeout=30)
    charge = system.task("charge")
    group = celery_group(charge.s(1, gate="go"), charge.s(2)).apply_async()
    with pytest.raises(TaskRevokedError):
        group.get(timeout=30)
    system.ledger.open("go")
    first.get(timeout=30)
    system.wait_until_quiet()
    # Then
    assert system.ledger.count("executed", id=dropped.id) == 1
    assert system.ledger.count("start") == 2


def test_a_dropped_duplicate_with_a_callback_waits_instead(make_system: MakeSystem) -> None:
    """What others build on is never dropped: with a link the duplicate waits and is answered."""
    # Given
    system = make_system(idempotency_on_running="drop")
    system.start_worker()
    first = running_call(system)
    # When
    linked = system.task("charge").apply_async(
        (1,), {"gate": "go"}, link=system.task("tail").s("linked")
    )
    system.ledger.wait_for("finished", id=linked.id)
    system.ledger.open("go")
    # Then
    one, two = answers([first, linked])
    assert one == two
    system.ledger.wait_for("tail")


@pytest.mark.parametrize("ttl", [86400, 0])
def test_a_window_of_0_costs_no_more_deliveries_than_a_day(
    make_system: MakeSystem, ttl: int
) -> None:
    """Who waits gets the outcome by a second delivery; then the window counts."""
    # Given
    system = make_system(idempotency_ttl=ttl)
    system.start_worker()
    first = running_call(system)
    # When
    waits = system.task("charge").delay(1, gate="go")
    system.ledger.wait_for("finished", id=waits.id)
    system.ledger.open("go")
    # Then
    assert waits.get(timeout=30) == first.get(timeout=30)
    assert system.ledger.count("executed", id=waits.id) == 2
    # When
    later = system.task("charge").delay(1)
    # Then
    assert (later.get(timeout=30) == first.get()) is bool(ttl)
    assert system.ledger.count("effect") == 1 + (not ttl)


def test_waiting_spends_no_retries(make_system: MakeSystem) -> None:
    """A task that may not retry at all waits all the same."""
    # Given
    system = make_system(task_options={"shop.charge": {"max_retries": 0}})
    system.start_worker()
    first = running_call(system)
    # When
    second = system.task("charge").delay(1, gate="go")
    system.ledger.wait_for("finished", id=second.id)
    system.ledger.open("go")
    # Then
    one, two = answers([first, second])
    assert one == two
    tries = system.ledger.wait_for("executed", times=2, id=second.id)
    assert {entry["retries"] for entry in tries} == {0}


def test_waiting_has_an_end(make_system: MakeSystem) -> None:
    """A duplicate waits at most wait_timeout, then fails with IdempotencyInProgress."""
    # Given
    system = make_system(idempotency_wait_timeout=1)
    system.start_worker()
    first = running_call(system)
    # When
    second = system.task("charge").delay(1, gate="go")
    # Then
    with pytest.raises(IdempotencyInProgress):
        second.get(timeout=30)
    system.ledger.open("go")
    assert first.get(timeout=30)["order"] == 1
    assert system.ledger.count("start") == 1


def test_a_waiting_duplicate_shares_the_failure(make_system: MakeSystem) -> None:
    """A failure is shared with whoever waited for that run; who comes later runs."""
    # Given
    system = make_system()
    system.start_worker()
    task = system.task("fails_at_gate")
    first = task.delay(1, gate="go")
    system.ledger.wait_for("start", id=first.id)
    waiter = task.delay(1, gate="go")
    system.ledger.wait_for("finished", id=waiter.id)
    # When
    system.ledger.open("go")
    # Then
    one, two = answers([first, waiter])
    assert isinstance(one, ValueError)
    assert isinstance(two, ValueError)
    assert system.ledger.ids("start") == {first.id}
    # When
    later = task.delay(1, gate="go")
    # Then
    assert isinstance(answers([later])[0], ValueError)
    assert system.ledger.ids("start") == {first.id, later.id}


def test_off_is_plain_celery(make_system: MakeSystem) -> None:
    """With mode "off" each call runs; with "enforce" the same calls do not."""
    # Given
    system = make_system(task_options={"shop.charge": {"idempotency_mode": "off"}})
    system.start_worker()
    # When
    off = answers([system.task("charge").delay(1) for _ in range(3)])
    on = answers([system.task("echo").delay("x", answer=n) for n in range(3)])
    # Then
    assert len({answer["receipt"] for answer in off}) == 3
    assert len(set(on)) == 1
    assert system.ledger.count("start", name="shop.echo") == 1
