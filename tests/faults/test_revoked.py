"""A call that is revoked, or expires, while it waits for its retry."""

from __future__ import annotations

import pytest

from tests.conftest import MakeSystem
from tests.support.system import System
from tests.support.waiting import eventually

#: Outlasts each test: the key isn't free because a retry is overdue.
LEASE = 300


@pytest.fixture
def system(make_system: MakeSystem) -> System:
    options = {"shop.charge_flaky": {"idempotency_on_enqueue": "attach"}}
    made = make_system(idempotency_lease=LEASE, task_options=options)
    made.start_worker(concurrency=2)
    return made


def test_revoked_in_its_back_off(system: System) -> None:
    """The worker that holds its message frees the key as it learns of that."""
    # Given
    flaky = system.task("charge_flaky")
    first = flaky.delay(1, fails=1, countdown=LEASE)
    system.ledger.wait_for("received", id=first.id, retries=1)
    eventually(lambda: first.state == "RETRY", "retried")
    assert flaky.delay(1, fails=0).id == first.id
    # When
    system.app.control.revoke(first.id)
    # Then
    eventually(lambda: str(flaky.idempotency_record(1, 1).state) == "released", "free")
    # And no call is given that result any more
    assert flaky.delay(1, fails=0).get(timeout=30)["order"] == 1
    assert system.ledger.count("start", id=first.id) == 1


def test_revoked_by_a_stamp_in_its_back_off(system: System) -> None:
    """As by its id; a duplicate with another stamp runs."""
    # Given
    flaky = system.task("charge_flaky")
    call = flaky.s(1, fails=1, countdown=LEASE)
    call.stamp(tenant="a")
    first = call.apply_async()
    system.ledger.wait_for("received", id=first.id, retries=1)
    eventually(lambda: first.state == "RETRY", "retried")
    # When
    system.app.control.revoke_by_stamped_headers({"tenant": ["b"]}, reply=True, limit=1)
    assert str(flaky.idempotency_record(1, 1).state) == "retrying"
    system.app.control.revoke_by_stamped_headers({"tenant": ["a", "c"]})
    # Then
    eventually(lambda: str(flaky.idempotency_record(1, 1).state) == "released", "free")
    assert system.ledger.count("start", id=first.id) == 1


def test_a_duplicate_that_waits_is_revoked_by_its_stamp(system: System) -> None:
    """At once, and not when it is due to look again."""
    # Given
    charge = system.task("charge")
    first = charge.delay(1, gate="go")
    system.ledger.wait_for("start", id=first.id)
    call = charge.s(1, gate="go")
    call.stamp(tenant=["a", "b"])
    second = call.apply_async()
    system.ledger.wait_for("finished", id=second.id, state="RETRY")
    # When
    system.app.control.revoke_by_stamped_headers({"tenant": ["b"]})
    # Then
    eventually(lambda: second.state == "REVOKED", "revoked")
    assert str(charge.idempotency_record(1).state) == "running"
    system.ledger.open("go")
    assert first.get(timeout=30)["order"] == 1


def test_revoked_before_its_worker_has_its_message(system: System) -> None:
    """The key is free when the message is discarded."""
    # Given a revoke that comes while the first attempt is running
    retried = system.task("never_works")
    first = retried.delay(1, gate="go", countdown=1)
    system.ledger.wait_for("start", id=first.id)
    answered = system.app.control.revoke(first.id, reply=True, timeout=30, limit=1)
    assert answered
    # When Celery publishes the retry, maybe while the attempt is still to be recorded
    system.ledger.open("go-0")
    # Then
    eventually(lambda: str(retried.idempotency_record(1, "go").state) == "released", "free")
    assert system.ledger.count("start", id=first.id) == 1


def test_expired_in_its_back_off(system: System) -> None:
    """The same for a message that expires before its retry is due."""
    # Given
    flaky = system.task("charge_flaky")
    first = flaky.apply_async((1,), {"fails": 1, "countdown": 4}, expires=3)
    # When
    eventually(lambda: first.state == "REVOKED", "expired")
    # Then
    assert flaky.delay(1, fails=0).get(timeout=30)["order"] == 1
    assert system.ledger.count("start", id=first.id) == 1


def test_a_revoke_of_a_running_call_frees_nothing(system: System) -> None:
    """It ends no run, so that the key stays taken while the body runs; nor does a duplicate's."""
    # Given
    charge = system.task("charge")
    first = charge.delay(1, gate="go")
    system.ledger.wait_for("start", id=first.id)
    second = charge.delay(1, gate="go")
    system.ledger.wait_for("finished", id=second.id, state="RETRY")
    (worker,) = system.workers
    # When
    system.app.control.revoke([first.id, second.id])
    discarded = f"Discarding revoked task: shop.charge[{second.id}]"
    eventually(lambda: discarded in worker.log, "discarded")
    # Then
    assert str(charge.idempotency_record(1).state) == "running"
    system.ledger.open("go")
    eventually(lambda: charge.idempotency_record(1).is_done, "recorded")
    assert system.ledger.count("start") == system.ledger.count("effect") == 1
