"""A result backend on a server of its own, which is away at the moment at which an end is told.

Celery acknowledges the message then, so that its caller would wait for ever.
"""

from __future__ import annotations

import signal
from functools import partial
from typing import Any

import pytest
from billiard.exceptions import TimeLimitExceeded
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult
from celery.states import READY_STATES

from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.system import RESULT_DB, System
from tests.support.waiting import eventually

#: No lease ends by itself while a test runs.
LEASE = 300
#: Celery's own would have each try take twenty seconds.
SOON_GIVEN_UP = {"retry_policy": {"max_retries": 1, "interval_start": 0, "interval_max": 0.1}}


@pytest.fixture
def make(make_system: MakeSystem, own_server: RedisServer) -> MakeSystem:
    """Make a system on each broker whose results are on a server of their own."""
    return partial(
        make_system,
        idempotency_lease=LEASE,
        result_backend=own_server.url(RESULT_DB),
        result_backend_transport_options=SOON_GIVEN_UP,
        # Celery's own tasks lose their results then, and in threads never end.
        task_options={name: {"ignore_result": True} for name in ("shop.tail", "shop.errback")},
    )


def answer_of(call: AsyncResult) -> Any:
    """What the backend has for its caller. One that waits hears of it no more, after a restart."""
    eventually(lambda: call.state in READY_STATES, f"{call.id} is answered")
    return call.result


def with_tails(system: System) -> dict[str, Any]:
    """What hangs on a call."""
    return {"link": system.task("tail").s(), "link_error": system.task("errback").s()}


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_run_that_ends(make: MakeSystem, own_server: RedisServer, pool: str, fails: bool) -> None:
    """Scenario 82: its caller gets the outcome when the backend is back; its body runs once."""
    # Given
    system = make()
    system.start_worker(pool)
    task = system.task("fails_at_gate" if fails else "charge")
    call = task.apply_async(
        (1,), {"gate": "go"}, **({} if pool == "gevent" else with_tails(system))
    )
    system.ledger.wait_for("start")
    # When
    own_server.kill()
    system.ledger.open("go")
    system.ledger.wait_for("received", times=2, id=call.id)
    own_server.restart(empty=True)
    # Then
    answer = answer_of(call)
    assert isinstance(answer, ValueError) if fails else answer["order"] == 1
    system.wait_until_quiet()
    assert system.ledger.count("start") == 1
    if pool != "gevent":
        assert system.ledger.count("errback" if fails else "tail") == 1
    if not fails:
        assert answer_of(task.delay(1, gate="go")) == answer


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_run_that_meets_its_hard_limit(
    make: MakeSystem, own_server: RedisServer, pool: str
) -> None:
    """Scenario 82: the worker could not tell the failure, and the message's next delivery does."""
    # Given
    system = make()
    system.start_worker(pool)
    errback = system.task("errback").s()
    call = system.task("busy").apply_async((1,), {"gate": "go"}, time_limit=2, link_error=errback)
    system.ledger.wait_for("start")
    # When
    own_server.kill()
    system.ledger.wait_for("received", times=2, id=call.id)
    system.ledger.open("go")
    own_server.restart(empty=True)
    # Then
    assert isinstance(answer_of(call), TimeLimitExceeded)
    system.wait_until_quiet()
    assert system.ledger.count("start") == 1
    assert system.ledger.count("errback") == 1


def test_a_run_that_is_revoked(make: MakeSystem, own_server: RedisServer) -> None:
    """Scenario 82: the worker says so when the backend is back, and its body is not run again."""
    # Given
    system = make()
    worker = system.start_worker()
    call = system.task("busy").delay(1, gate="go")
    system.ledger.wait_for("start")
    # When
    own_server.kill()
    system.app.control.revoke(call.id, terminate=True, destination=[worker.node])
    eventually(lambda: "could not tell" in worker.log, "the worker has tried to tell it")
    own_server.restart(empty=True)
    # Then
    assert isinstance(answer_of(call), TaskRevokedError)
    system.wait_until_quiet()
    assert system.ledger.count("start") == 1


def test_a_call_that_is_discarded(make: MakeSystem, own_server: RedisServer) -> None:
    """Scenario 82: Celery's error about it would end the worker, or its line to the broker."""
    # Given a call that waits in a worker for its turn, and is revoked
    system = make()
    worker = system.start_worker(concurrency=1)
    first = system.task("charge").delay(1, gate="go")
    system.ledger.wait_for("start")
    second = system.task("charge").delay(2)
    system.ledger.wait_for("received", id=second.id)
    # When
    own_server.kill()
    system.app.control.revoke(second.id, reply=True, timeout=30, limit=1)
    system.ledger.open("go")
    eventually(lambda: "could not tell that task" in worker.log, "it has tried to tell it")
    own_server.restart(empty=True)
    # Then
    assert isinstance(answer_of(second), TaskRevokedError)
    assert answer_of(first)["order"] == 1
    worker.signal(signal.SIGTERM)
    assert worker.wait_until_gone() == 0
    assert "Connection to broker lost" not in worker.log
    assert system.ledger.count("start", key=2) == 0
