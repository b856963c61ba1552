"""Packages that tasks themselves use, or that other tasks of the app are made of."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from celery import Celery

from celery_idempotent import IdempotentTask
from tests.ecosystem.adapter import Adapter, Figure
from tests.ecosystem.beat import Beat
from tests.ecosystem.world import PATIENCE_S, World
from tests.support.waiting import eventually

__all__ = ["Once", "Progress", "PytestPlugin", "RedBeat", "Singleton"]

Note = Callable[..., None]


class Progress(Adapter):
    """A task tells how far it is, and each caller reads it."""

    def install(self, app: Celery, note: Note) -> None:
        from celery_progress.backend import ProgressRecorder

        @app.task(name="shop.export", base=IdempotentTask, bind=True, idempotency_key="{order}")
        def export(self: Any, order: int) -> str:
            recorder = ProgressRecorder(self)
            recorder.set_progress(1, 2)
            note("effect", order=order, id=self.request.id)
            recorder.set_progress(2, 2)
            return "exported"

    def cases(self) -> list[Callable[[World], None]]:
        from celery_progress.backend import Progress as Read

        def each_caller_reads_the_end(world: World) -> None:
            """Whether its call ran or not."""
            # When
            calls = [world.call("export", 20, role) for role in ("run", "duplicate")]
            world.answers(calls)
            # Then
            assert world.effects(20) == 1
            for call in calls:
                info = Read(world.app.AsyncResult(call.id)).get_info()
                assert info["complete"] is info["success"] is True, info
                assert info["progress"]["percent"] == 100, info

        return [each_caller_reads_the_end]


class _OtherTasks(Adapter):
    """Another library's tasks beside ours."""

    def cases(self) -> list[Callable[[World], None]]:
        def its_own_tasks_run_and_unlock(world: World) -> None:
            """One after the other, as they do without this library."""
            task = world.app.tasks["shop.other"]
            for turn in range(2):
                call = task.delay(7)
                assert call.get(timeout=PATIENCE_S) == 7
                eventually(
                    lambda: world.ledger.count("finished", name="shop.other") == turn + 1,  # noqa: B023
                    "it is unlocked",
                )
            assert world.ledger.count("other") == 2

        return [its_own_tasks_run_and_unlock]


class Once(_OtherTasks):
    """celery-once's tasks."""

    def install(self, app: Celery, note: Note) -> None:
        from celery_once import QueueOnce

        app.conf.ONCE = {
            "backend": "celery_once.backends.Redis",
            "settings": {"url": f"{self.server}/3", "default_timeout": 60},
        }

        @app.task(name="shop.other", base=QueueOnce)
        def other(order: int) -> int:
            note("other", order=order)
            return order


class Singleton(_OtherTasks):
    """celery-singleton's tasks."""

    def settings(self) -> dict[str, Any]:
        return {"singleton_backend_url": f"{self.server}/3"}

    def install(self, app: Celery, note: Note) -> None:
        from celery_singleton import Singleton as Base

        @app.task(name="shop.other", base=Base)
        def other(order: int) -> int:
            note("other", order=order)
            return order


class RedBeat(Beat):
    """A schedule in Redis."""

    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            "redbeat_redis_url": f"{self.server}/4",
            "redbeat_lock_timeout": 10,
        }

    def beat_options(self) -> list[str]:
        return [*super().beat_options(), "-S", "redbeat.RedBeatScheduler"]

    def counted(self, world: World) -> int:
        from redbeat import RedBeatSchedulerEntry

        entry = RedBeatSchedulerEntry.from_key("redbeat:tick", app=world.app)
        return int(entry.total_run_count)


class PytestPlugin(Adapter):
    """Celery's own fixtures: a worker in a thread of the tests' process."""

    def cases(self) -> list[Callable[[World], None]]:
        def tests_of_an_app(world: World) -> None:
            """They pass, and leave nothing behind that the next one meets."""
            file = self.directory / "test_shop.py"
            file.write_text(_TESTS, "utf-8")
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-p", "celery.contrib.pytest", str(file)],
                env={**os.environ, "SHOP_SERVER": self.server},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout
            assert "3 passed" in done.stdout

        return [tests_of_an_app]

    def figures(self, world: World) -> Iterator[Figure]:
        yield from ()


_TESTS = """
import os
import threading

import pytest

from celery_idempotent import IdempotentTask

SERVER = os.environ["SHOP_SERVER"]


@pytest.fixture(scope="session")
def celery_config():
    return {
        "broker_url": f"{SERVER}/5",
        "result_backend": f"{SERVER}/6",
        "idempotency_store_url": f"{SERVER}/7",
    }


@pytest.fixture(scope="session")
def celery_worker_pool():
    return "threads"


@pytest.fixture(scope="session")
def celery_worker_parameters():
    return {"concurrency": 4, "perform_ping_check": False}


def test_duplicates_get_the_first_calls_result(celery_app, celery_worker):
    runs = []

    @celery_app.task(base=IdempotentTask, idempotency_key="order:{order}")
    def charge(order):
        runs.append(order)
        return len(runs)

    celery_worker.reload()
    assert [charge.delay(1).get(timeout=30) for _ in range(3)] == [1, 1, 1]


def test_five_at_once(celery_app, celery_worker):
    runs, gate = [], threading.Event()

    @celery_app.task(base=IdempotentTask, idempotency_key="order:{order}")
    def ship(order):
        runs.append(order)
        gate.wait(30)
        return len(runs)

    celery_worker.reload()
    calls = [ship.delay(2) for _ in range(5)]
    gate.set()
    assert [call.get(timeout=30) for call in calls] == [1] * 5


def test_a_failure(celery_app, celery_worker):
    @celery_app.task(base=IdempotentTask, idempotency_key="order:{order}")
    def decline(order):
        raise ValueError("declined")

    celery_worker.reload()
    with pytest.raises(ValueError, match="declined"):
        decline.delay(3).get(timeout=30)
"""
