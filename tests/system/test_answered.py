"""A call that has its answer keeps it: its leftover copies run nothing, and change no state.

A copy is left over where a run outlives the visibility timeout (Redis) or
its connection (RabbitMQ).
Each test counts the deliveries: without a second one it would show nothing.
"""

from __future__ import annotations

import os
import signal
import uuid
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery import chain
from celery.result import AsyncResult
from celery.signals import before_task_publish

from celery_idempotent import OutcomeUnknown
from celery_idempotent.core.message import OWN, own_of
from tests.conftest import MakeSystem
from tests.support.system import System
from tests.support.waiting import wait_until_dead
from tests.system.test_redelivery import LEASE, VISIBILITY_TIMEOUT, deliver_again

#: So late that a copy of the message has come by then.
TIME_LIMIT = 8


def call(task: Any, *args: Any, **options: Any) -> tuple[AsyncResult, dict[str, Any]]:
    """Call a task; gives also the header by which its message knows which publication it is."""
    seen: list[Any] = []

    def look(headers: dict[str, Any], **_: Any) -> None:
        seen.append(own_of(headers, headers["id"]))

    # By a name: older releases of Celery take a function for a former one that has gone.
    by_name = {"dispatch_uid": uuid.uuid4().hex}
    before_task_publish.connect(look, **by_name)
    try:
        result = task.apply_async(args, **options)
    finally:
        before_task_publish.disconnect(look, **by_name)
    return result, {OWN: seen[0]}


def gone_over(system: System, *task_ids: str, times: int = 2) -> None:
    """Wait until each of these calls was delivered so often, and nothing is left to do."""
    for task_id in task_ids:
        system.ledger.wait_for("finished", times=times, id=task_id)
    system.wait_until_quiet()


@pytest.mark.parametrize("how", ["ignore", "reject", "replace"])
def test_a_run_that_leaves_without_an_outcome_leaves_no_run_behind(
    make_system: MakeSystem, how: str
) -> None:
    """It outlives the timeout and ends by Ignore, Reject or replace: its copies do nothing."""
    # Given
    system = make_system(visibility_timeout=VISIBILITY_TIMEOUT, idempotency_lease=LEASE)
    system.start_worker()
    result = system.task("leave").delay(1, how=how, gate="go")
    system.ledger.wait_for("start")
    # When
    deliver_again(system, result.id)
    system.ledger.open("go")
    # Then
    gone_over(system, result.id, times=3)
    assert system.ledger.count("start") == 1
    assert system.ledger.count("effect") == 0
    assert system.ledger.count("tail") == (how == "replace")


@pytest.mark.long(15)
def test_a_call_that_its_hard_time_limit_has_failed_runs_no_more(
    make_redis_system: MakeSystem,
) -> None:
    """The worker's parent fails it, and ends its run: its copy, which has waited, runs nothing."""
    # Given a run that outlives the visibility timeout, and whose copy waits for its end
    system = make_redis_system(visibility_timeout=VISIBILITY_TIMEOUT, idempotency_lease=LEASE)
    system.start_worker()
    limited = system.task("busy").apply_async(
        (1,), {"gate": "go"}, time_limit=TIME_LIMIT, link_error=system.task("errback").s()
    )
    (begun,) = system.ledger.wait_for("start")
    deliver_again(system, limited.id)
    # When it meets its limit, and the copy comes again
    failure = limited.get(timeout=30, propagate=False)
    wait_until_dead(begun["pid"])
    system.ledger.open("go")
    system.wait_until_quiet()
    # Then
    assert isinstance(failure, TimeLimitExceeded)
    stays_failed(system, limited, failure)


def stays_failed(
    system: System, call: AsyncResult, failure: BaseException, in_children: int = 1
) -> None:
    """It ran once, a copy was answered with its failure, and its errback went out once.

    Args:
        in_children: how many processes of the pool have failed it.
    """
    assert system.ledger.count("finished", id=call.id, state="FAILURE") == in_children
    assert system.ledger.count("start") == 1
    kept = call.backend.get_task_meta(call.id, cache=False)
    assert (kept["status"], repr(kept["result"])) == ("FAILURE", repr(failure))
    assert [entry["failed"] for entry in system.ledger.entries("errback")] == [call.id]


