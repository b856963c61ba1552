"""Records are moved to another store while calls go on: new calls get the old outcomes."""

from __future__ import annotations

import itertools
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
from celery.result import AsyncResult

from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.commands import Commands
from tests.support.system import System, answers
from tests.support.tasks import make_app
from tests.support.waiting import eventually
from tests.support.workers import Worker

GATED = 1000


class Traffic:
    """A producer that calls each order twice, one after the other, until it is stopped."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.results: list[AsyncResult] = []
        self.orders = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._publish)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def has(self, calls: int) -> bool:
        """Whether so many calls were published."""
        return len(self.results) >= calls

    def _publish(self) -> None:
        while not self._over.wait(0.1):
            for _ in range(2):
                self.results.append(self._system.task("charge").delay(self.orders))
            self.orders += 1


@pytest.fixture
def places(own_server: RedisServer, tmp_path: Path) -> list[str]:
    """The stores that the records move through."""
    return [own_server.url(5), f"sqlite:///{tmp_path / 'records.db'}", own_server.url(6)]


@pytest.mark.long(15)
def test_a_store_is_moved_under_traffic(
    make_redis_system: MakeSystem,
    places: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From Redis to SQL and back to Redis, each time in two exports: no effect is made twice."""

    def commands(url: str) -> Commands:
        app = make_app({**system.settings, "idempotency_store_url": url})
        return Commands(app, capsys)

    def copy(old: str, new: str) -> None:
        file = str(tmp_path / "records.jsonl")
        assert commands(old)("export", file).code == 0
        assert commands(new)("import", file).code == 0

    def start(url: str) -> Worker:
        system.settings["idempotency_store_url"] = url
        return system.start_worker(concurrency=2)

    # Given
    system = make_redis_system(idempotency_store_url=places[0])
    assert commands(places[1])("init-db").code == 0
    worker = start(places[0])
    gated = [system.task("charge").delay(GATED, gate="go on")]
    system.ledger.wait_for("start", key=GATED)
    with Traffic(system) as traffic:
        for old, new in itertools.pairwise(places):
            # When
            eventually(partial(traffic.has, len(traffic.results) + 20), "traffic")
            copy(old, new)  # while it runs: most of the records are there before it stops
            system.ledger.open("go on")
            worker.signal(signal.SIGTERM)
            # A child may wait for thirty seconds: billiard's pool does not always read the last
            # result of a child as it closes, with tasks of Celery's own just as with ours.
            worker.wait_until_gone(90)
            copy(old, new)
            worker = start(new)
    again = [system.task("charge").delay(order) for order in range(traffic.orders)]
    gated.append(system.task("charge").delay(GATED))
    # Then
    first = answers(traffic.results, timeout=60)
    assert first[::2] == first[1::2] == answers(again, timeout=60)
    assert len({answer["receipt"] for answer in answers(gated, timeout=60)}) == 1
    for order in (*range(traffic.orders), GATED):
        assert system.ledger.count("effect", key=order) == 1
