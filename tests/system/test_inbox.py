"""Effects in the store's own database: exactly one for each key, whatever happens to its runs."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from celery_idempotent.core.record import State
from celery_idempotent.stores.sql.store import SqlStore
from tests.conftest import MakeSystem
from tests.support.bookings import POINTS, Books
from tests.support.databases import Database
from tests.support.system import System, answers, outlive_lease

#: Far longer than any test: a lease that ends sooner was ended by somebody.
LONG_LEASE = 300
SHORT_LEASE = 1.5


@pytest.fixture
def make(make_redis_system: MakeSystem, sql_store: SqlStore, database: Database) -> MakeSystem:
    def make(**options: object) -> System:
        return make_redis_system(idempotency_store_url=database.url, test_bookings=True, **options)

    return make


@pytest.mark.parametrize(
    ("task", "points"), [("sell", POINTS), ("sell_message", POINTS[2:5])], ids=["key", "message id"]
)
def test_a_run_that_is_killed_leaves_one_effect(
    make: MakeSystem, books: Books, task: str, points: tuple[str, ...]
) -> None:
    """Killed before its effect, after it, before the commit, after it, before the ack: one row.

    With the message's id as its key, this is the Inbox pattern.
    """
    # Given
    system = make(idempotency_lease=LONG_LEASE)
    system.start_worker(concurrency=1)
    for order, point in enumerate(points):
        # When
        result = system.task(task).delay(order, point=point)
        (stopped,) = system.ledger.wait_for("stopped", key=order, point=point)
        was_there = books.count(order)
        os.kill(stopped["pid"], signal.SIGKILL)
        system.ledger.open(str(order))
        # Then
        if point != "before the ack":
            # Celery finds the result of a run that had stored it, and delivers it no more.
            system.ledger.wait_for("finished", id=result.id)
            assert system.ledger.count("received", id=result.id) >= 2
        answer = result.get(timeout=60)
        committed = point in ("after the commit", "before the ack")
        assert was_there == committed, point
        assert books.tokens(order) == [answer["token"]], point
        assert system.ledger.count("start", key=order) == (1 if committed else 2), point


def test_a_worker_that_is_killed_leaves_one_effect(make: MakeSystem, books: Books) -> None:
    """A whole machine is lost between effect and commit: the next worker makes the effect."""
    # Given
    system = make(visibility_timeout=3, idempotency_lease=SHORT_LEASE)
    worker = system.start_worker(concurrency=1)
    result = system.task("sell").delay(1, point="before the commit")
    system.ledger.wait_for("stopped", key=1)
    # When
    worker.kill()
    system.ledger.open("1")
    system.start_worker(concurrency=1)
    # Then
    answer = result.get(timeout=60)
    assert books.tokens(1) == [answer["token"]]
    assert system.ledger.count("start", key=1) == 2


@pytest.mark.parametrize("point", ["before the session", "after the effect", "before the commit"])
def test_a_zombie_that_wakes_changes_nothing(
    make: MakeSystem, books: Books, database: Database, point: str
) -> None:
    """A run that was stopped for longer than its lease: one effect, and one answer for all."""
    # Given a worker that asks for no second message, which would be stopped with it
    system = make(idempotency_lease=SHORT_LEASE, worker_prefetch_multiplier=1)
    zombie = system.start_worker(concurrency=1)
    first = system.task("sell").delay(1, point=point)
    system.ledger.wait_for("stopped", key=1, point=point)
    # When
    zombie.pause()
    system.ledger.open("1")
    system.start_worker(concurrency=1)
    second = system.task("sell").delay(1)
    # Where the stopped run holds a lock on its record, that is its lease: the others wait.
    locked = point == "before the commit" or (
        database.kind == "sqlite" and point != "before the session"
    )
    if locked:
        system.ledger.wait_for("executed", times=3, id=second.id)
        assert system.ledger.count("start") == 1
    else:
        answer = second.get(timeout=60)
    zombie.resume()
    # Then
    one, two = answers([first, second], timeout=60)
    system.wait_until_quiet()
    assert one == two
    assert books.tokens(1) == [one["token"]]
    if not locked:
        assert one == answer
        assert system.ledger.count("start") == 2
        assert "lost its key" in zombie.log


@pytest.mark.parametrize("then", ["fail", "retry"])
def test_a_body_that_raises_leaves_no_effect(make: MakeSystem, books: Books, then: str) -> None:
    """What a body wrote is rolled back if it fails or retries; the retry writes its own."""
    # Given
    system = make()
    system.start_worker(concurrency=1)
    # When
    result = system.task("sell").delay(1, then=then)
    # Then
    (answer,) = answers([result])
    if then == "fail":
        assert isinstance(answer, ValueError)
        assert books.count(1) == 0
    else:
        assert books.tokens(1) == [answer["token"]]
        assert system.ledger.count("start") == 2


def test_duplicates_get_the_one_effects_answer(make: MakeSystem, books: Books) -> None:
    """Equal calls at once, in many processes: one row, and its answer for everybody."""
    # Given
    system = make()
    system.start_worker(concurrency=3)
    # When
    results = [system.task("sell").delay(order % 3) for order in range(18)]
    # Then
    given = answers(results, timeout=90)
    for order in range(3):
        (token,) = books.tokens(order)
        assert [answer["token"] for answer in given[order::3]] == [token] * 6


def test_processes_killed_at_random_leave_one_effect_each(make: MakeSystem, books: Books) -> None:
    """Kill whatever runs, again and again, at instants that nobody chose: one row for each key."""
    # Given
    system = make(idempotency_lease=LONG_LEASE, idempotency_max_interruptions=100)
    system.start_worker(concurrency=2)
    # When
    results = [system.task("sell").delay(order) for order in range(30)]
    for number in range(1, 7):
        executed = system.ledger.wait_for("executed", times=4 * number, timeout=60)
        with contextlib.suppress(ProcessLookupError):
            os.kill(executed[-1]["pid"], signal.SIGKILL)
    # Then
    given = answers(results, timeout=120)
    for order, answer in enumerate(given):
        assert books.tokens(order) == [answer["token"]]


def test_a_forgotten_run_is_undone_and_runs_again(
    make: MakeSystem, books: Books, sql_store: SqlStore
) -> None:
    """Its key was forgotten while it ran: nothing of it is left, and its message runs again."""
    # Given
    system = make()
    system.start_worker(concurrency=1)
    result = system.task("sell").delay(1, point="before the session")
    system.ledger.wait_for("stopped", key=1)
    # When
    assert system.task("sell").forget(1)
    system.ledger.open("1")
    # Then
    answer = result.get(timeout=60)
    assert books.tokens(1) == [answer["token"]]
    assert system.ledger.count("start") == 2
    record = system.task("sell").idempotency_record(1)
    assert record.state is State.SUCCEEDED


def test_a_long_body_keeps_its_key(make: MakeSystem, books: Books, database: Database) -> None:
    """A body that writes, and then takes longer than its lease, is not taken over."""
    # Given
    system = make(idempotency_lease=SHORT_LEASE)
    system.start_worker(concurrency=2)
    first = system.task("sell").delay(1, point="after the effect")
    system.ledger.wait_for("stopped", key=1)
    # When
    second = system.task("sell").delay(1)
    system.ledger.wait_for("finished", id=second.id)
    if database.kind == "sqlite":
        # Its write lock is the lease: the duplicate is let in now and then, and finds it locked.
        system.ledger.wait_for("executed", times=3, id=second.id)
    else:
        outlive_lease(system.task("sell"), 1)
    system.ledger.open("1")
    # Then
    one, two = answers([first, second], timeout=60)
    assert one == two
    assert books.tokens(1) == [one["token"]]
    assert system.ledger.count("start") == 1


def test_callbacks_follow_the_commit_once(make: MakeSystem, books: Books) -> None:
    """The link of a message whose process dies after the commit goes out, once."""
    # Given
    system = make(idempotency_lease=LONG_LEASE)
    system.start_worker(concurrency=1)
    # When
    call = system.task("sell").s(1, point="after the commit")
    result = call.apply_async(link=system.task("tail").s())
    (stopped,) = system.ledger.wait_for("stopped", key=1)
    os.kill(stopped["pid"], signal.SIGKILL)
    system.ledger.open("1")
    # Then
    answer = result.get(timeout=60)
    system.ledger.wait_for("tail")
    system.wait_until_quiet()
    assert books.tokens(1) == [answer["token"]]
    assert system.ledger.count("tail") == 1
    assert system.ledger.count("start") == 1
