"""Every way in which a run can end but by returning: none of them leaves its key locked.

The lease outlasts each test by far, so a key that is free again was freed by somebody.
"""

from __future__ import annotations

import signal

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from tests.conftest import MakeSystem
from tests.support.system import System
from tests.support.waiting import eventually, wait_until_dead

LEASE = 300
#: The next call must not wait for a lease; this is far less than one.
SOON = 25


def next_call_runs(system: System, name: str, *args: object, **kwargs: object) -> None:
    """The key is free: another call with it is executed and makes the effect."""
    later = system.task(name).delay(*args, **kwargs)
    assert later.get(timeout=SOON)["order"] == 1
    assert system.ledger.ids("effect") == {later.id}


@pytest.mark.parametrize("how", ["ignore", "reject", "replace"])
def test_a_body_that_leaves_by_a_verdict_of_its_own(make_system: MakeSystem, how: str) -> None:
    """Ignore, Reject and replace are no outcome: the next call with the key runs."""
    # Given
    system = make_system(idempotency_lease=LEASE)
    system.start_worker()
    # When
    left = system.task("leave").delay(1, how=how)
    system.ledger.wait_for("finished", id=left.id)
    # Then
    next_call_runs(system, "leave", 1, how=how)
    if how == "replace":
        assert left.get(timeout=30) == "replaced 1"


def test_a_soft_time_limit_is_a_failure(make_system: MakeSystem) -> None:
    """The call fails with it and the next one runs."""
    # Given
    system = make_system(idempotency_lease=LEASE)
    system.start_worker()
    # When
    limited = system.task("busy").apply_async((1,), {"gate": "go"}, soft_time_limit=1)
    # Then
    with pytest.raises(SoftTimeLimitExceeded):
        limited.get(timeout=30)
    system.ledger.open("go")
    next_call_runs(system, "busy", 1, gate="go")


def test_a_hard_time_limit_frees_the_key(make_system: MakeSystem) -> None:
    """The child is told before it is killed, and its lease ends with it."""
    # Given
    system = make_system(idempotency_lease=LEASE)
    system.start_worker()
    # When
    limited = system.task("busy").apply_async((1,), {"gate": "go"}, time_limit=1)
    # Then
    with pytest.raises(TimeLimitExceeded):
        limited.get(timeout=30)
    wait_until_dead(system.ledger.entries("start")[0]["pid"])
    system.ledger.open("go")
    next_call_runs(system, "busy", 1, gate="go")


def test_a_revoked_run_frees_the_key(make_system: MakeSystem) -> None:
    """revoke(terminate=True) ends the child in the middle of its body."""
    # Given
    system = make_system(idempotency_lease=LEASE)
    worker = system.start_worker()
    revoked = system.task("busy").delay(1, gate="go")
    (begun,) = system.ledger.wait_for("start")
    # When
    system.app.control.revoke(
        revoked.id, terminate=True, signal="SIGTERM", destination=[worker.node]
    )
    system.ledger.wait_until(lambda _: revoked.state == "REVOKED", "revoked")
    wait_until_dead(begun["pid"])
    system.ledger.open("go")
    # Then
    next_call_runs(system, "busy", 1, gate="go")


def test_a_run_that_is_revoked_with_sigkill_frees_the_key(make_system: MakeSystem) -> None:
    """A child that has no time for anything is cleaned up after by the parent."""
    # Given
    system = make_system(idempotency_lease=LEASE)
    worker = system.start_worker()
    revoked = system.task("busy").delay(1, gate="go")
    (begun,) = system.ledger.wait_for("start")
    # When
    system.app.control.revoke(
        revoked.id, terminate=True, signal="SIGKILL", destination=[worker.node]
    )
    system.ledger.wait_until(lambda _: revoked.state == "REVOKED", "revoked")
    wait_until_dead(begun["pid"])
    system.ledger.open("go")
    # Then
    next_call_runs(system, "busy", 1, gate="go")


def test_a_warm_shutdown_lets_the_run_finish(make_system: MakeSystem) -> None:
    """TERM: the body ends, its outcome is recorded, the next worker replays it."""
    # Given
    system = make_system(idempotency_lease=LEASE)
    worker = system.start_worker()
    first = system.task("charge").delay(1, gate="go")
    system.ledger.wait_for("start")
    # When
    worker.signal(signal.SIGTERM)
    system.ledger.open("go")
    answer = first.get(timeout=30)
    worker.wait_until_gone()
    system.start_worker()
    # Then
    assert system.task("charge").delay(1, gate="go").get(timeout=SOON) == answer
    assert system.ledger.count("start") == 1


@pytest.mark.parametrize(
    ("pool", "grace"),
    [
        pytest.param("prefork", 0.0, id="cold"),
        pytest.param("prefork", 1.0, id="soft"),
        pytest.param("gevent", 0.0, id="greenlets"),
    ],
)
def test_a_shutdown_in_the_middle_hands_the_run_over(
    make_system: MakeSystem, pool: str, grace: float
) -> None:
    """QUIT: the body is cut off, its message goes back, and the next worker runs it at once."""
    # Given
    system = make_system(idempotency_lease=LEASE, worker_soft_shutdown_timeout=grace)
    worker = system.start_worker(pool)
    result = system.task("busy").delay(1, gate="go")
    (begun,) = system.ledger.wait_for("start")
    # When
    worker.signal(signal.SIGQUIT)
    worker.wait_until_gone()
    system.ledger.open("go")
    system.start_worker()
    # Then
    assert result.get(timeout=SOON)["order"] == 1
    again = system.ledger.entries("start")[-1]
    assert again["id"] == begun["id"]
    assert again["interrupted"]
    assert system.ledger.count("effect") == 1


@pytest.mark.parametrize("limit", [0.5, 1.0, 2.0])
def test_a_hard_time_limit_that_strikes_in_a_cold_shutdown(
    make_system: MakeSystem, limit: float
) -> None:
    """Celery tells nobody of it then, and acknowledges the message: here it goes back."""
    # Given
    system = make_system(idempotency_lease=LEASE)
    worker = system.start_worker()
    result = system.task("busy").apply_async((1,), {"gate": "go"}, time_limit=limit)
    (begun,) = system.ledger.wait_for("start")
    # When
    worker.signal(signal.SIGQUIT)
    worker.wait_until_gone()
    system.ledger.open("go")
    system.start_worker()
    # Then
    if "Hard time limit" in worker.log.partition("Cold shutdown")[0]:
        with pytest.raises(TimeLimitExceeded):  # on a slow machine it struck before that
            result.get(timeout=SOON)
        return
    assert result.get(timeout=SOON)["order"] == 1
    assert system.ledger.entries("start")[-1]["id"] == begun["id"]
    assert system.ledger.count("effect") == 1


def test_a_cold_shutdown_of_a_pool_that_ends_no_body(make_system: MakeSystem) -> None:
    """Celery's error about it would be raised in the body, and fail the call: the body goes on."""
    # Given
    system = make_system(idempotency_lease=LEASE)
    worker = system.start_worker("solo")
    result = system.task("busy").delay(1, gate="go")
    system.ledger.wait_for("start")
    # When
    worker.signal(signal.SIGQUIT)
    eventually(lambda: "Cold shutdown" in worker.log, "it shuts down")
    system.ledger.open("go")
    worker.wait_until_gone()
    # Then
    assert result.get(timeout=SOON)["order"] == 1
    assert system.ledger.count("start") == 1