@pytest.mark.parametrize(
    ("pool", "policy", "limit"),
    [
        ("prefork", "rerun", "time_limit"),
        ("prefork", "unknown", "time_limit"),
        ("gevent", "rerun", "time_limit"),
        ("gevent", "unknown", "time_limit"),
        ("prefork", "unknown", "soft_time_limit"),
    ],
)
def test_a_copy_of_such_a_call_gets_its_failure(
    make_system: MakeSystem, pool: str, policy: str, limit: str
) -> None:
    """With each pool that enforces limits; whoever else asks finds a run that was cut off."""
    # Given
    system = make_system(
        idempotency_lease=LEASE,
        task_options={"shop.busy": {"idempotency_on_interrupted": policy}},
    )
    system.start_worker(pool)
    task, errback = system.task("busy"), system.task("errback").s()
    options = {limit: 1, "link_error": errback}
    limited, header = call(task, 1, kwargs={"gate": "go"}, **options)
    (begun,) = system.ledger.wait_for("start")
    failure = limited.get(timeout=30, propagate=False)
    if pool == "prefork" and limit == "time_limit":
        wait_until_dead(begun["pid"])
    system.ledger.open("go")
    # When its message is delivered once more: it is the same publication
    again = {"task_id": limited.id, "headers": header, "link_error": errback}
    task.apply_async((1,), {"gate": "go"}, **again)
    soft = limit == "soft_time_limit"
    in_children = 2 if soft else 1
    system.ledger.wait_for("finished", in_children, id=limited.id, state="FAILURE")
    system.wait_until_quiet()
    # Then
    assert isinstance(failure, SoftTimeLimitExceeded if soft else TimeLimitExceeded)
    stays_failed(system, limited, failure, in_children)
    # When
    other = task.delay(1, gate="go").get(timeout=30, propagate=False)
    # Then
    assert isinstance(other, OutcomeUnknown) if policy == "unknown" else other["order"] == 1


@pytest.mark.parametrize("rejects", [False, True], ids=["told", "put back"])
def test_a_body_that_leaves_its_process_is_a_process_that_is_lost(
    make_system: MakeSystem, rejects: bool
) -> None:
    """``sys.exit()``: the call runs again, or fails and stays failed, as after a kill."""
    # Given
    system = make_system(
        idempotency_lease=LEASE,
        task_options={"shop.leave": {"reject_on_worker_lost": rejects}},
    )
    system.start_worker()
    task, errback = system.task("leave"), system.task("errback").s()
    left, header = call(task, 1, kwargs={"how": "exit"}, link_error=errback)
    answer = left.get(timeout=30, propagate=False)
    # When its message is delivered once more: it is the same publication
    seen = system.ledger.count("finished", id=left.id)
    again = {"task_id": left.id, "headers": header, "link_error": errback}
    task.apply_async((1,), {"how": "exit"}, **again)
    system.ledger.wait_for("finished", seen + 1, id=left.id)
    system.wait_until_quiet()
    # Then
    if rejects:
        assert answer["order"] == 1
        assert system.ledger.count("start") == 2
        assert system.ledger.count("errback") == 0
    else:
        assert isinstance(answer, WorkerLostError)
        stays_failed(system, left, answer)


def test_a_failure_stays_though_the_key_is_anothers_since(make_system: MakeSystem) -> None:
    """A fails, the caller calls again, B charges: A's copy runs nothing, and A stays FAILURE."""
    # Given
    system = make_system(
        visibility_timeout=VISIBILITY_TIMEOUT, idempotency_lease=LEASE, task_track_started=True
    )
    system.start_worker()
    task = system.task("first_fails")
    first = task.delay(1, gate="go")
    system.ledger.wait_for("start")
    # When
    deliver_again(system, first.id)
    system.ledger.open("go")
    assert isinstance(first.get(timeout=30, propagate=False), ValueError)
    again = task.delay(1, gate="go")
    # Then
    assert again.get(timeout=30)["order"] == 1
    gone_over(system, first.id, times=3)
    assert [entry["id"] for entry in system.ledger.entries("start")] == [first.id, again.id]
    assert first.state == "FAILURE"
    assert isinstance(first.result, ValueError)
    assert again.state == "SUCCESS"


