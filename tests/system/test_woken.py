"""Duplicates that wait are let in when the run is over, and not by looking again and again."""

from __future__ import annotations

import pytest

from tests.conftest import MakeSystem
from tests.support.system import System, answers, outlive_lease

DAY = 86_400
POOLS = pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])


def run_with_duplicates(system: System, count: int = 20, order: int = 1) -> list[object]:
    """A call whose body waits at the gate ``go``, and duplicates that have found it busy."""
    charge = system.task("charge")
    first = charge.delay(order, gate="go")
    system.ledger.wait_for("start", id=first.id)
    results = [charge.delay(order, gate="go") for _ in range(count)]
    for result in results:
        system.ledger.wait_for("finished", id=result.id)
    return [first, *results]


@pytest.mark.parametrize(
    ("pool", "window"),
    [("prefork", DAY), ("threads", DAY), ("gevent", DAY), ("prefork", 0), ("threads", 0)],
)
def test_a_duplicate_takes_two_deliveries_however_long_the_run_takes(
    make_system: MakeSystem, pool: str, window: int
) -> None:
    """One that finds the key busy, and one that is answered, also where no outcome is kept.

    Leases are short, and are renewed.
    """
    # Given
    system = make_system(idempotency_lease=3, idempotency_ttl=window)
    system.start_worker(pool)
    charge = system.task("charge")
    results = run_with_duplicates(system)
    # When the run has outlived the lease that they saw
    outlive_lease(charge, 1)
    system.ledger.open("go")
    # Then
    assert len({answer["receipt"] for answer in answers(results)}) == 1
    assert [system.ledger.count("executed", id=it.id) for it in results] == [1] + [2] * 20


def test_each_call_that_runs_in_its_turn_takes_two_deliveries(make_system: MakeSystem) -> None:
    """With a mutex one that waits is let in where a run ends, and the others wait on."""
    # Given
    system = make_system(idempotency_lease=3, idempotency_ttl=0, idempotency_after_wait="run")
    system.start_worker()
    results = run_with_duplicates(system)
    # When
    system.ledger.open("go")
    # Then
    assert len({answer["receipt"] for answer in answers(results)}) == len(results)
    assert [system.ledger.count("executed", id=it.id) for it in results] == [1] + [2] * 20
