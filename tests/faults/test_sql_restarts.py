"""A database that is killed and comes back, under runs, their duplicates and calls that arrive.

SQLite is not among them: it has no server that could be killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connections

from celery_idempotent.stores.sql.store import SqlStore
from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.bookings import Books
from tests.support.django_system import DjangoSystem
from tests.support.djangos import database_at
from tests.support.sql_servers import MariaDB, PostgreSQL, SqlServer
from tests.support.system import System, answers
from tests.support.waiting import eventually

#: Outlasts each test: no takeover hides a mistake.
LEASE = 300


@pytest.fixture(scope="module", params=[PostgreSQL, MariaDB])
def sql_server(request: pytest.FixtureRequest) -> Iterator[SqlServer]:
    """Each kind of server in turn."""
    made: SqlServer = request.param()
    yield made
    made.close()


@pytest.fixture
def database(sql_server: SqlServer) -> SqlServer:
    """The database of ``sql_store`` and ``books``."""
    return sql_server


@pytest.fixture
def system(make_faulty: MakeSystem, sql_store: SqlStore, sql_server: SqlServer) -> System:
    """A worker whose records are in that server, and which has run one task."""
    made = make_faulty(
        idempotency_store_url=sql_server.url, idempotency_lease=LEASE, test_bookings=True
    )
    made.start_worker(concurrency=2)
    made.task("pay").delay(0).get(timeout=30)
    return made


def test_killed_in_the_middle_of_a_body(system: System, sql_server: SqlServer) -> None:
    """Scenario 23 in SQL: the run goes on and is recorded; what arrives meanwhile runs once."""
    # Given a run, and a duplicate that waits for it
    pay = system.task("pay")
    calls = [pay.delay(1, gate="go")]
    system.ledger.wait_for("start", key=1)
    calls.append(pay.delay(1, gate="go"))
    system.ledger.wait_for("finished", id=calls[1].id)
    # When calls arrive while the database is away
    sql_server.kill()
    calls += [pay.delay(order, gate="go") for order in (1, 2, 2, 0)]
    for call in calls[2:]:
        system.ledger.wait_for("finished", id=call.id)
    # Then no body begins, and nobody is given an answer
    assert system.ledger.count("start") == 2
    assert not any(call.ready() for call in calls)
    # When
    sql_server.start()
    system.ledger.open("go")
    given = answers(calls, timeout=60)
    # Then
    assert [answer["order"] for answer in given] == [1, 1, 1, 2, 2, 0]
    assert len({answer["receipt"] for answer in given}) == 3
    assert system.ledger.count("start") == system.ledger.count("effect") == 3
    assert pay.idempotency_record(1).interruptions == 0


def test_killed_between_the_claim_and_the_completion(system: System, sql_server: SqlServer) -> None:
    """Scenario 23 in SQL: the caller gets its result at once, and it is recorded afterwards."""
    # Given
    pay = system.task("pay")
    first = pay.delay(1, gate="go")
    system.ledger.wait_for("start", key=1)
    # When the body ends while the database is away, and a duplicate comes
    sql_server.kill()
    system.ledger.open("go")
    answer = first.get(timeout=30)
    duplicate = pay.delay(1, gate="go")
    system.ledger.wait_for("finished", id=duplicate.id)
    assert not duplicate.ready()
    sql_server.start()
    # Then
    eventually(lambda: pay.idempotency_record(1).is_done, "the outcome recorded")
    assert duplicate.get(timeout=60) == answer
    assert pay.delay(1, gate="go").get(timeout=30) == answer
    assert system.ledger.count("start", key=1) == system.ledger.count("effect", key=1) == 1


def test_killed_under_the_transaction_of_a_body(
    system: System, sql_server: SqlServer, books: Books
) -> None:
    """Scenario 48 in SQL: what was not committed is gone and made again: one row, one answer."""
    sell = system.task("sell")
    points = ("before the session", "after the effect", "before the commit")
    for order, point in enumerate(points, start=1):
        # Given
        calls = [sell.delay(order, point=point)]
        system.ledger.wait_for("stopped", key=order, point=point)
        # When
        sql_server.kill()
        calls.append(sell.delay(order))
        system.ledger.wait_for("finished", id=calls[1].id)
        sql_server.start()
        system.ledger.open(str(order))
        # Then
        one, two = answers(calls, timeout=60)
        assert one == two
        assert books.tokens(order) == [one["token"]], point
        runs = 1 if point == "before the session" else 2
        assert system.ledger.count("start", key=order) == runs, point


@pytest.fixture
def project(
    sql_server: SqlServer, redis_server: RedisServer, tmp_path: Path
) -> Iterator[DjangoSystem]:
    """A Django project with its database, and its records, in that server."""
    with database_at(sql_server.url) as alias:
        from tests.django_project.shop.models import Account

        Account.objects.using(alias).create(name="ann")
        made = DjangoSystem(redis_server, alias, tmp_path, idempotency_lease=LEASE)
        made.start_worker()
        yield made
        made.close()


@pytest.mark.parametrize("sql_server", [PostgreSQL], indirect=True)
def test_killed_under_a_django_project(project: DjangoSystem, sql_server: SqlServer) -> None:
    """Scenario 48 with Django: a body's increment goes with its transaction, and is made once."""
    deposit, ledger = "shop.deposit", project.ledger
    # Given a run that has written
    project.send(deposit, 0, 1).get(timeout=30)
    calls = [project.send(deposit, 1, 10, gates=True)]
    ledger.open("before-1")
    ledger.wait_for("written", key=1)
    # When calls come while the database is away
    sql_server.kill()
    calls += [project.send(deposit, order, 10) for order in (1, 2, 2)]
    eventually(lambda: project.log.count("its body was not run") >= 3, "each was put back")
    assert not any(call.ready() for call in calls)
    sql_server.start()
    connections[project.alias].close()  # this process's own, which is dead too
    ledger.open("after-1")
    # Then
    assert [call.get(timeout=60) for call in calls] == [10] * 4
    assert project.balance() == 21
    assert sorted(entry["key"] for entry in ledger.entries("committed")) == [0, 1, 2]
    assert ledger.count("start", key=1) == 2