def test_a_shared_failure_stays(make_system: MakeSystem) -> None:
    """A duplicate that shared a failure is answered with it again, and runs nothing."""
    # Given
    system = make_system(idempotency_lease=LEASE)
    system.start_worker()
    task = system.task("first_fails")
    first = task.delay(1, gate="go")
    system.ledger.wait_for("start")
    waits, header = call(task, 1, kwargs={"gate": "go"})
    system.ledger.wait_for("finished", id=waits.id)
    system.ledger.open("go")
    assert isinstance(waits.get(timeout=30, propagate=False), ValueError)
    system.wait_until_quiet()
    seen = system.ledger.count("finished", id=waits.id)
    # When its message is delivered once more: it is the same publication
    task.apply_async((1,), {"gate": "go"}, task_id=waits.id, headers=header)
    gone_over(system, waits.id, times=seen + 1)
    # Then
    assert [entry["id"] for entry in system.ledger.entries("start")] == [first.id]
    assert waits.state == "FAILURE"


def test_no_state_is_written_over_an_answer(make_system: MakeSystem) -> None:
    """``task_track_started``: a copy of an answered call begins nothing, and others run."""
    # Given
    system = make_system(
        visibility_timeout=VISIBILITY_TIMEOUT, idempotency_lease=LEASE, task_track_started=True
    )
    system.start_worker()
    result = system.task("leave").delay(1, how="ignore", gate="go")
    system.ledger.wait_for("start")
    assert result.state == "STARTED"
    deliver_again(system, result.id)
    system.ledger.open("go")
    other = system.task("leave").delay(1, how="ignore")
    # Then
    assert other.get(timeout=30)["order"] == 1
    gone_over(system, result.id, times=3)
    assert system.ledger.count("start", id=result.id) == 1


def test_a_retry_is_stored_before_the_next_attempt_can_answer(make_system: MakeSystem) -> None:
    """``self.retry()``: RETRY is stored while the key is still held, so never over an answer."""
    # Given
    system = make_system(idempotency_lease=LEASE)
    system.start_worker()
    flaky = system.task("charge_flaky")
    result = flaky.delay(1, fails=3, countdown=0)
    # Then
    assert result.get(timeout=30)["order"] == 1
    system.wait_until_quiet()
    assert result.state == "SUCCESS"
    assert [entry["retries"] for entry in system.ledger.entries("start")] == [0, 1, 2, 3]


def test_what_a_caller_wants_to_know_is_stored(make_system: MakeSystem) -> None:
    """A task that ignores results, a caller that doesn't: the last state is the answer."""
    # Given
    system = make_system(
        idempotency_lease=LEASE, test_options={"shop.first_fails": {"ignore_result": True}}
    )
    system.start_worker()
    task = system.task("first_fails")
    first = task.apply_async((1,), {"gate": "go"}, ignore_result=False)
    system.ledger.wait_for("start")
    waits = task.apply_async((1,), {"gate": "go"}, ignore_result=False)
    system.ledger.wait_for("finished", id=waits.id)
    assert waits.state == "RETRY"
    # When
    system.ledger.open("go")
    # Then
    for result in (first, waits):
        assert isinstance(result.get(timeout=30, propagate=False), ValueError)
    system.wait_until_quiet()
    assert {first.state, waits.state} == {"FAILURE"}


