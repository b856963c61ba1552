"""Explicit keys: with the call, in a header from anywhere, and with other arguments."""

from __future__ import annotations

import pytest
from celery import Celery, chain

from celery_idempotent import IdempotencyKeyMismatch
from tests.conftest import MakeSystem
from tests.support.system import System, answers
from tests.support.tasks import Settings


def stranger(settings: Settings) -> Celery:
    """A producer that has no task and nothing of ours: only the broker's and backend's address."""
    app = Celery("stranger")
    names = ("broker_url", "broker_transport_options", "result_backend", "task_default_queue")
    app.conf.update({name: settings[name] for name in names if name in settings})
    return app


def test_an_explicit_key_is_the_key(make_system: MakeSystem) -> None:
    """The same idempotency_key= is one call; another key is another call of equal arguments."""
    # Given
    system = make_system()
    system.start_worker()
    charge = system.task("charge")
    # When
    calls = [
        charge.apply_async((1,), idempotency_key="req-1"),
        charge.apply_async((1,), idempotency_key="req-1"),
        charge.s(1).set(idempotency_key="req-1").apply_async(),
        charge.apply_async((1,), idempotency_key="req-2"),
    ]
    # Then
    first, second, third, other = answers(calls)
    assert first == second == third
    assert other["receipt"] != first["receipt"]
    assert system.ledger.count("effect") == 2


@pytest.mark.parametrize("header", ["idempotency-key", "Idempotency-Key", "idempotency_key"])
def test_a_producer_that_knows_nothing_of_us_can_send_the_key(
    make_system: MakeSystem, header: str
) -> None:
    """send_task by name with the header meets the call that another producer made with the key."""
    # Given
    system = make_system()
    system.start_worker()
    ours = system.task("charge").apply_async((1,), idempotency_key="req-7f3a")
    first = ours.get(timeout=30)
    # When
    sent = stranger(system.settings).send_task("shop.charge", (1,), headers={header: "req-7f3a"})
    # Then
    assert sent.get(timeout=30) == first
    assert system.ledger.count("executed") == 2
    assert system.ledger.count("effect") == 1


def test_without_a_header_the_worker_derives_the_same_key(make_system: MakeSystem) -> None:
    """send_task by name without any header of ours is the same call as delay."""
    # Given
    system = make_system()
    system.start_worker()
    # When
    sent = stranger(system.settings).send_task("shop.charge", (), {"order": 1, "amount": 100})
    first = sent.get(timeout=30)
    # Then
    assert system.task("charge").delay(1).get(timeout=30) == first
    assert system.ledger.count("effect") == 1


def mismatch(system: System, name: str) -> None:
    """The same explicit key with other arguments, while the first call runs and after it."""
    # Given
    task = system.task(name)
    first = task.apply_async((1,), idempotency_key="req-1").get(timeout=30)
    # When
    other = task.apply_async((2,), idempotency_key="req-1")
    # Then
    with pytest.raises(IdempotencyKeyMismatch):
        other.get(timeout=30)
    assert system.ledger.count("executed", id=other.id) == 1
    assert system.ledger.count("start", key=2) == 0
    # And the first call's outcome is what it was
    assert task.apply_async((1,), idempotency_key="req-1").get(timeout=30) == first
    assert system.ledger.count("start") == 1


def test_the_same_key_with_other_arguments_is_an_error(make_system: MakeSystem) -> None:
    """It fails with IdempotencyKeyMismatch, its body is not run, it is not retried."""
    system = make_system()
    system.start_worker()
    mismatch(system, "charge")


def test_autoretry_does_not_retry_a_mismatch(make_system: MakeSystem) -> None:
    """Not even autoretry_for=(Exception,), which retries what the body raises, retries it."""
    # Given the guard: it does retry what the body raises
    system = make_system()
    system.start_worker()
    retried = system.task("charge_autoretry").delay(9, fails=1)
    retried.get(timeout=30)
    assert system.ledger.count("start", id=retried.id) == 2
    system.ledger.path.unlink()
    # Then
    mismatch(system, "charge_autoretry")


def test_a_mismatch_is_found_while_the_first_call_runs(make_system: MakeSystem) -> None:
    """Other arguments do not wait for the running call: they fail, and their errback is called."""
    # Given
    system = make_system()
    system.start_worker()
    charge = system.task("charge")
    first = charge.apply_async((1,), {"gate": "go"}, idempotency_key="req-1")
    system.ledger.wait_for("start", id=first.id)
    # When
    other = charge.apply_async(
        (2,), {"gate": "go"}, idempotency_key="req-1", link_error=system.task("errback").s()
    )
    # Then
    with pytest.raises(IdempotencyKeyMismatch):
        other.get(timeout=30)
    assert not first.ready()
    system.ledger.wait_for("errback", failed=other.id)
    # And
    system.ledger.open("go")
    assert first.get(timeout=30)["order"] == 1
    assert system.ledger.count("start") == 1


def test_a_derived_key_lets_other_arguments_differ(make_system: MakeSystem) -> None:
    """What the key does not name may differ; what the fingerprint names may not."""
    # Given
    system = make_system(
        task_options={"shop.charge": {"idempotency_fingerprint": ("amount",)}},
    )
    system.start_worker()
    # When
    echo = answers([system.task("echo").delay("x", answer=n) for n in (1, 2)])
    system.task("charge").delay(1, amount=100).get(timeout=30)
    charged = system.task("charge").delay(1, amount=200)
    # Then
    assert len(set(echo)) == 1
    with pytest.raises(IdempotencyKeyMismatch):
        charged.get(timeout=30)
    assert system.ledger.count("effect") == 1


def test_a_link_has_its_own_key(make_system: MakeSystem) -> None:
    """The second task of a chain does not inherit the explicit key of the first."""
    # Given
    system = make_system()
    system.start_worker()
    charge = system.task("charge")
    # When
    result = chain(charge.s(1).set(idempotency_key="req-1"), charge.si(2)).apply_async()
    # Then
    assert result.get(timeout=30)["order"] == 2
    assert system.ledger.count("effect") == 2


def test_forget_lets_the_next_call_run(make_system: MakeSystem) -> None:
    """forget frees the key, by arguments or by explicit key; a key that was never used is False."""
    # Given
    system = make_system()
    system.start_worker()
    charge = system.task("charge")
    first = charge.delay(1).get(timeout=30)
    named = charge.apply_async((1,), idempotency_key="req-1").get(timeout=30)
    # When
    assert charge.forget(1)
    assert charge.forget(idempotency_key="req-1")
    assert not charge.forget(12345)
    # Then
    assert charge.delay(1).get(timeout=30)["receipt"] != first["receipt"]
    again = charge.apply_async((1,), idempotency_key="req-1").get(timeout=30)
    assert again["receipt"] != named["receipt"]
