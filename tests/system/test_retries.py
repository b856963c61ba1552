"""Tasks that fail and are tried again: whose key it is in the back-off, and afterwards."""

from __future__ import annotations

import pytest
import redis

from tests.conftest import MakeSystem
from tests.support.brokers import RedisBroker
from tests.support.system import answers


def test_duplicates_in_the_back_off_wait_for_the_last_attempt(make_system: MakeSystem) -> None:
    """A call that retries itself twice, and five duplicates in between: one effect, six answers."""
    # Given
    system = make_system()
    system.start_worker()
    flaky = system.task("charge_flaky")
    first = flaky.delay(1, fails=2, countdown=3)
    system.ledger.wait_for("received", id=first.id, retries=1)
    # When
    duplicates = [flaky.delay(1, fails=2, countdown=3) for _ in range(5)]
    system.ledger.wait_until(lambda it: len(it.ids("finished")) == 6, "each was tried")
    assert system.ledger.count("effect") == 0
    # Then
    given = answers([first, *duplicates], timeout=60)
    assert len({answer["receipt"] for answer in given}) == 1
    assert system.ledger.ids("start") == {first.id}
    assert [entry["retries"] for entry in system.ledger.entries("start")] == [0, 1, 2]
    assert system.ledger.count("effect") == 1


def test_autoretry_is_a_retry_like_another(make_system: MakeSystem) -> None:
    """What autoretry_for catches keeps its key too, and spends exactly the retries it spends."""
    # Given
    system = make_system()
    system.start_worker()
    task = system.task("charge_autoretry")
    # When
    results = [task.delay(1, fails=2) for _ in range(4)]
    # Then
    assert len({answer["receipt"] for answer in answers(results, timeout=60)}) == 1
    assert len(system.ledger.ids("start")) == 1
    assert [entry["retries"] for entry in system.ledger.entries("start")] == [0, 1, 2]
    assert system.ledger.count("effect") == 1


def test_a_retry_with_headers_of_its_own_keeps_its_key(make_system: MakeSystem) -> None:
    """retry(headers=...) replaces the message's headers, but not the key that travels in them."""
    # Given
    system = make_system()
    system.start_worker()
    flaky = system.task("charge_flaky")
    call = {"fails": 1, "countdown": 3, "headers": {"x-shop": "1"}}
    first = flaky.apply_async((1,), call, idempotency_key="req-1")
    system.ledger.wait_for("received", id=first.id, retries=1)
    # When
    duplicate = flaky.apply_async((1,), call, idempotency_key="req-1")
    other = flaky.apply_async((2,), {"fails": 0}, idempotency_key="req-2")
    # Then
    one, two, three = answers([first, duplicate, other])
    assert one == two
    assert three["receipt"] != one["receipt"]
    assert system.ledger.count("effect", key=1) == 1
    assert system.ledger.ids("start", key=1) == {first.id}


def test_an_attempt_that_goes_on_after_its_retry_does_not_answer(make_system: MakeSystem) -> None:
    """The next attempt runs, and its result is the call's and that of its duplicate."""
    # Given
    system = make_system()
    system.start_worker()
    task = system.task("charge_later")
    # When
    results = [task.delay(1) for _ in range(2)]
    # Then
    one, two = answers(results)
    assert one == two
    assert [entry["retries"] for entry in system.ledger.entries("start")] == [0, 1]
    assert system.ledger.count("effect") == 1


@pytest.mark.parametrize("policy", ["drop", "raise"])
def test_what_replaces_a_call_is_not_refused_for_its_sake(
    make_system: MakeSystem, policy: str
) -> None:
    """It comes while that body is still running, and charges after it."""
    # Given
    system = make_system(idempotency_on_running=policy)
    system.start_worker()
    result = system.task("charge_pages").delay(1, "end")
    # When
    system.ledger.wait_for("finished", id=result.id)
    system.ledger.open("end")
    # Then
    assert result.get(timeout=30)["order"] == 1
    assert system.ledger.count("start") == 2
    assert system.ledger.count("effect") == 1


