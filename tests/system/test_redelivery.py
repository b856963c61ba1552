"""One message delivered again: while it runs, in its back-off, and after everything is over.

Redis delivers again what is not acknowledged within the visibility timeout, RabbitMQ what a lost
connection held. Each test counts the deliveries: without a second one it would show nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import redis

from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.brokers import RABBITMQ_SENDS_COPIES
from tests.support.system import System, outlive_lease
from tests.support.waiting import eventually, wait_until_dead

VISIBILITY_TIMEOUT = 2
#: No lease ends by itself while a test runs.
LEASE = 300


def deliver_again(system: System, task_id: str, **fields: int) -> None:
    """Have the message of a running task delivered once more, and turned away by the worker."""
    received = system.ledger.count("received", id=task_id, **fields)
    finished = system.ledger.count("finished", id=task_id, **fields)
    system.redeliver()
    system.ledger.wait_for("received", times=received + 1, id=task_id, **fields)
    system.ledger.wait_for("finished", times=finished + 1, id=task_id, **fields)


@RABBITMQ_SENDS_COPIES
def test_plain_celery_runs_it_twice_at_once(make_system: MakeSystem) -> None:
    """The control: without the library the same redelivery is a second, overlapping effect."""
    # Given
    system = make_system(visibility_timeout=VISIBILITY_TIMEOUT)
    system.start_worker()
    result = system.task("plain_charge").delay(1, gate="go")
    system.ledger.wait_for("start")
    # When
    system.redeliver()
    system.ledger.wait_for("start", times=2, id=result.id)
    system.ledger.open("go")
    # Then
    system.ledger.wait_for("effect", times=2)
    assert system.ledger.most_at_once(name="shop.plain_charge") == 2


@RABBITMQ_SENDS_COPIES
def test_a_running_task_is_not_run_again(make_system: MakeSystem) -> None:
    """The second delivery waits: no overlap, one effect, and the state is the running call's."""
    # Given
    system = make_system(
        visibility_timeout=VISIBILITY_TIMEOUT, idempotency_lease=3, task_track_started=True
    )
    system.start_worker()
    result = system.task("charge").delay(1, gate="go")
    system.ledger.wait_for("start")
    # When
    deliver_again(system, result.id)
    # Then
    system.ledger.wait_for("executed", times=2, id=result.id)
    outlive_lease(system.task("charge"), 1)
    assert result.state == "STARTED"
    # When
    system.ledger.open("go")
    answer = result.get(timeout=30)
    # Then
    assert answer["order"] == 1
    system.wait_until_quiet()
    assert system.task("charge").AsyncResult(result.id).get(timeout=30) == answer
    assert system.ledger.most_at_once() == 1
    assert system.ledger.count("start") == system.ledger.count("effect") == 1


def test_a_second_worker_does_not_run_it_either(make_redis_system: MakeSystem) -> None:
    """It makes no difference which worker gets the second delivery."""
    # Given
    system = make_redis_system(visibility_timeout=VISIBILITY_TIMEOUT, idempotency_lease=LEASE)
    system.start_worker(concurrency=1)
    result = system.task("charge").delay(1, gate="go")
    (begun,) = system.ledger.wait_for("start")
    system.start_worker(concurrency=1)
    # When
    system.ledger.wait_until(
        lambda it: len({entry["pid"] for entry in it.entries("received", id=result.id)}) == 2,
        "the second worker got it too",
    )
    system.ledger.open("go")
    # Then
    assert result.get(timeout=30)["order"] == 1
    system.wait_until_quiet()
    assert [entry["pid"] for entry in system.ledger.entries("start")] == [begun["pid"]]
    assert system.ledger.count("effect") == 1


@RABBITMQ_SENDS_COPIES
def test_retries_are_exact_though_each_outlives_the_timeout(make_system: MakeSystem) -> None:
    """A task that is delivered again in each of its attempts runs 1 + max_retries times."""
    # Given
    system = make_system(visibility_timeout=VISIBILITY_TIMEOUT, idempotency_lease=LEASE)
    system.start_worker()
    result = system.task("never_works").delay(1, gate="attempt")
    # When
    for attempt in range(3):
        system.ledger.wait_for("start", retries=attempt)
        deliver_again(system, result.id, retries=attempt)
        system.ledger.open(f"attempt-{attempt}")
    # Then
    assert isinstance(result.get(timeout=30, propagate=False), ValueError)
    system.wait_until_quiet()
    assert [entry["retries"] for entry in system.ledger.entries("start")] == [0, 1, 2]
    assert system.ledger.most_at_once() == 1
    assert result.state == "FAILURE"


def test_a_copy_in_the_back_off_does_not_begin_the_next_attempt(make_system: MakeSystem) -> None:
    """An old copy of a message that has been retried since is superseded: the back-off holds."""
    # Given
    system = make_system(idempotency_lease=LEASE)
    system.start_worker()
    flaky = system.task("charge_flaky")
    first = flaky.delay(1, fails=1, countdown=4)
    system.ledger.wait_for("finished", id=first.id, retries=0)
    system.ledger.wait_for("received", id=first.id, retries=1)
    # When
    flaky.apply_async((1,), {"fails": 1, "countdown": 4}, task_id=first.id)
    system.ledger.wait_for("finished", times=2, id=first.id, retries=0)
    # Then
    assert system.ledger.count("start") == 1
    assert first.state == "RETRY"
    assert first.get(timeout=30)["order"] == 1
    system.wait_until_quiet()
    assert [entry["retries"] for entry in system.ledger.entries("start")] == [0, 1]
    assert system.ledger.count("effect") == 1


