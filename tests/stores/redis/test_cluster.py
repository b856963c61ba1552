"""What a node of a cluster may have done counts, wherever the others point to."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import AskError
from redis.exceptions import TimeoutError as RedisTimeoutError

from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.stores.redis.cluster import ClusterWire, Node
from celery_idempotent.stores.redis.wire import Script, ScriptCall

SOURCE, TARGET = ("source", 1), ("target", 2)
CALL = ScriptCall(Script("claim", b"", b""), ("{k}",), ())


def unavailable(text: str, cause: Exception, *, arrived: bool) -> StoreUnavailable:
    error = StoreUnavailable(text)
    error.may_have_arrived, error.__cause__ = arrived, cause
    return error


class Pointing:
    """The node that a slot leaves: it always points to the other."""

    def call(self, call: ScriptCall) -> Any:
        raise unavailable("moved", AskError("1 target:2"), arrived=False)


class Answering:
    """The node that a slot comes to, and which answers, or is too late for that."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)

    def call_asking(self, call: ScriptCall) -> object:
        answer = self.answers.pop(0) if self.answers else "late"
        if answer == "late":
            raise unavailable("too late", RedisTimeoutError(), arrived=True)
        return answer


def cluster(monkeypatch: pytest.MonkeyPatch, target: Answering) -> ClusterWire:
    wire = ClusterWire([SOURCE], lambda host, port: pytest.fail("it connected"), "a cluster")
    nodes: dict[Node, object] = {SOURCE: Pointing(), TARGET: target}
    monkeypatch.setattr(wire, "_wire", nodes.__getitem__)
    monkeypatch.setattr(wire, "_owner", lambda slot: SOURCE)
    monkeypatch.setattr(wire, "_look_up", lambda doubted: None)
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
    target = Answering()
    monkeypatch.setattr(target, "call_asking", lambda call: Pointing().call(call))
    wire = cluster(monkeypatch, target)
    # When
    with pytest.raises(StoreUnavailable, match="moved") as caught:
        wire.call(CALL)
    # Then
    assert caught.value.may_have_arrived is False
