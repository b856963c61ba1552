"""Link, chain, chord and errbacks: once for each call, whatever is delivered how often.

The callbacks are plain tasks: a deduplicated one could not fire twice, and the test not fail.
"""

from __future__ import annotations

import pytest
from celery import chain, chord, group

from tests.conftest import MakeSystem
from tests.support.brokers import RABBITMQ_SENDS_COPIES
from tests.support.system import System, answers


def deliver_again(system: System, task_id: str) -> None:
    """Have the message of a running task delivered once more, and turned away by the worker."""
    finished = system.ledger.count("finished", id=task_id)
    system.redeliver()
    system.ledger.wait_for("finished", times=finished + 1, id=task_id)


def test_each_call_has_its_own_callback(make_system: MakeSystem) -> None:
    """A duplicate's link fires too, once, with the first call's result."""
    # Given
    system = make_system()
    system.start_worker()
    charge, tail = system.task("charge"), system.task("tail")
    # When
    calls = [charge.apply_async((1,), link=tail.s(number)) for number in range(3)]
    given = answers(calls)
    system.ledger.wait_for("tail", times=3)
    system.wait_until_quiet()
    # Then
    tails = system.ledger.entries("tail")
    assert sorted(entry["values"][1] for entry in tails) == [0, 1, 2]
    assert [entry["values"][0] for entry in tails] == [given[0]] * 3
    assert system.ledger.count("effect") == 1


@RABBITMQ_SENDS_COPIES
@pytest.mark.matrix
def test_a_chain_whose_head_is_delivered_again_has_one_tail(make_system: MakeSystem) -> None:
    """The head is delivered again while it runs: the tail is sent once, by one of the two."""
    # Given
    system = make_system(visibility_timeout=2, idempotency_lease=300)
    system.start_worker()
    result = chain(
        system.task("charge").s(1, gate="go"), system.task("tail").s("end")
    ).apply_async()
    head = result.parent
    system.ledger.wait_for("start", id=head.id)
    # When
    deliver_again(system, head.id)
    system.ledger.open("go")
    # Then
    assert result.get(timeout=30)["order"] == 1
    system.wait_until_quiet()
    assert system.ledger.count("executed", id=head.id) >= 3
    assert system.ledger.count("tail") == 1
    assert system.ledger.count("effect") == 1


def test_a_copy_that_comes_after_the_end_sends_nothing(make_system: MakeSystem) -> None:
    """A copy of the same message, callbacks and all, is replayed and calls nobody back."""
    # Given
    system = make_system()
    system.start_worker()
    charge, tail = system.task("charge"), system.task("tail")
    first = charge.apply_async((1,), link=tail.s("linked"))
    answer = first.get(timeout=30)
    system.ledger.wait_for("tail")
    system.wait_until_quiet()
    # When
    charge.apply_async((1,), link=tail.s("linked"), task_id=first.id)
    system.ledger.wait_for("finished", times=2, id=first.id)
    system.wait_until_quiet()
    # Then
    assert system.ledger.count("tail") == 1
    assert charge.AsyncResult(first.id).get(timeout=30) == answer


def test_a_copy_of_a_failed_call_sends_no_second_errback(make_system: MakeSystem) -> None:
    """Errbacks are callbacks: once for each task id."""
    # Given
    system = make_system()
    system.start_worker()
    task = system.task("charge_or_fail")
    options = {"link_error": system.task("errback").s(), "kwargs": {"works_after": "never"}}
    first = task.apply_async((1,), **options)
    first.get(timeout=30, propagate=False)
    system.ledger.wait_for("errback", failed=first.id)
    system.wait_until_quiet()
    # When
    task.apply_async((1,), task_id=first.id, **options)
    system.ledger.wait_for("finished", times=2, id=first.id)
    other = task.apply_async((1,), **options)
    other.get(timeout=30, propagate=False)
    system.ledger.wait_for("errback", failed=other.id)
    system.wait_until_quiet()
    # Then
    assert system.ledger.count("errback", failed=first.id) == 1
    assert system.ledger.count("errback", failed=other.id) == 1


def test_a_chord_with_duplicates_runs_its_body_once(make_system: MakeSystem) -> None:
    """Every part is answered, duplicates with one result, though they had to wait for it."""
    # Given
    system = make_system()
    system.start_worker()
    charge = system.task("charge")
    header = [charge.s(1, gate="go"), charge.s(1, gate="go"), charge.s(2), charge.s(1, gate="go")]
    # When
    result = chord(header)(system.task("body").s())
    system.ledger.wait_until(lambda it: len(it.ids("finished")) >= 3, "each part was tried")
    assert system.ledger.count("effect", key=1) == 0
    system.ledger.open("go")
    # Then
    parts = result.get(timeout=60)
    assert [part["order"] for part in parts] == [1, 1, 2, 1]
    assert len({part["receipt"] for part in parts}) == 2
    system.wait_until_quiet()
    assert system.ledger.count("body") == 1
    assert system.ledger.count("effect") == 2


@RABBITMQ_SENDS_COPIES
@pytest.mark.matrix
def test_a_chord_whose_part_is_delivered_again_runs_its_body_once(make_system: MakeSystem) -> None:
    """A part that is delivered again while it runs is counted once."""
    # Given
    system = make_system(visibility_timeout=2, idempotency_lease=300)
    system.start_worker()
    charge = system.task("charge")
    result = chord([charge.s(1, gate="one"), charge.s(2, gate="two")])(system.task("body").s())
    (begun,) = system.ledger.wait_for("start", key=1)
    system.ledger.wait_for("start", key=2)
    # When
    deliver_again(system, begun["id"])
    system.ledger.open("one")
    system.ledger.wait_for("end", key=1)
    system.ledger.open("two")
    # Then
    assert [part["order"] for part in result.get(timeout=60)] == [1, 2]
    system.wait_until_quiet()
    assert system.ledger.count("body") == 1
    assert system.ledger.count("effect") == 2


def test_a_chord_waits_for_a_call_from_elsewhere(make_system: MakeSystem) -> None:
    """A part whose key is running in a call outside of the chord gets that call's result."""
    # Given
    system = make_system(idempotency_on_running="drop")
    system.start_worker()
    charge = system.task("charge")
    outside = charge.delay(1, gate="go")
    system.ledger.wait_for("start", id=outside.id)
    # When
    result = chord([charge.s(1, gate="go"), charge.s(2)])(system.task("body").s())
    system.ledger.wait_for("effect", key=2)
    system.ledger.open("go")
    # Then
    assert result.get(timeout=60)[0] == outside.get(timeout=30)
    assert system.ledger.count("effect") == 2


def test_a_group_with_duplicates_answers_every_member(make_system: MakeSystem) -> None:
    """As many answers as members, as many effects as keys."""
    # Given
    system = make_system()
    system.start_worker()
    charge = system.task("charge")
    # When
    given = group(charge.s(order % 3) for order in range(9))().get(timeout=60)
    # Then
    assert [answer["order"] for answer in given] == [order % 3 for order in range(9)]
    assert len({answer["receipt"] for answer in given}) == 3
    assert system.ledger.count("effect") == 3
