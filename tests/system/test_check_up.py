"""The doctor, and the check-up of a starting worker, at real servers, set up well and badly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.ops.doctor import examine
from celery_idempotent.stores.redis.store import RedisStore
from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.replicas import wait_until_linked
from tests.support.system import STORE_DB
from tests.support.waiting import eventually
from tests.support.workers import Worker

PERSISTS = ("--appendonly", "yes", "--appendfsync", "everysec")


def app_of(store: RedisServer, **settings: Any) -> Celery:
    """An app that has nothing wrong, but for what is given and what the store says."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(
        broker_url=store.url(0),
        result_backend=store.url(1),
        idempotency_store_url=store.url(2),
        task_time_limit=600,
        worker_prefetch_multiplier=1,
        broker_transport_options={"unacked_restore_throttle": 1},
    )
    app.conf.update(settings)
    return app


def add_task(app: Celery, **options: Any) -> None:
    options = {"idempotency_key": "order:{order}", **options}

    @app.task(base=IdempotentTask, name="shop.charge", shared=False, **options)
    def charge(order: int = 1) -> int:
        return order

    app.finalize()


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    """At a real server that persists and doesn't evict."""
    with RedisServer(args=PERSISTS) as server:
        app = app_of(server)
        add_task(app)
        assert examine(app) == []
        app.close()


def test_each_fault_of_a_bad_configuration_is_named() -> None:
    """All of them at once: the server's, the settings', the tasks', and the schedule's."""
    # Given
    bad = ("--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru")
    with RedisServer(args=bad) as server, RedisServer() as results:
        app = app_of(
            server,
            result_backend=results.url(),
            broker_url="amqp://localhost:1//",
            broker_transport_options={"visibility_timeout": 20},
            task_time_limit=None,
            worker_eta_task_limit=1000,
            worker_prefetch_multiplier=0,
            task_serializer="yaml",
            result_serializer="pickle",
            result_accept_content=["json", "pickle"],
            beat_schedule={"tick": {"task": "shop.charge", "schedule": 60}},
        )
        add_task(
            app,
            idempotency_lease=25,
            idempotency_ttl=60,
            idempotency_wait_timeout=10,
            acks_late=False,
            max_retries=5,
            default_retry_delay=30,
        )
        # When
        found = examine(app)
        app.close()
    # Then
    assert {finding.name for finding in found} == {
        "eviction",
        "no-persistence",
        "forgetful-result-backend",
        "unconfirmed-publish",
        "acks-early",
        "task-serializer",
        "pickle",
        "eta-limited",
        "prefetch-unlimited",
        "no-time-limit",
        "visibility-below-lease",
        "visibility-below-countdown",
        "window-below-retries",
        "short-wait",
        "frozen-key",
    }
    assert all(finding.why and finding.fix and finding.value for finding in found)


def test_a_replica_is_no_store() -> None:
    """A real one says that it is one."""
    with RedisServer(args=PERSISTS) as master:
        args = (*PERSISTS, "--replicaof", f"127.0.0.1 {master.port}")
        with RedisServer(args=args) as replica:
            wait_until_linked(replica)
            app = app_of(replica)
            assert [finding.name for finding in examine(app)] == ["replica"]
            app.close()
            alone = app_of(master)
            eventually(lambda: [f.name for f in examine(alone)] == ["unsafe-failover"])
            alone.close()
            # And a master that has one is found to have no two
            for wanted, more in ((1, []), (2, ["too-few-replicas"])):
                waits = app_of(master, idempotency_wait_replicas=wanted)
                assert [f.name for f in examine(waits)] == ["unsafe-failover", *more]
                waits.close()


def test_a_server_that_forbids_to_ask_is_judged_by_what_it_says() -> None:
    """As managed servers do: no CONFIG, and no error because of that."""
    with RedisServer(args=("--rename-command", "CONFIG", "")) as server:
        store = RedisStore.from_url(server.url())
        (told,) = store.servers()
        store.close()
        assert told.config == {}
        assert told.info["aof_enabled"] == "0"
        app = app_of(server)
        assert [finding.name for finding in examine(app)] == ["snapshots-only"]
        app.close()


