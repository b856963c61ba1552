"""What is shown beside each package: one effect, and everyone is answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import chain, chord
from kombu.exceptions import EncodeError

from tests.ecosystem.world import PATIENCE_S, World
from tests.support.waiting import eventually

__all__ = ["CASES", "title"]


def first_call(world: World) -> None:
    """It runs."""
    # When
    answers = world.answers([world.call("charge", 1, "run")])
    # Then
    assert world.effects(1) == 1
    _same(world, answers, 1)


def late_duplicate(world: World) -> None:
    """It gets the first call's result."""
    # When
    answers = [world.answers([world.call("charge", 2, role)])[0] for role in ("run", "duplicate")]
    # Then
    assert world.effects(2) == 1
    _same(world, answers, 2)


def five_at_once(world: World) -> None:
    """Four wait for the one that runs."""
    # Given
    first = world.call("charge", 3, "run", gate="five")
    world.ledger.wait_for("start", order=3)
    # When
    others = [world.call("charge", 3, "duplicate", gate="five") for _ in range(4)]
    eventually(
        lambda: all(world.waited(call.id) for call in others), "all of them wait", PATIENCE_S
    )
    world.ledger.open("five")
    answers = world.answers([first, *others])
    # Then
    assert world.effects(3) == 1
    assert world.ledger.count("start", order=3) == 1
    _same(world, answers, 5)


def retry_with_a_duplicate(world: World) -> None:
    """The retry keeps the key, and its duplicate gets what came of it."""
    # Given
    first = world.call("flaky", 4, "run")
    world.ledger.wait_for("start", order=4)
    # When
    answers = world.answers([first, world.call("flaky", 4, "duplicate")])
    # Then
    assert world.effects(4) == 1
    assert world.ledger.ids("start", order=4) == {first.id}
    assert world.ledger.count("start", order=4) == 2
    _same(world, answers, 2)


def failure(world: World) -> None:
    """It is the caller's, as in plain Celery."""
    # When
    (answer,) = world.answers([world.call("decline", 5, "fail")])
    # Then
    assert world.ledger.count("start", order=5) == 1
    if world.adapter.results:
        assert type(answer).__name__ == "ValueError", repr(answer)
        assert "declined" in str(answer)
    else:
        assert answer == "FAILURE"


def chord_and_chain(world: World) -> None:
    """Every member is answered, the body runs once, and each chain goes on."""
    charge, total, tail = (world.app.tasks[f"shop.{name}"] for name in ("charge", "total", "tail"))
    if world.adapter.chords:
        # When
        members = [charge.s(order) for order in (6, 6, 7)]
        sent = chord(members)(total.s())
        # Then
        (receipts,) = world.answers([world.note(sent, "run")])
        # They were published at one moment, to two processes: whichever began ran.
        ran = world.ledger.ids("start")
        for member in sent.parent.results:
            world.note(member, "run" if member.id in ran else "duplicate")
        assert world.effects(6) == world.effects(7) == 1
        assert receipts[0] == receipts[1] != receipts[2]
        assert world.ledger.count("total") == 1
    if not world.adapter.canvas:
        _refused(total, tail)
        return
    # When
    ends = []
    for role in ("run", "duplicate"):
        sent = chain(charge.s(8), tail.s())()
        world.note(sent.parent, role)
        ends.append(world.note(sent, "run"))
        world.answers([sent])
    # Then
    assert len(set(world.answers(ends))) == 1
    assert world.effects(8) == 1
    assert world.ledger.ids("tail") == {end.id for end in ends}


CASES: list[Callable[[World], None]] = [
    first_call,
    late_duplicate,
    five_at_once,
    retry_with_a_duplicate,
    failure,
    chord_and_chain,
]


def title(case: Callable[[World], None]) -> str:
    """Return a case's name in words."""
    return case.__name__.replace("_", " ")


def _refused(task: Any, following: Any) -> None:
    """Show that Celery itself can't write such a message."""
    try:
        chain(task.s([]), following.s())()
    except EncodeError:
        return
    raise AssertionError("plain tasks can be chained: show it of ours, too")


def _same(world: World, answers: list[Any], times: int) -> None:
    assert len(answers) == times
    first = answers[0]
    assert answers == [first] * times, answers
    assert isinstance(first, dict) if world.adapter.results else first == "SUCCESS", first
