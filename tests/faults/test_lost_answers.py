"""Answers that are cut on the wire, after the server has done what it was asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_idempotent.stores.redis.wire import load_script
from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.proxy import Proxy
from tests.support.system import STORE_DB
from tests.support.waiting import eventually


@pytest.fixture
def line(redis_server: RedisServer) -> Iterator[Proxy]:
    """What stands between the workers and their store."""
    proxy = Proxy("127.0.0.1", redis_server.port)
    yield proxy
    proxy.close()


@pytest.mark.parametrize("script", ["claim", "settle", "note"])
def test_an_answer_is_lost(make_faulty: MakeSystem, line: Proxy, script: str) -> None:
    """Scenarios 7 and 8: asked again, the same claim is granted, the same end is accepted."""
    # Given a lease that outlasts the test, and scripts that the server knows
    url = f"redis://127.0.0.1:{line.port}/{STORE_DB}"
    system = make_faulty(idempotency_store_url=url, idempotency_lease=300)
    system.start_worker(concurrency=1)
    pay, tail = system.task("pay"), system.task("tail")
    pay.apply_async((0,), link=tail.s()).get(timeout=30)
    system.ledger.wait_for("tail")
    # When
    line.lose_answer_to(load_script(script).sha)
    result = pay.apply_async((1,), link=tail.s())
    # Then
    answer = result.get(timeout=30)
    eventually(lambda: line.lost == 1, "the answer was lost")
    system.ledger.wait_for("tail", times=2)
    (begun,) = system.ledger.entries("start", key=1)
    assert not begun["interrupted"]
    assert system.ledger.count("effect", key=1) == 1
    assert pay.idempotency_record(1).interruptions == 0
    assert pay.delay(1).get(timeout=30) == answer
    assert system.ledger.count("tail") == 2
    assert system.ledger.count("lost") == 0
