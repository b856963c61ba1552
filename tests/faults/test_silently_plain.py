"""Tasks that would be plain without a word, on real workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from celery_idempotent import ConfigurationError
from tests.conftest import MakeSystem
from tests.support.system import System
from tests.support.workers import Worker

_OTHERS = '''
from celery import Celery

app = Celery("others", broker="memory://")


@app.task(idempotency_key="order:{order_id}")
def charge(order_id):
    """Its author forgot the base class, here and everywhere."""
'''


def refused(worker: Worker) -> str:
    """What a worker says that does not start."""
    assert worker.wait_until_gone(60) != 0
    return worker.log


def start(system: System, **options: Any) -> Worker:
    """Start a worker that is not expected to come up."""
    worker = Worker(system.settings, pool="solo", concurrency=1, **options)
    system.workers.append(worker)
    return worker


def test_a_worker_with_an_option_that_nothing_reads(make_redis_system: MakeSystem) -> None:
    """Scenario 65: on a plain task, or a misspelt setting: the worker does not start."""
    # Given
    plain = make_redis_system(task_options={"shop.tail": {"idempotency_key": "t:{values}"}})
    # Then
    assert "task 'shop.tail': idempotency_key is set" in refused(start(plain))
    # Given
    misspelt = make_redis_system()
    misspelt.settings["idempotency_on_interupted"] = "unknown"
    # Then
    assert "did you mean idempotency_on_interrupted?" in refused(start(misspelt))


def test_a_worker_of_an_app_without_a_task_of_ours(
    make_redis_system: MakeSystem, tmp_path: Path
) -> None:
    """Scenario 65: where the base class was forgotten everywhere, too, and nothing was imported."""
    # Given
    (tmp_path / "others.py").write_text(_OTHERS)
    # When
    worker = start(make_redis_system(), root=tmp_path, app="others")
    # Then
    assert "task 'others.charge': idempotency_key is set" in refused(worker)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_call_that_passes_by_the_guard(make_redis_system: MakeSystem, pool: str) -> None:
    """Scenario 65: the first delivery fails loudly, and its body is not run."""
    # Given
    system = make_redis_system(test_passing_by=True)
    system.start_worker(pool, concurrency=1)
    # When
    answer = system.app.send_task("shop.passed_by", (1,)).get(timeout=30, propagate=False)
    # Then
    assert isinstance(answer, ConfigurationError)
    assert "passes by" in str(answer)
    assert system.ledger.count("start") == 0
