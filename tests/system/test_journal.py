"""What the journal of real workers knows of calls, in the words that an operator reads."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from celery_idempotent.ops.history import History
from celery_idempotent.ops.lookup import listed
from celery_idempotent.ops.views import OVERDUE, Filter
from celery_idempotent.ops.why import Account, why
from celery_idempotent.settings import environment_of
from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.system import System
from tests.support.waiting import eventually


def account(system: System, task_id: str, *words: str) -> Account:
    """What is told of a call, once all of these words are in it."""
    environment = environment_of(system.app)

    def told() -> Account | None:
        account = why(environment, task_id)
        if account is None:
            return None
        text = "\n".join([account.summary, *(text for _, text in account.story)])
        return account if all(word in text for word in words) else None

    found = eventually(told, f"{words} told of {task_id}")
    assert found is not None
    return found


def events_of(system: System, task_id: str) -> list[str]:
    environment = environment_of(system.app)
    history = History(environment.store, environment.prefix)
    return [told.what for told in history.events() if told.task_id == task_id][::-1]


def test_a_call_and_its_duplicate(make_redis_system: MakeSystem) -> None:
    """The one ran, the other was answered with its outcome: each says so, and names the other."""
    # Given
    system = make_redis_system()
    worker = system.start_worker(concurrency=1)
    first, second = (system.task("charge").delay(42) for _ in range(2))
    # When
    assert first.get(timeout=30) == second.get(timeout=30)
    # Then
    original = account(system, first.id, "ran for", f"on {worker.node}", "succeeded")
    duplicate = account(system, second.id, f"duplicate of task {first.id}")
    assert (original.task, original.key) == ("shop.charge", "order:42")
    assert (duplicate.task, duplicate.key) == ("shop.charge", "order:42")
    assert eventually(lambda: account(system, first.id).duplicates) == (second.id,)
    assert duplicate.record is not None
    assert duplicate.record.owner_id == first.id


def test_a_long_run_and_who_waits_for_it(make_redis_system: MakeSystem) -> None:
    """While it runs it says so; a duplicate says whom it waits for, then whose outcome it got."""
    # Given
    system = make_redis_system()
    system.start_worker(concurrency=2)
    first = system.task("charge").delay(42, gate="go")
    system.ledger.wait_for("start")
    second = system.task("charge").delay(42)
    # Then
    account(system, first.id, "got the key order:42 and began to run")
    account(system, second.id, f"Task {first.id} held the key order:42: put back for")
    # When
    system.ledger.open("go")
    second.get(timeout=30)
    # Then
    account(system, second.id, f"duplicate of task {first.id}", "Before that it had been put back")
    account(system, first.id, "began to run", "succeeded")


def test_a_call_that_was_retried(make_redis_system: MakeSystem) -> None:
    """Each attempt, and the one that succeeded."""
    # Given
    system = make_redis_system()
    system.start_worker(concurrency=1)
    # When
    result = system.task("charge_flaky").delay(1, fails=2, countdown=1)
    result.get(timeout=30)
    # Then
    told = account(system, result.id, "asked to be retried, due in 1 s", "(attempt 3)", "succeeded")
    assert [text.split(",")[0] for _, text in told.story if "retried" in text] == [
        "It asked to be retried",
        "It asked to be retried (attempt 2)",
    ]


def test_a_run_whose_worker_died(make_redis_system: MakeSystem) -> None:
    """It is found as long as nobody has taken over, though no record but its own is looked at."""
    # Given
    system = make_redis_system(idempotency_lease=3)
    worker = system.start_worker(concurrency=1)
    charge = system.task("charge")
    ended = charge.delay(1).get(timeout=30)
    result = charge.delay(42, gate="go")
    account(system, result.id, "got the key order:42 and began to run")
    environment = environment_of(system.app)

    def found() -> list[str]:
        wanted = Filter(state=OVERDUE, now_ms=environment.store.now_ms())
        return [view.key for view in listed(environment, wanted) or ()]

    assert ended
    assert len(environment.store.held(environment.prefix)) == 1
    assert found() == []
    # When
    worker.kill()
    # Then
    eventually(lambda: found() == ["order:42"], "its lease is over")
    # When another call takes over
    next_worker = system.start_worker(concurrency=1)
    other = charge.delay(42)
    other.get(timeout=30)
    # Then
    eventually(lambda: not environment.store.held(environment.prefix), "nothing runs")
    account(system, result.id, "That run was not heard of again", f"Task {other.id} got the key at")
    cut_off = f"task_id='{other.id}' original_id='{result.id}'"
    assert f"outcome='interrupted' task='shop.charge' key='order:42' {cut_off}" in next_worker.log


def test_calls_that_failed(make_redis_system: MakeSystem) -> None:
    """With which error, and what that means for the key."""
    # Given
    kept = {"shop.fails_at_gate": {"idempotency_store_failures": True}}
    system = make_redis_system(task_options=kept)
    system.start_worker(concurrency=1)
    system.ledger.open("now")
    freed = system.task("charge_or_fail").delay(1, "never")
    stored = system.task("fails_at_gate").delay(1, "now")
    again = system.task("fails_at_gate").delay(1, "now")
    mismatch = system.task("charge").apply_async((1,), idempotency_key="request-1")
    other = system.task("charge").apply_async((2,), idempotency_key="request-1")
    for result in (freed, stored, again, mismatch, other):
        result.get(timeout=30, propagate=False)
    # Then
    account(system, freed.id, "failed with ValueError: the key is free")
    account(system, stored.id, "failed with ValueError", "kept as the key's outcome")
    account(system, again.id, f"duplicate of task {stored.id}")
    account(system, other.id, "IdempotencyKeyMismatch", f"task {mismatch.id} had the key request-1")


def test_calls_that_were_not_waited_for(make_redis_system: MakeSystem) -> None:
    """Dropped or refused, and because of which call."""
    # Given
    options: dict[str, dict[str, Any]] = {
        "shop.charge": {"idempotency_on_running": "drop"},
        "shop.busy": {"idempotency_on_running": "raise"},
    }
    system = make_redis_system(task_options=options)
    system.start_worker(concurrency=3)
    charge = system.task("charge").delay(1, gate="go")
    busy = system.task("busy").delay(1, "go")
    system.ledger.wait_for("start", times=2)
    # When
    dropped = system.task("charge").delay(1)
    refused = system.task("busy").delay(1, "go")
    # Then
    account(system, dropped.id, "was dropped", f"task {charge.id} held the key order:1")
    account(system, refused.id, "IdempotencyInProgress", f"task {busy.id} held the key order:1")
    system.ledger.open("go")
    for result in (charge, busy):
        result.get(timeout=30)


def test_a_call_that_killed_its_process(make_system: MakeSystem) -> None:
    """The worker freed its key each time, until nobody could know what had happened."""
    # Given
    options = {"shop.kills_its_process": {"idempotency_max_interruptions": 1}}
    system = make_system(task_options=options)
    system.start_worker(concurrency=1)
    # When
    result = system.task("kills_its_process").delay(1)
    result.get(timeout=60, propagate=False)
    # Then
    told = account(system, result.id, "process was lost", "OutcomeUnknown")
    assert "OutcomeUnknown" in told.summary
    assert events_of(system, result.id).count("process lost") == 2
    assert told.record is not None
    assert told.record.state == "unknown"


@pytest.mark.parametrize("how", ["a limit", "a revoke"])
def test_a_call_whose_run_its_worker_ended(make_redis_system: MakeSystem, how: str) -> None:
    """It says what the caller was told; the process itself knew only that it was cut off."""
    # Given
    system = make_redis_system()
    worker = system.start_worker(concurrency=1)
    limits = {"time_limit": 1} if how == "a limit" else {}
    # When
    ended = system.task("busy").apply_async((1,), {"gate": "go"}, **limits)
    system.ledger.wait_for("start")
    if how == "a revoke":
        system.app.control.revoke(ended.id, terminate=True, destination=[worker.node])
    # Then
    told = account(system, ended.id, "ended its run")
    answer = "it is revoked" if how == "a revoke" else "it failed with TimeLimitExceeded"
    assert f"told its caller that {answer}" in told.summary
    system.ledger.open("go")


def test_a_key_that_was_forgotten(make_redis_system: MakeSystem) -> None:
    """It belongs to the story of the call that had the key."""
    # Given
    system = make_redis_system()
    system.start_worker(concurrency=1)
    result = system.task("charge").delay(1)
    result.get(timeout=30)
    account(system, result.id, "succeeded")
    # When
    assert system.task("charge").forget(1)
    # Then
    account(system, result.id, "succeeded", "forgotten (task.forget())")


def test_shadow_mode_says_what_would_have_been(make_redis_system: MakeSystem) -> None:
    """It ran all the same, and without shadow mode it would have been answered."""
    # Given
    system = make_redis_system(idempotency_mode="shadow")
    system.start_worker(concurrency=1)
    first, second = (system.task("charge").delay(42) for _ in range(2))
    # When
    assert first.get(timeout=30)["receipt"] != second.get(timeout=30)["receipt"]
    # Then
    account(system, second.id, "ran all the same, in shadow mode", f"duplicate of task {first.id}")
    account(system, first.id, "succeeded")


def test_an_outage_of_the_store_is_told_after_it(
    make_redis_system: MakeSystem, own_server: RedisServer
) -> None:
    """Calls that waited for it say so, though there was nobody to tell it to."""
    # Given
    system = make_redis_system(store=own_server)
    system.start_worker(concurrency=1)
    system.task("charge").delay(0).get(timeout=30)
    own_server.pause()
    # When
    result = system.task("charge").delay(1)
    eventually(lambda: "its body was not run" in system.workers[0].log, "a call that waits")
    own_server.resume()
    result.get(timeout=60)
    # Then
    told = account(system, result.id, "The store did not answer: it waits", "succeeded")
    assert "succeeded" in told.summary


def test_the_last_events_of_a_worker_are_not_lost_when_it_stops(
    make_redis_system: MakeSystem,
) -> None:
    """A warm shutdown gives the store what was not sent yet."""
    # Given
    system = make_redis_system()
    worker = system.start_worker(concurrency=1)
    result = system.task("charge").delay(1)
    result.get(timeout=30)
    # When
    worker.signal(signal.SIGTERM)
    worker.wait_until_gone(60)
    # Then
    assert events_of(system, result.id)[-1] == "succeeded"


def test_the_journal_can_be_off(make_redis_system: MakeSystem) -> None:
    """Then nothing is written; who goes through all records is told of its owner what one knows."""
    # Given
    system = make_redis_system(idempotency_journal=0)
    system.start_worker(concurrency=1)
    result = system.task("charge").delay(1)
    result.get(timeout=30)
    # Then
    assert why(environment_of(system.app), result.id) is None
    told = why(environment_of(system.app), result.id, gone_through=lambda number: None)
    assert told is not None
    assert "does not reach back" in told.summary
    assert events_of(system, result.id) == []
