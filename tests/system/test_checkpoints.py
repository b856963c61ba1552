"""Loops with checkpoints on real workers: killed at random, and stopped by a shutdown."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from functools import partial

import pytest
from sqlalchemy import func, select

from celery_idempotent.core.keys import record_key
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.sql.store import SqlStore
from celery_idempotent.testing.deliveries import message_of
from tests.conftest import MakeSystem
from tests.support.bookings import Books, bookings
from tests.support.databases import Database
from tests.support.exports import Items
from tests.support.waiting import eventually

ITEMS = 100_000
KILLS = 50
EVERY = 50
OFTEN = {"idempotency_max_interruptions": 2 * KILLS}


def test_killed_at_fifty_moments_a_loop_leaves_nothing_out(make_redis_system: MakeSystem) -> None:
    """Each kill repeats at most what came after one checkpoint, of a hundred thousand items."""
    # Given
    system = make_redis_system(test_exports=True, task_options={"shop.export": OFTEN})
    export = system.task("export")
    message = message_of(export, (ITEMS, EVERY), {"kills": KILLS})
    environment = environment_of(system.app)
    key = record_key(environment.prefix, export._call_key(message.args, message.kwargs, ...))
    # When each process dies at a moment of its own, and its lease is ended as a worker ends it
    deaths = 0
    while _dies(partial(message.deliver, redelivered=deaths > 0)):
        deaths += 1
        record = environment.store.get(key)
        assert record is not None
        environment.store.end_lease(key, record.owner, record.process)
    # Then
    assert deaths == KILLS
    done = Items(system.ledger).done()
    assert set(done) == set(range(ITEMS))
    assert len(done) > ITEMS
    assert max(before - after + 1 for before, after in itertools.pairwise(done)) <= EVERY


def _dies(work: Callable[[], object]) -> bool:
    """Work in a process of its own; return whether that was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_with_a_session_kills_repeat_nothing(
    make_redis_system: MakeSystem, sql_store: SqlStore, database: Database, books: Books
) -> None:
    """Rows and cursor are committed as one: each row is there once."""
    # Given
    system = make_redis_system(
        idempotency_store_url=database.url,
        test_bookings=True,
        test_exports=True,
        task_options={"shop.export_rows": OFTEN},
    )
    system.start_worker(concurrency=2)
    # When
    result = system.task("export_rows").delay(300, 10, kills=3)
    # Then
    assert result.get(timeout=200) == 300
    assert system.ledger.count("start") == 4
    each = select(bookings.c.order_id, func.count()).group_by(bookings.c.order_id)
    with books.engine.connect() as connection:
        assert dict(row._tuple() for row in connection.execute(each)) == dict.fromkeys(
            range(300), 1
        )


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_that_shuts_down_stops_its_loops_at_a_checkpoint(
    make_redis_system: MakeSystem, pool: str
) -> None:
    """Where the task allows it: the next worker goes on behind it, and nothing is done twice."""
    _shut_down(make_redis_system, pool, stops=True)


def test_on_rabbitmq_too(make_rabbit_system: MakeSystem) -> None:
    """The message is put back through the broker's own connection."""
    _shut_down(make_rabbit_system, "prefork", stops=True)


def test_by_default_a_shutdown_waits_for_the_end_of_a_loop(make_redis_system: MakeSystem) -> None:
    """As in plain Celery."""
    _shut_down(make_redis_system, "prefork", stops=False)


def _shut_down(make: MakeSystem, pool: str, *, stops: bool) -> None:
    # Given
    option = {"idempotency_stop_at_checkpoint": stops}
    system = make(test_exports=True, task_options={"shop.export": option}, visibility_timeout=300)
    first = system.start_worker(pool=pool, concurrency=1)
    result = system.task("export").delay(20, 1, gate="go", gate_at=4)
    system.ledger.wait_for("at the gate")
    # When
    first.signal(signal.SIGTERM)
    eventually(lambda: "Warm shutdown" in first.log, "the shutdown began")
    system.ledger.open("go")
    first.wait_until_gone()
    # Then
    items = Items(system.ledger)
    assert items.done() == list(range(5 if stops else 20))
    system.start_worker(pool=pool, concurrency=1)
    assert result.get(timeout=60) == 20
    assert items.done() == list(range(20))
    starts = system.ledger.entries("start")
    assert [entry["interrupted"] for entry in starts] == [False] * (1 + stops)
