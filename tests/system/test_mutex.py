"""``idempotency_after_wait = "run"`` on real workers: every call runs, and never two at once."""

from __future__ import annotations

import os
import signal

from tests.conftest import MakeSystem
from tests.support.system import answers

CALLS = 200
KILLS = 4


def test_two_hundred_calls_run_one_at_a_time_though_processes_die(
    make_redis_system: MakeSystem,
) -> None:
    """Eight processes, of which four are killed midway: each call's effect, and no overlap.

    Whole workers are not killed: Redis's transport loses what one has popped and not yet noted.
    """
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
