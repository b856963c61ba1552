"""A rolling deploy: workers of this release and of the next on one store and one broker.

The next release is a second checkout, whose records have another version and one more field. It
reads ours; we can't read its, and leave what we find there to it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import redis
from celery.result import AsyncResult

from celery_idempotent.core.record import VERSION
from celery_idempotent.testing.servers import RedisServer
from tests.conftest import SYSTEMS
from tests.support.brokers import RedisBroker
from tests.support.ledger import Entry, Ledger
from tests.support.releases import FIELD, NEXT, next_release
from tests.support.system import STORE_DB, System, answers
from tests.support.waiting import eventually
from tests.support.workers import ROOT, Worker

#: Of a run that is to be taken over. All others keep their key until the test is over.
SHORT_LEASE_S = 3


class Deploy:
    """One system with a worker of each release, of which either can be kept from new messages."""

    def __init__(self, system: System, old: Worker, new: Worker) -> None:
        self.system = system
        self.ledger = system.ledger
        self.old, self.new = old, new
        self._queue = system.settings["task_default_queue"]
        self._group_of: dict[int, int] = {}

    def task(self, name: str) -> Any:
        """A task, as a producer of the old release calls it."""
        return self.system.task(name)

    def give_to(self, *workers: Worker) -> None:
        """Have only these take messages from the queue; what one has taken before, it keeps."""
        control = self.system.app.control
        for worker in (self.old, self.new):
            if worker.running:
                change = control.add_consumer if worker in workers else control.cancel_consumer
                only = {"destination": [worker.node], "limit": 1}
                told = partial(change, self._queue, reply=True, timeout=5, **only)
                eventually(told, f"{worker.node} has heard whether it takes messages")

    def give_to_both(self) -> None:
        """Have both take messages."""
        self.give_to(self.old, self.new)

    def left_waiting(self, worker: Worker, call: AsyncResult, times: int = 2) -> None:
        """Return once a worker has tried a call so many times, and has not answered it."""

        def tried(ledger: Ledger) -> bool:
            ends = ledger.entries("finished", id=call.id)
            return sum(self._is_of(worker, entry) for entry in ends) >= times

        self.ledger.wait_until(tried, f"{call.id} came to {worker.node} {times} times")
        assert not call.ready()

    @contextmanager
    def stalled(self, worker: Worker, run: Entry) -> Iterator[None]:
        """Let the process of a run stand still, so that its lease ends."""
        assert self._is_of(worker, run)
        os.kill(run["pid"], signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(run["pid"], signal.SIGCONT)

    def starts(self, order: str) -> list[Entry]:
        """The bodies that began for an order."""
        return self.ledger.entries("start", key=order)

    def runners(self, order: str) -> list[Worker]:
        """Whose they were."""
        return [
            self.old if self._is_of(self.old, entry) else self.new for entry in self.starts(order)
        ]

    def _is_of(self, worker: Worker, entry: Entry) -> bool:
        # Its children are in its process group; all of them live as long as it does.
        return self._group(entry["pid"]) == worker.pid

    def _group(self, pid: int) -> int:
        if pid not in self._group_of:
            self._group_of[pid] = os.getpgid(pid)
        return self._group_of[pid]

    def version(self, order: str) -> int:
        """Which release has written the record of an order last."""
        with redis.Redis.from_url(self.system.store.url(STORE_DB)) as client:
            (name,) = client.scan_iter(f"*order:{order}}}", count=10_000)
            packed = client.get(name)
        assert isinstance(packed, bytes)
        assert (FIELD in packed) == (packed[0] == NEXT)
        return packed[0]


@pytest.fixture(scope="module")
def both_releases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deploy]:
    """A worker of each release, for all tests of this module; each has orders of its own."""
    directory = tmp_path_factory.mktemp("deploy")
    short = {"idempotency_lease": SHORT_LEASE_S}
    with RedisServer() as server:
        system = System(
            RedisBroker(server),
            server,
            directory,
            idempotency_lease=300,
            # No wait is longer than a quarter of it.
            visibility_timeout=2,
            task_options={"shop.charge_two_gates": short, "shop.never_works": short},
        )
        checkouts = ROOT, next_release(directory / "next")
        old, new = (Worker(system.settings, concurrency=3, root=root) for root in checkouts)
        system.workers += [old, new]
        try:
            for worker in system.workers:
                worker.wait_until_ready()
            yield Deploy(system, old, new)
        finally:
            system.close()


@pytest.fixture
def deploy(request: pytest.FixtureRequest, both_releases: Deploy) -> Iterator[Deploy]:
    """Both releases: they serve when a test begins, and after it, none having misread the other."""
    request.node.stash[SYSTEMS] = [both_releases.system]
    both_releases.give_to_both()
    yield both_releases
    for worker in (both_releases.old, both_releases.new):
        assert worker.running or worker.wait_until_gone() == 0
        assert "RecordCorrupt" not in worker.log
        assert "CRITICAL" not in worker.log


def test_outcomes_go_one_way(deploy: Deploy) -> None:
    """The new release answers with what the old one recorded; the old one leaves the reverse."""
    charge = deploy.task("charge")
    # Given what each has done
    deploy.give_to(deploy.old)
    of_old = charge.delay("by-old").get(timeout=30)
    deploy.give_to(deploy.new)
    of_new = charge.delay("by-new").get(timeout=30)
    assert (deploy.version("by-old"), deploy.version("by-new")) == (VERSION, NEXT)
    # Then the new one knows the old one's outcome
    assert charge.delay("by-old").get(timeout=30) == of_old
    # When the old one comes upon the new one's
    deploy.give_to(deploy.old)
    duplicate = charge.delay("by-new")
    # Then it neither answers nor runs
    deploy.left_waiting(deploy.old, duplicate)
    # And whoever can read it does answer
    deploy.give_to_both()
    assert duplicate.get(timeout=30) == of_new
    assert deploy.runners("by-old") == [deploy.old]
    assert deploy.runners("by-new") == [deploy.new]


def test_neither_runs_what_the_other_is_running(deploy: Deploy) -> None:
    """A duplicate waits for a run of the other release, whichever that is."""
    charge = deploy.task("charge")
    for runs, waits in ((deploy.old, deploy.new), (deploy.new, deploy.old)):
        order = f"run-by-{'old' if runs is deploy.old else 'new'}"
        # Given
        deploy.give_to(runs)
        first = charge.delay(order, gate=order)
        deploy.ledger.wait_for("start", key=order)
        # When
        deploy.give_to(waits)
        duplicate = charge.delay(order, gate=order)
        deploy.left_waiting(waits, duplicate)
        # Then
        deploy.ledger.open(order)
        deploy.give_to_both()
        one, two = answers([first, duplicate])
        assert one == two
        assert deploy.runners(order) == [runs]


def test_a_retry_goes_from_old_to_new_and_back(deploy: Deploy) -> None:
    """Attempts are counted over both; what comes back to the old one waits for the new one."""
    # Given an attempt by the old one
    deploy.give_to(deploy.old)
    call = deploy.task("never_works").delay("moving", "try", countdown=0)
    deploy.ledger.wait_for("start", key="moving")
    # When its retry comes to the new one
    deploy.give_to(deploy.new)
    deploy.ledger.open("try-0")
    deploy.ledger.wait_for("start", times=2, key="moving")
    # And that one's retry to the old one
    deploy.give_to(deploy.old)
    deploy.ledger.open("try-1")
    deploy.ledger.open("try-2")
    deploy.left_waiting(deploy.old, call)
    assert len(deploy.starts("moving")) == 2
    deploy.give_to_both()
    # Then
    assert isinstance(call.get(timeout=30, propagate=False), ValueError)
    assert [entry["retries"] for entry in deploy.starts("moving")] == [0, 1, 2]
    assert deploy.runners("moving") == [deploy.old, deploy.new, deploy.new]
    tokens = [entry["token"] for entry in deploy.starts("moving")]
    assert tokens == sorted(set(tokens))


def test_the_new_release_takes_over_from_the_old(deploy: Deploy) -> None:
    """A run of the old one that comes back late changes nothing; duplicates get the new one's."""
    # Given a run of the old one that stands still until its lease is over
    task = deploy.task("charge_two_gates")
    deploy.give_to(deploy.old)
    first = task.delay("stalled-old", "late", "soon")
    (run,) = deploy.ledger.wait_for("start", key="stalled-old")
    deploy.give_to(deploy.new)
    with deploy.stalled(deploy.old, run):
        # When
        duplicate = task.delay("stalled-old", "late", "soon")
        (_, second) = deploy.ledger.wait_for("start", times=2, key="stalled-old")
        deploy.ledger.open("soon")
        accepted = duplicate.get(timeout=30)
    assert second["interrupted"]
    assert second["token"] > run["token"]
    # Then the run that comes late is not recorded
    deploy.ledger.open("late")
    first.get(timeout=30)
    assert deploy.version("stalled-old") == NEXT
    # And what was accepted is what the next one gets
    deploy.give_to_both()
    assert task.delay("stalled-old", "late", "soon").get(timeout=30) == accepted
    assert deploy.runners("stalled-old") == [deploy.old, deploy.new]


