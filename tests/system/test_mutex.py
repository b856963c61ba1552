"""``idempotency_after_wait = "run"`` on real workers: every call runs, and never two at once."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_idempotent.testing.servers import RedisServer
from tests.chaos import aof
from tests.conftest import MakeSystem
from tests.support.brokers import Broker, RedisBroker
from tests.support.ledger import Entry, Ledger
from tests.support.system import System, answers
from tests.support.waiting import eventually

CALLS = 200
KILLS = 4
LEASE = 2
#: In the bodies of these calls a fault is made.
GATED = (20, 60, 100, 140, 180)
#: So many of the calls are made while the store is away.
OUTAGES = 3


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    """Each broker in turn; a Redis of its own, whose log of writes is kept."""
    if request.param == "rabbitmq":
        yield request.getfixturevalue("rabbit_broker")
        return
    kept = ("--appendonly", "yes", "--auto-aof-rewrite-percentage", "0")
    with RedisServer(directory=tmp_path / "broker", args=kept) as server:
        yield RedisBroker(server)


def test_two_hundred_calls_run_one_at_a_time_though_processes_die(
    make_redis_system: MakeSystem,
) -> None:
    """Eight processes, of which four are killed midway: each call's effect, and no overlap."""
    # Given
    system = make_redis_system(
        idempotency_ttl=0, idempotency_after_wait="run", idempotency_lease=2, visibility_timeout=5
    )
    for _ in range(2):
        system.start_worker(concurrency=4)
    charge = system.task("charge")
    # When
    results = [charge.delay(1, amount) for amount in range(CALLS)]
    system.ledger.wait_until(lambda it: it.count("effect") > CALLS // 4, "a quarter is done")
    pids = {entry["pid"] for entry in system.ledger.entries("start")}
    for pid in sorted(pids)[:KILLS]:
        os.kill(pid, signal.SIGKILL)
    got = answers(results, timeout=60)
    # Then
    assert [it["amount"] for it in got] == list(range(CALLS))
    assert system.ledger.ids("effect") == {result.id for result in results}
    # Then nobody began while another ran; who was killed leaves a start without an end
    running, cut_off = None, 0
    for entry in system.ledger.entries():
        if entry["event"] == "start":
            cut_off += running is not None
            running = entry["id"]
        elif entry["event"] == "end":
            assert entry["id"] == running
            running = None
    assert cut_off <= KILLS


def test_a_call_whose_worker_was_killed_is_told_so_after_the_turn_of_another(
    make_redis_system: MakeSystem,
) -> None:
    """Its message comes again after that one's run has ended: its effect may have happened."""
    # Given
    system = make_redis_system(
        idempotency_ttl=0, idempotency_after_wait="run", idempotency_lease=2, visibility_timeout=10
    )
    worker = system.start_worker(concurrency=1)
    charge, ledger = system.task("charge"), system.ledger
    first = charge.delay(1, 1, gate="go")
    ledger.wait_for("start", id=first.id)
    worker.kill()
    ledger.open("go")
    system.start_worker(concurrency=1)
    # When
    other = charge.delay(1, 2)
    # Then
    assert [it["amount"] for it in answers([first, other], timeout=60)] == [1, 2]
    told = {it.id: [] for it in (first, other)}
    for entry in ledger.entries("start"):
        told[entry["id"]].append(entry["interrupted"])
    assert told == {first.id: [False, True], other.id: [False]}


class Faults:
    """What is done to a system while one of its calls is in its body, at the gate of that call.

    Each fault returns once it is over, and the gate is open.

    Args:
        call: makes the next call, which :data:`OUTAGES` are left for; returns its id.
    """

    def __init__(self, system: System, call: Callable[[], str]) -> None:
        self._system = system
        self._call = call
        self.all: list[Callable[[Entry, str], None]] = [
            self.its_worker_is_killed,
            self.the_store_is_killed,
            self.the_other_worker_is_killed,
            self.the_body_ends_while_the_store_is_away,
            self.its_worker_is_killed_while_the_store_is_away,
        ]

    def its_worker_is_killed(self, run: Entry, gate: str) -> None:
        """With its whole pool, as a machine is lost."""
        self._kill_worker(run, has_the_run=True)
        self._system.ledger.open(gate)

    def the_other_worker_is_killed(self, run: Entry, gate: str) -> None:
        """It has calls that wait, and no body."""
        self._kill_worker(run, has_the_run=False)
        self._system.ledger.open(gate)

    def the_store_is_killed(self, run: Entry, gate: str) -> None:
        """It is back, with its data, before the body ends."""
        self._kill_store()
        self._system.store.restart()
        self._system.ledger.open(gate)

    def the_body_ends_while_the_store_is_away(self, run: Entry, gate: str) -> None:
        """Its end is recorded when the store is back."""
        self._kill_store()
        self._system.ledger.open(gate)
        self._system.ledger.wait_for("end", id=run["id"])
        self._system.store.restart()

    def its_worker_is_killed_while_the_store_is_away(self, run: Entry, gate: str) -> None:
        """Nobody can end its lease."""
        self._kill_store()
        self._kill_worker(run, has_the_run=True)
        self._system.store.restart()
        self._system.ledger.open(gate)

    def _kill_store(self) -> None:
        """Kill it; return once the lease is over, and a call has met the outage.

        That is a new one: those that wait may be held for a minute without asking the store.
        """
        ledger = self._system.ledger
        self._system.store.kill()
        over = time.monotonic() + LEASE + 1
        ledger.wait_for("finished", id=self._call(), state="RETRY")
        eventually(lambda: time.monotonic() > over, "the lease is over")

    def _kill_worker(self, run: Entry, *, has_the_run: bool) -> None:
        """Kill the parent and its pool, note which bodies can't end any more, start another."""
        ledger = self._system.ledger
        (chosen,) = [
            worker
            for worker in self._system.workers
            if worker.running and (os.getpgid(run["pid"]) == worker.pid) is has_the_run
        ]
        chosen.kill()
        ledger.write("dead", pids=[run["pid"]] if has_the_run else [])
        self._system.start_worker(concurrency=4)


@pytest.mark.long(60)
def test_two_hundred_calls_run_one_at_a_time_though_workers_and_the_store_are_killed(
    make_system: MakeSystem, own_server: RedisServer, broker: Broker, tmp_path: Path
) -> None:
    """Eight processes; whole workers and the store die midway: each call's effect, no overlap."""
    # Given
    system = make_system(
        store=own_server,
        idempotency_ttl=0,
        idempotency_after_wait="run",
        idempotency_lease=LEASE,
        # A copy may be lost with one worker after the other: that takes longer than two timeouts,
        # for which a call's answer is kept.
        visibility_timeout=20,
    )
    if isinstance(broker, RedisBroker):
        broker.deliver_again_after(5)
    for _ in range(2):
        system.start_worker(concurrency=4)
    charge, ledger = system.task("charge"), system.ledger
    results: list[Any] = []

    def call() -> str:
        amount = len(results)
        results.append(charge.delay(1, amount, gate=f"gate {amount}" if amount in GATED else None))
        return results[-1].id

    # When
    for _ in range(CALLS - OUTAGES):
        call()
    gates = {results[amount].id: f"gate {amount}" for amount in GATED}
    for fault in Faults(system, call).all:
        run = eventually(lambda: at_gate(ledger, gates), "a body at its gate", timeout=60)
        fault(run, gates.pop(run["id"]))

    # When what the transport has lost is sent again, as it was, once nothing else is missing: a
    # message that is being taken off its queue looks like a lost one
    def missing() -> set[str]:
        return {result.id for result in results if not result.ready()}

    eventually(
        lambda: len(left := missing()) < CALLS // 4 and left <= lost(broker, tmp_path),
        "answers to all that was not lost",
        timeout=120,
    )
    for task_id in missing():
        amount = next(number for number, it in enumerate(results) if it.id == task_id)
        charge.apply_async((1, amount), task_id=task_id)
    got = answers(results, timeout=60)
    # Then
    assert [it["amount"] for it in got] == list(range(CALLS))
    assert Counter(entry["id"] for entry in ledger.entries("effect")) == dict.fromkeys(
        (result.id for result in results), 1
    )
    # Then whose run was cut off was told so when it ran again
    starts = {result.id: ledger.entries("start", id=result.id) for result in results}
    for of_one_call in starts.values():
        told = [entry["interrupted"] for entry in of_one_call]
        assert told == [False] + [True] * (len(told) - 1)
    assert sum(len(it) for it in starts.values()) == CALLS + 2
    # Then nobody began while another ran
    running = None
    for entry in ledger.entries():
        if entry["event"] == "start":
            assert running is None
            running = entry
        elif entry["event"] == "end":
            assert running is not None
            assert entry["id"] == running["id"]
            running = None
        elif entry["event"] == "dead" and running is not None and running["pid"] in entry["pids"]:
            running = None
    assert running is None


def at_gate(ledger: Ledger, gates: dict[str, str]) -> Entry | None:
    """The run that is in its body last, if it is one of those that have a gate."""
    started = ledger.entries("start")
    return started[-1] if started and started[-1]["id"] in gates else None


def lost(broker: Broker, directory: Path) -> set[str]:
    """The ids of messages that Redis's transport took off its queue and never noted as held."""
    if not isinstance(broker, RedisBroker):
        return set()
    writes = aof.commands(directory / "broker")
    return {headers["id"] for headers in aof.lost_messages(writes, [broker.queue])}