def test_a_strict_worker_refuses_a_bad_store(make_redis_system: MakeSystem, tmp_path: Path) -> None:
    """It ends before it takes a message, and says what it found."""
    # Given
    with RedisServer() as store:
        system = make_redis_system(store=store, idempotency_strict=True)
        # When
        worker = Worker(system.settings, concurrency=1)
        system.workers.append(worker)
        code = worker.wait_until_gone(60)
    # Then
    assert code != 0
    assert "no-persistence" in worker.log
    assert "idempotency_strict is set" in worker.log
    assert system.ledger.count("ready") == 0


def test_a_strict_worker_starts_with_a_good_store(
    make_redis_system: MakeSystem, own_server: RedisServer
) -> None:
    """And with what is accepted of the rest."""
    # Given
    system = make_redis_system(
        store=own_server,
        idempotency_strict=True,
        idempotency_accept=[
            "forgetful-broker",
            "forgetful-result-backend",
            "key-not-chosen",
            "late-redelivery",
        ],
        task_time_limit=600,
    )
    # When
    worker = system.start_worker(concurrency=1)
    # Then
    assert system.task("charge").delay(1).get(timeout=30)["order"] == 1
    assert "celery_idempotent" not in worker.log


@pytest.mark.parametrize("strict", [False, True])
def test_a_store_that_hangs_holds_up_no_start(
    make_redis_system: MakeSystem, own_server: RedisServer, strict: bool
) -> None:
    """The worker starts, strict or not; its tasks wait, and run when the store is back."""
    # Given
    accepted = ["forgetful-broker", "forgetful-result-backend", "no-time-limit"]
    system = make_redis_system(
        store=own_server, idempotency_strict=strict, idempotency_accept=accepted
    )
    own_server.pause()
    # When
    worker = system.start_worker(concurrency=1)
    # Then
    assert "store-away" in worker.log
    own_server.resume()
    assert system.task("charge").delay(1).get(timeout=30)["order"] == 1


def claims_of(system: Any) -> list[dict[str, Any]]:
    answers = system.app.control.broadcast("idempotency", reply=True, timeout=5.0, limit=1)
    return [claim for answer in answers for claims in answer.values() for claim in claims]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_running_worker_names_its_claims(make_redis_system: MakeSystem, pool: str) -> None:
    """The ones that the processes or threads of its pool hold, while they hold them."""
    # Given
    system = make_redis_system()
    worker = system.start_worker(pool=pool, concurrency=2)
    results = {
        system.task("charge").delay(order, gate="go"): order for order in ("first", "second")
    }
    starts = system.ledger.wait_for("start", times=2)
    # When
    claims = claims_of(system)
    system.ledger.open("go")
    for result in results:
        result.get(timeout=30)
    system.wait_until_quiet()
    # Then
    assert {(claim["task_id"], claim["key"]) for claim in claims} == {
        (result.id, f"idempotent:{{shop.charge:order:{order}}}")
        for result, order in results.items()
    }
    assert {claim["pid"] for claim in claims} == {start["pid"] for start in starts}
    assert (worker.pid in {claim["pid"] for claim in claims}) == (pool == "threads")
    assert all(0 < claim["lease_left"] <= 30 for claim in claims)
    assert claims_of(system) == []


def test_a_running_worker_frees_a_key(
    make_redis_system: MakeSystem, own_server: RedisServer
) -> None:
    """By its key and token, each worker of several: the next call runs."""
    # Given
    system = make_redis_system(store=own_server)
    for _ in range(2):
        system.start_worker(concurrency=1)
    first = system.task("charge").delay(1).get(timeout=30)
    store = RedisStore.from_url(own_server.url(STORE_DB))
    record = store.get("idempotent:{shop.charge:order:1}")
    store.close()
    assert record is not None
    # When
    answers = system.app.control.broadcast(
        "idempotency_forget",
        arguments={"key": "order:1", "token": record.token},
        reply=True,
        timeout=5.0,
        limit=2,
    )
    # Then
    assert len(answers) == 2
    told = [text for answer in answers for node in answer.values() for text in node]
    assert "ok" in told
    second = system.task("charge").delay(1).get(timeout=30)
    assert second["receipt"] != first["receipt"]