def test_attempts_are_counted(make_system: MakeSystem) -> None:
    """Each attempt has a higher token, and none of them is an interruption."""
    # Given
    system = make_system()
    system.start_worker()
    # When
    system.task("charge_flaky").delay(1, fails=2).get(timeout=30)
    # Then
    starts = system.ledger.entries("start")
    tokens = [entry["token"] for entry in starts]
    assert tokens == sorted(set(tokens))
    assert not any(entry["interrupted"] for entry in starts)


def test_after_a_failure_the_next_call_runs_and_a_leftover_copy_does_not(
    make_system: MakeSystem,
) -> None:
    """A failure frees the key for others; a copy of the failed message itself gets that failure."""
    # Given
    system = make_system()
    system.start_worker()
    task = system.task("charge_or_fail")
    failed = task.delay(1, works_after="funded")
    with pytest.raises(ValueError, match="declined"):
        failed.get(timeout=30)
    system.ledger.open("funded")
    # When
    task.apply_async((1,), {"works_after": "funded"}, task_id=failed.id)
    system.ledger.wait_for("finished", times=2, id=failed.id)
    system.wait_until_quiet()
    # Then
    assert system.ledger.count("start") == 1
    assert isinstance(failed.get(timeout=30, propagate=False), ValueError)
    # When
    later = task.delay(1, works_after="funded")
    # Then
    assert later.get(timeout=30)["order"] == 1
    assert system.ledger.ids("effect") == {later.id}
    # When the leftover copy comes after the success of another
    task.apply_async((1,), {"works_after": "funded"}, task_id=failed.id)
    system.ledger.wait_for("finished", times=3, id=failed.id)
    system.wait_until_quiet()
    # Then
    assert system.ledger.count("effect") == 1


def test_a_stored_failure_is_an_outcome(make_system: MakeSystem) -> None:
    """With store_failures the next call gets the same failure, and the body is not run."""
    # Given
    system = make_system(idempotency_store_failures=True)
    system.start_worker()
    task = system.task("charge_or_fail")
    with pytest.raises(ValueError, match="declined"):
        task.delay(1, works_after="funded").get(timeout=30)
    system.ledger.open("funded")
    # When
    later = task.delay(1, works_after="funded")
    # Then
    with pytest.raises(ValueError, match="declined"):
        later.get(timeout=30)
    assert system.ledger.count("start") == 1


def test_retries_that_are_used_up_free_the_key(make_system: MakeSystem) -> None:
    """The last attempt's failure is the call's; the next call begins at its first attempt."""
    # Given
    system = make_system()
    system.start_worker()
    for attempt in range(3):
        system.ledger.open(f"attempt-{attempt}")
    task = system.task("never_works")
    # When
    first = answers([task.delay(1, gate="attempt", countdown=0)])
    second = answers([task.delay(1, gate="attempt", countdown=0)])
    # Then
    assert [type(answer) for answer in first + second] == [ValueError, ValueError]
    assert [entry["retries"] for entry in system.ledger.entries("start")] == [0, 1, 2] * 2


def test_a_retry_whose_message_was_lost_opens_the_key_again(make_redis_system: MakeSystem) -> None:
    """Once the retry is overdue by a lease, a duplicate runs in its place."""
    # Given
    system = make_redis_system(idempotency_lease=2)
    worker = system.start_worker()
    lost = system.task("charge_flaky").delay(1, fails=1, countdown=2)
    system.ledger.wait_for("received", id=lost.id, retries=1)
    # When the message is nowhere any more
    worker.kill()
    broker = system.broker
    assert isinstance(broker, RedisBroker)
    with redis.Redis.from_url(broker.url) as client:
        client.flushdb()
    system.start_worker()
    duplicate = system.task("charge_flaky").delay(1, fails=0)
    # Then
    assert duplicate.get(timeout=60)["order"] == 1
    assert system.ledger.ids("effect") == {duplicate.id}