def test_a_stalled_run_sends_no_link_once_its_copy_has_sent_its_errback(
    make_redis_system: MakeSystem,
) -> None:
    """Policy "unknown": the copy fails the call; the run that ends after all changes nothing."""
    # Given
    system = make_redis_system(visibility_timeout=VISIBILITY_TIMEOUT, idempotency_lease=5)
    system.start_worker(concurrency=1)
    tail, errback = system.task("tail").s(), system.task("errback").s()
    result = system.task("book").apply_async((1,), {"gate": "go"}, link=tail, link_error=errback)
    (begun,) = system.ledger.wait_for("start")
    # When the process stands still for longer than its lease, and another worker gets the copy
    os.kill(begun["pid"], signal.SIGSTOP)
    try:
        system.start_worker(concurrency=1)
        # Sent, and not run: that may take longer than what the copy left is kept (horizon).
        system.ledger.wait_for("received", name="shop.errback")
    finally:
        os.kill(begun["pid"], signal.SIGCONT)
    system.ledger.open("go")
    system.ledger.wait_for("finished", id=result.id, pid=begun["pid"])
    system.ledger.wait_for("errback")
    system.wait_until_quiet()
    # Then
    assert system.ledger.count("tail") == 0
    # The errback is a plain task, whose message may come again; it was sent once.
    assert len(system.ledger.ids("errback")) == 1
    assert result.state == "FAILURE"


def test_copies_of_a_duplicate_send_its_link_once(make_system: MakeSystem) -> None:
    """Several that are due together: one sends, and the others find it sent."""
    # Given
    system = make_system(idempotency_lease=LEASE)
    system.start_worker(concurrency=4)
    task, tail = system.task("charge"), system.task("tail").s()
    task.delay(1).get(timeout=30)
    # When
    duplicate, header = call(task, 1, link=tail)
    for _ in range(3):
        task.apply_async((1,), link=tail, task_id=duplicate.id, headers=header)
    gone_over(system, duplicate.id, times=4)
    # Then
    assert system.ledger.count("start") == 1
    assert system.ledger.count("tail") == 1


@pytest.mark.parametrize("how", ["window", "forget"])
def test_a_used_task_id_is_a_new_call(make_system: MakeSystem, how: str) -> None:
    """After the window, and after ``forget``: it runs, and its link is sent."""
    # Given
    system = make_system(idempotency_lease=1, idempotency_ttl=1 if how == "window" else 3600)
    system.start_worker()
    task, tail = system.task("charge"), system.task("tail").s()
    task.apply_async((1,), task_id="order-1", link=tail).get(timeout=30)
    system.wait_until_quiet()
    # When
    if how == "forget":
        assert task.forget(1)
    else:
        system.ledger.wait_until(lambda _: task.idempotency_record(1) is None, "it is over")
    task.apply_async((1,), task_id="order-1", link=tail)
    # Then
    gone_over(system, "order-1")
    assert system.ledger.count("start") == 2
    assert system.ledger.count("tail") == 2


def test_other_callbacks_of_a_used_task_id_are_sent(make_system: MakeSystem) -> None:
    """While the record is there, no second run; what hangs on the second call is sent, and once."""
    # Given
    system = make_system(idempotency_lease=LEASE)
    system.start_worker()
    task, tail = system.task("charge"), system.task("tail")
    for link in (tail.si("first"), tail.si("second"), tail.si("second")):
        task.apply_async((1,), task_id="order-1", link=link).get(timeout=30)
        system.wait_until_quiet()
    gone_over(system, "order-1", times=3)
    # Then
    assert system.ledger.count("start") == 1
    assert [entry["values"] for entry in system.ledger.entries("tail")] == [["first"], ["second"]]


def test_a_signature_that_is_used_in_two_canvases(make_system: MakeSystem) -> None:
    """Its id was frozen: the second canvas fails too, calls its errback, and doesn't hang."""
    # Given
    system = make_system(idempotency_lease=LEASE)
    system.start_worker()
    fails = system.task("fails_at_gate").s(1, gate="go")
    system.ledger.open("go")
    fails.freeze()
    tail, errback = system.task("tail"), system.task("errback").s()
    # When
    for canvas in (chain(fails, tail.s()), chain(fails, tail.s())):
        result = canvas.on_error(errback).apply_async()
        # Then
        with pytest.raises(ValueError, match="declined"):
            result.get(timeout=30)
    system.ledger.wait_for("errback", times=2)
