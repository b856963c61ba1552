"""What a node of a cluster may have done counts, wherever the others point to."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import AskError, MovedError
from redis.exceptions import TimeoutError as RedisTimeoutError

from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.stores.redis.cluster import ClusterWire, Node
from celery_idempotent.stores.redis.wire import Script, ScriptCall

SOURCE, TARGET = ("source", 1), ("target", 2)
CALL = ScriptCall(Script(b"", b""), ("{k}",), ())


def unavailable(text: str, cause: Exception, *, arrived: bool) -> StoreUnavailable:
    error = StoreUnavailable(text)
    error.may_have_arrived, error.__cause__ = arrived, cause
    return error


class Pointing:
    """The node that a slot leaves, or has left: it always points to the other."""

    def __init__(self, kind: type[AskError] = AskError) -> None:
        self.kind = kind
        self.calls = 0

    def call(self, call: ScriptCall, *, asking: bool) -> Any:
        self.calls += 1
        raise unavailable("moved", self.kind("1 target:2"), arrived=False)


class Answering:
    """The node that a slot comes to, and which answers, or is too late for that."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked: list[bool] = []

    def call(self, call: ScriptCall, *, asking: bool) -> object:
        self.asked.append(asking)
        answer = self.answers.pop(0) if self.answers else "late"
        if answer == "late":
            raise unavailable("too late", RedisTimeoutError(), arrived=True)
        return answer


def cluster(monkeypatch: pytest.MonkeyPatch, target: object, source: object = None) -> ClusterWire:
    wire = ClusterWire([SOURCE], lambda host, port: pytest.fail("it connected"), "a cluster")
    nodes: dict[Node, object] = {SOURCE: source or Pointing(), TARGET: target}
    monkeypatch.setattr(wire, "_wire", nodes.__getitem__)
    monkeypatch.setattr(wire, "_owners", dict.fromkeys(range(16384), SOURCE))
    monkeypatch.setattr(wire, "look_up", lambda doubted: None)
    return wire


def test_what_may_have_arrived_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that timed out on one node is given up, though another refused it last."""
    # Given a node that is late each time, to which the other points last of all
    wire = cluster(monkeypatch, Answering())
    # When
    with pytest.raises(StoreUnavailable, match="too late") as caught:
        wire.call(CALL)
    # Then
    assert caught.value.may_have_arrived is True


def test_a_node_that_was_late_once_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it answers the second time, that is the answer."""
    wire = cluster(monkeypatch, Answering("late", 7))

    assert wire.call(CALL) == 7


def test_what_nobody_took_has_not_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that only point to each other have done nothing."""
    # Given
    wire = cluster(monkeypatch, Pointing())
    # When
    with pytest.raises(StoreUnavailable, match="moved") as caught:
        wire.call(CALL)
    # Then
    assert caught.value.may_have_arrived is False


def test_a_slot_that_has_moved_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on its calls go to its new node, with one round trip each."""
    # Given
    source, target = Pointing(MovedError), Answering(1, 2)
    wire = cluster(monkeypatch, target, source)
    # When
    answers = [wire.call(CALL), wire.call(CALL)]
    # Then
    assert answers == [1, 2]
    assert source.calls == 1
    assert target.asked == [False, False]


def test_a_slot_that_is_being_moved_is_asked_for_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its node still has it, and only what is not there any more is on the other (ASKING)."""
    # Given
    source, target = Pointing(), Answering(1, 2)
    wire = cluster(monkeypatch, target, source)
    # When
    answers = [wire.call(CALL), wire.call(CALL)]
    # Then
    assert answers == [1, 2]
    assert source.calls == 2
    assert target.asked == [True, True]