@RABBITMQ_SENDS_COPIES
def test_the_owners_copy_outwaits_every_timeout(make_system: MakeSystem) -> None:
    """A redelivery is no duplicate: it neither raises nor times out, and runs if the first dies."""
    # Given
    system = make_system(
        visibility_timeout=VISIBILITY_TIMEOUT,
        idempotency_lease=3,
        idempotency_on_running="raise",
        idempotency_wait_timeout=0.5,
    )
    system.start_worker()
    result = system.task("charge").delay(1, gate="go")
    (begun,) = system.ledger.wait_for("start")
    # When
    deliver_again(system, result.id)
    system.ledger.wait_for("executed", times=2, id=result.id)
    outlive_lease(system.task("charge"), 1)
    # Then
    assert not result.ready()
    assert system.ledger.count("start") == 1
    # When
    os.kill(begun["pid"], signal.SIGKILL)
    system.ledger.open("go")
    # Then
    assert result.get(timeout=30)["order"] == 1
    system.wait_until_quiet()
    assert system.ledger.count("start") == 2
    assert system.ledger.count("effect") == 1


def test_a_copy_that_comes_after_the_end_is_replayed(make_system: MakeSystem) -> None:
    """The same message again, when all is over: no effect, and the result stays what it was."""
    # Given
    system = make_system()
    system.start_worker()
    charge = system.task("charge")
    first = charge.delay(1)
    answer = first.get(timeout=30)
    # When
    charge.apply_async((1,), task_id=first.id)
    system.ledger.wait_for("finished", times=2, id=first.id)
    system.wait_until_quiet()
    # Then
    assert charge.AsyncResult(first.id).get(timeout=30) == answer
    assert system.ledger.count("start") == system.ledger.count("effect") == 1


#: Takes a message from Redis as a worker does, and is killed before it has noted that it holds it.
DIES = """
import os, signal, sys
from kombu import Connection
from kombu.transport.redis import QoS

QoS.append = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with Connection(sys.argv[1]) as connection:
    queue = connection.SimpleQueue("calls")
    queue.put("charge")
    queue.get(timeout=30)
"""


def test_what_kombu_has_just_taken_from_redis_is_lost_with_the_process(
    redis_server: RedisServer,
) -> None:
    """A limit of the broker that the guarantees name: nothing is left to be delivered again."""
    # When
    url = redis_server.url()
    dead = subprocess.run([sys.executable, "-c", DIES, url], timeout=60, check=False)
    # Then
    assert dead.returncode == -signal.SIGKILL
    with redis.Redis.from_url(url) as client:
        kept = [name.decode() for name in client.keys()]  # noqa: SIM118
    assert kept
    assert all(name.startswith("_kombu.binding") for name in kept)


@pytest.mark.parametrize("terminate", [False, True])
@RABBITMQ_SENDS_COPIES
def test_a_revoke_means_the_run_and_not_its_copy(make_system: MakeSystem, terminate: bool) -> None:
    """Its copy, which waits in the same worker, hides no run, and tells nobody that it is over."""
    # Given
    system = make_system(
        visibility_timeout=VISIBILITY_TIMEOUT, idempotency_lease=LEASE, task_track_started=True
    )
    worker = system.start_worker()
    result = system.task("charge").apply_async((1,), {"gate": "go"}, link=system.task("tail").s())
    (begun,) = system.ledger.wait_for("start")
    deliver_again(system, result.id)
    # When
    system.app.control.revoke(result.id, terminate=terminate, signal="SIGKILL")
    # Then
    if terminate:
        wait_until_dead(begun["pid"])
        eventually(lambda: result.state == "REVOKED", "the call revoked")
    else:
        eventually(lambda: "flagged as revoked" in worker.log, "the worker has heard it")
        system.ledger.wait_for("finished", times=2, id=result.id)
        assert result.state == "STARTED"
    system.ledger.open("go")
    system.wait_until_quiet()
    assert system.ledger.count("start") == 1
    assert system.ledger.count("effect") == system.ledger.count("tail") == (not terminate)
    assert result.state == ("REVOKED" if terminate else "SUCCESS")


def test_a_copy_that_comes_after_its_call_would_have_expired(
    make_redis_system: MakeSystem,
) -> None:
    """The call has begun in time: its copy neither ends it nor is lost, should the run die.

    RabbitMQ itself drops what is given back to it so late.
    """
    # Given
    system = make_redis_system(
        visibility_timeout=VISIBILITY_TIMEOUT, idempotency_lease=LEASE, task_track_started=True
    )
    system.start_worker()
    result = system.task("charge").apply_async((1,), {"gate": "go"}, expires=1)
    (begun,) = system.ledger.wait_for("start")
    # When
    time.sleep(1.5)
    deliver_again(system, result.id)
    # Then
    assert result.state == "STARTED"
    # When
    os.kill(begun["pid"], signal.SIGKILL)
    system.ledger.wait_for("start", times=2)
    system.ledger.open("go")
    # Then
    assert result.get(timeout=30)["order"] == 1
