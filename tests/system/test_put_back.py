"""Messages that real workers put back: they bring what their callers sent, whatever happened."""

from __future__ import annotations

from typing import Any

import pytest

from celery_idempotent.stores.sql import create_schema
from tests.conftest import MakeSystem
from tests.support.bookings import Books
from tests.support.databases import Database
from tests.support.serializers import SERIALIZERS, round_trip
from tests.support.system import System

#: Celery refuses to run with pickle as root otherwise.
AS_ROOT = {"C_FORCE_ROOT": "1"}


def _prices(serializer: str) -> dict[Any, Any]:
    # A number for a key is text after JSON, a tuple is a list after all but pickle.
    return {"1": [100]} if serializer == "msgpack" else {1: [100], 2: (2, 50)}


def _system(make: MakeSystem, serializer: str, pool: str = "prefork", **options: Any) -> System:
    """A worker that accepts this serializer alone, and whose own is another."""
    system = make(
        test_changing=True,
        accept_content=[serializer],
        result_accept_content=["json"],
        task_options={"shop.takes": options},
    )
    system.start_worker(pool=pool, concurrency=2, environment=AS_ROOT)
    return system


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_a_body_that_begins_anew_gets_what_was_sent(
    make_system: MakeSystem, serializer: str
) -> None:
    """Though its first run had taken all from its arguments, before it stopped."""
    # Given
    system = _system(make_system, serializer)
    brought = round_trip(_prices(serializer), serializer)
    # When
    result = system.task("takes").apply_async(
        (1, _prices(serializer)), {"also": [1]}, serializer=serializer
    )
    # Then
    assert result.get(timeout=60) == repr((brought, [1]))
    shown = [entry["shown"] for entry in system.ledger.entries("start")]
    assert shown == [repr((brought, [1]))] * 2
    _goes_on_quietly(system)


def test_a_body_whose_database_restarts_before_its_commit_writes_all_rows(
    make_system: MakeSystem, own_postgresql: Database
) -> None:
    """It had taken them from its arguments, wrote none, and SUCCESS with no row was recorded."""
    # Given
    books = Books(own_postgresql.url)
    create_schema(books.engine)
    system = make_system(test_changing=True, idempotency_store_url=own_postgresql.url)
    system.start_worker(concurrency=1)
    # When
    result = system.task("takes_rows").delay(1, {"rows": [1, 2, 3]})
    # Then
    assert result.get(timeout=60) == 3
    assert books.count(1) == 3
    assert system.ledger.count("start", id=result.id) == 2
    books.close()


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_a_call_that_waits_keeps_its_serializer(make_system: MakeSystem, serializer: str) -> None:
    """Another would change its arguments, or have them thrown away by who doesn't accept it."""
    # Given
    turns = {"idempotency_ttl": 0, "idempotency_after_wait": "run"}
    system = _system(make_system, serializer, **turns)
    takes, brought = system.task("takes"), round_trip(_prices(serializer), serializer)
    first = takes.apply_async((1, {}, "go"), serializer=serializer)
    system.ledger.wait_for("start", id=first.id)
    # When
    second = takes.apply_async((1, _prices(serializer)), serializer=serializer)
    system.ledger.wait_for("finished", id=second.id, state="RETRY")
    system.ledger.open("go")
    # Then
    assert second.get(timeout=60) == repr((brought, round_trip((), "pickle")))
    assert first.get(timeout=60) == repr(({}, ()))
    _goes_on_quietly(system)


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent"])
def test_in_every_pool(make_redis_system: MakeSystem, pool: str) -> None:
    """Where the body has the very objects that the worker's parent had."""
    # Given
    system = _system(make_redis_system, "pickle", pool)
    # When
    result = system.task("takes").apply_async(
        (1, _prices("pickle")), {"also": [1]}, serializer="pickle", compression="zlib"
    )
    # Then
    assert result.get(timeout=60) == repr((_prices("pickle"), [1]))
    _goes_on_quietly(system)


def _goes_on_quietly(system: System) -> None:
    """No message went back to the broker as it was, for want of a way to publish it."""
    assert "could not be published" not in system.workers[0].log
