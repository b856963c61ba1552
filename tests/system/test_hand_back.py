"""``self.idempotency.release()`` on real workers: the key is free while the body goes on."""

from __future__ import annotations

from tests.conftest import MakeSystem
from tests.support.brokers import RABBITMQ_SENDS_COPIES
from tests.support.waiting import eventually

VISIBILITY_TIMEOUT = 2
#: No lease ends by itself while a test runs.
LEASE = 300


@RABBITMQ_SENDS_COPIES
def test_the_next_call_runs_beside_the_first_whose_copy_runs_nothing(
    make_system: MakeSystem,
) -> None:
    """Two bodies of one key at once; each call has one effect, and its own answer."""
    # Given a run that has freed its key
    system = make_system(
        visibility_timeout=VISIBILITY_TIMEOUT, idempotency_lease=LEASE, idempotency_ttl=0
    )
    system.start_worker()
    task = system.task("hand_back")
    first = task.delay(1, "now", "first")
    system.ledger.open("now")
    system.ledger.wait_for("released", id=first.id)
    # When
    second = task.delay(1, "now", "second")
    # Then the second call runs, and ends, meanwhile
    system.ledger.wait_for("released", id=second.id)
    system.ledger.open("second")
    assert second.get(timeout=30)["order"] == 1
    assert first.state == "PENDING"
    # When the first call's message is delivered again, while its body goes on
    received = system.ledger.count("received", id=first.id)
    finished = system.ledger.count("finished", id=first.id)
    system.redeliver()
    system.ledger.wait_for("received", times=received + 1, id=first.id)
    system.ledger.wait_for("finished", times=finished + 1, id=first.id)
    system.ledger.open("first")
    # Then
    assert first.get(timeout=30)["order"] == 1
    system.wait_until_quiet()
    for call in (first, second):
        assert system.ledger.count("start", id=call.id) == 1
        assert system.ledger.count("effect", id=call.id) == 1


def test_a_run_that_dies_after_it_is_run_again_and_harms_no_other(make_system: MakeSystem) -> None:
    """At least once: its copy waits for the run that has the key now, and runs then."""
    # Given
    system = make_system(
        visibility_timeout=VISIBILITY_TIMEOUT, idempotency_lease=2, idempotency_ttl=0
    )
    # It takes no other message, which could be lost with it on its way.
    dying = system.start_worker(concurrency=1, options=["--prefetch-multiplier", "1"])
    task = system.task("hand_back")
    first = task.delay(1, "now", "first")
    system.ledger.open("now")
    system.ledger.wait_for("released", id=first.id)
    # When another call has the key, on another worker, and does not give it up
    system.start_worker(concurrency=2)
    other = task.delay(1, "second", "second")
    system.ledger.wait_for("start", id=other.id)
    dying.kill()
    # Then its copy comes, and waits
    system.ledger.wait_for("received", times=2, id=first.id)
    assert system.ledger.count("start", id=first.id) == 1
    # When
    system.ledger.open("second")
    system.ledger.open("first")
    # Then
    assert other.get(timeout=30)["order"] == 1
    assert first.get(timeout=30)["order"] == 1
    runs = system.ledger.entries("start", id=first.id)
    assert [run["interrupted"] for run in runs] == [False, True]
    assert system.ledger.count("effect", id=first.id) == 1
    assert system.ledger.count("effect", id=other.id) == 1
    eventually(lambda: system.broker.messages() == 0, "nothing left")
