"""Calls that no broker brings: direct ones and nested ones run plainly, eager ones are guarded."""

from __future__ import annotations

from pathlib import Path

import pytest

from celery_idempotent import IdempotencyInProgress, IdempotencyKeyMismatch
from tests.conftest import MakeSystem
from tests.support.ledger import Ledger
from tests.support.tasks import make_app


def test_a_direct_call_runs_each_time(make_redis_system: MakeSystem) -> None:
    """task(...) in user code is the function, whatever the state of the key; it has no token."""
    # Given
    system = make_redis_system()
    system.start_worker()
    charge = system.task("charge")
    charge.delay(1).get(timeout=30)
    # When
    receipts = {charge(1)["receipt"] for _ in range(2)}
    # Then
    assert len(receipts) == 2
    assert system.ledger.count("effect") == 3
    assert system.ledger.entries("start")[-1]["token"] is None


def test_a_nested_call_runs_plainly(make_redis_system: MakeSystem) -> None:
    """A task that calls another in its body gets that body run, and its own run is guarded."""
    # Given
    system = make_redis_system()
    system.start_worker()
    inner = system.task("charge").delay(1).get(timeout=30)
    # When
    outer = [system.task("calls_charge").delay(1) for _ in range(2)]
    first, second = (result.get(timeout=30) for result in outer)
    # Then
    assert first == second
    assert first["receipt"] != inner["receipt"]
    assert system.ledger.count("start", key="outer 1") == 1
    assert system.ledger.count("effect", key=1) == 2


def test_eager_calls_are_guarded(tmp_path: Path) -> None:
    """apply and task_always_eager deduplicate too, in one process with memory://."""
    # Given
    app = make_app(
        {
            "task_always_eager": True,
            "idempotency_store_url": "memory://",
            "test_ledger": str(tmp_path / "ledger"),
        }
    )
    ledger = Ledger(tmp_path / "ledger")
    charge = app.tasks["shop.charge"]
    # When
    first = charge.delay("eager").get()
    second = charge.apply(("eager",)).get()
    # Then
    assert first == second
    assert ledger.count("effect") == 1
    charge.apply((1,), idempotency_key="eager-1").get()
    with pytest.raises(IdempotencyKeyMismatch):
        charge.apply((2,), idempotency_key="eager-1").get()
    assert ledger.count("effect", key=2) == 0


def test_an_eager_call_cannot_wait(make_redis_system: MakeSystem) -> None:
    """While a worker runs the key, an eager call of it fails at once."""
    # Given
    system = make_redis_system()
    system.start_worker()
    charge = system.task("charge")
    first = charge.delay(1, gate="go")
    system.ledger.wait_for("start")
    # When
    eager = charge.apply((1,))
    # Then
    with pytest.raises(IdempotencyInProgress):
        eager.get()
    # When
    system.ledger.open("go")
    answer = first.get(timeout=30)
    # Then
    assert charge.apply((1,)).get() == answer