def test_the_old_release_does_not_take_over_from_the_new(deploy: Deploy) -> None:
    """It can't tell that the lease is over; the run goes on when it can, and is recorded late."""
    # Given
    task = deploy.task("charge_two_gates")
    deploy.give_to(deploy.new)
    first = task.delay("stalled-new", "later", "never")
    (run,) = deploy.ledger.wait_for("start", key="stalled-new")
    deploy.give_to(deploy.old)
    with deploy.stalled(deploy.new, run):
        # When
        duplicate = task.delay("stalled-new", "later", "never")
        deploy.left_waiting(deploy.old, duplicate, times=3)
    # Then
    deploy.ledger.open("later")
    deploy.give_to_both()
    one, two = answers([first, duplicate])
    assert one == two
    assert deploy.runners("stalled-new") == [deploy.new]


def test_forget_makes_what_the_new_release_wrote_free(deploy: Deploy) -> None:
    """What an operator can do who goes back to the old release for good: who waits then runs."""
    # Given
    charge = deploy.task("charge")
    deploy.give_to(deploy.new)
    before = charge.delay("rolled-back").get(timeout=30)
    deploy.give_to(deploy.old)
    waiting = charge.delay("rolled-back")
    deploy.left_waiting(deploy.old, waiting)
    # When
    assert charge.forget("rolled-back")
    # Then
    after = waiting.get(timeout=30)
    assert after["receipt"] != before["receipt"]
    assert charge.delay("rolled-back").get(timeout=30) == after
    assert deploy.version("rolled-back") == VERSION
    assert deploy.runners("rolled-back") == [deploy.new, deploy.old]


