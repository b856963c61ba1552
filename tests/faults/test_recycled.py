"""A process of the pool that has had its number of tasks, and ends while the store is away."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.proxy import Proxy
from tests.support.system import STORE_DB
from tests.support.waiting import eventually

#: More attempts than a process makes in the five seconds that it has when its worker is stopped.
MANY = 40


@pytest.fixture
def line(redis_server: RedisServer) -> Iterator[Proxy]:
    """What stands between the workers and their store."""
    proxy = Proxy("127.0.0.1", redis_server.port)
    yield proxy
    proxy.close()


def test_a_recycled_process_tells_first(make_faulty: MakeSystem, line: Proxy) -> None:
    """Scenario 62: it stays until the store has the outcome which nobody else knows."""
    # Given
    system = make_faulty(
        idempotency_store_url=f"redis://127.0.0.1:{line.port}/{STORE_DB}",
        idempotency_lease=300,
        worker_max_tasks_per_child=1,
    )
    system.start_worker(concurrency=1)
    pay = system.task("pay")
    first = pay.delay(1, gate="go")
    system.ledger.wait_for("start", id=first.id)
    # When
    line.refuse()
    system.ledger.open("go")
    answer = first.get(timeout=30)
    eventually(lambda: line.refused >= MANY, "it goes on trying", timeout=60)
    line.accept()
    # Then
    eventually(lambda: pay.idempotency_record(1).is_done, "recorded")
    assert pay.delay(1, gate="go").get(timeout=30) == answer
    assert system.ledger.count("effect", key=1) == 1


def test_what_a_process_could_not_tell_is_an_error(make_faulty: MakeSystem, line: Proxy) -> None:
    """Scenario 62: the log names the key and what its outcome was, when the process ends."""
    # Given
    system = make_faulty(
        idempotency_store_url=f"redis://127.0.0.1:{line.port}/{STORE_DB}", idempotency_lease=300
    )
    worker = system.start_worker(concurrency=1)
    pay = system.task("pay")
    first = pay.delay(1, gate="go")
    system.ledger.wait_for("start", id=first.id)
    # When
    line.refuse()
    system.ledger.open("go")
    first.get(timeout=30)
    worker.signal(signal.SIGTERM)
    worker.wait_until_gone(60)
    # Then
    (told,) = [line for line in worker.log.splitlines() if "this process ends" in line]
    assert "ERROR" in told
    assert "{shop.pay:order:1} is succeeded" in told