def test_traffic_in_both_directions_is_all_answered(deploy: Deploy) -> None:
    """Many orders, each called three times, with callbacks: one effect an order, all the same."""
    # When
    charge, tail = deploy.task("charge"), deploy.task("tail")
    orders = [f"busy-{number}" for number in range(20)]
    with ThreadPoolExecutor(3) as producers:
        calls = list(
            producers.map(
                lambda order: (order, charge.apply_async((order,), link=tail.s(order))), orders * 3
            )
        )
    given: dict[str, list[Any]] = {order: [] for order in orders}
    for order, call in calls:
        given[order].append(call.get(timeout=60))
    # Then
    for order in orders:
        assert given[order] == [given[order][0]] * 3
        assert deploy.ledger.count("effect", key=order) == 1
    assert {deploy.version(order) for order in orders} == {VERSION, NEXT}
    # And each call's callback came once
    deploy.ledger.wait_for("tail", times=len(calls))
    deploy.system.wait_until_quiet()
    tails = [entry["values"][1] for entry in deploy.ledger.entries("tail")]
    assert sorted(tails) == sorted(orders * 3)


def test_the_deploy_ends_with_the_new_release_alone(deploy: Deploy) -> None:
    """What waited at the old worker is put back when it stops, and answered by the new one."""
    # Given
    charge = deploy.task("charge")
    deploy.give_to(deploy.new)
    answer = charge.delay("last").get(timeout=30)
    deploy.give_to(deploy.old)
    duplicates = [charge.delay("last") for _ in range(3)]
    for duplicate in duplicates:
        deploy.left_waiting(deploy.old, duplicate)
    # When
    deploy.old.signal(signal.SIGTERM)
    assert deploy.old.wait_until_gone() == 0
    deploy.give_to(deploy.new)
    # Then
    assert answers(duplicates) == [answer] * 3
    assert deploy.runners("last") == [deploy.new]
