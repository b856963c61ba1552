"""The doctor's trial run at real servers: a user's rights, clusters, replicas, renamed commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.ops.doctor import Finding, examine
from celery_idempotent.ops.doctor.rights import (
    CLUSTER_COMMANDS,
    OPERATOR_COMMANDS,
    WORKER_COMMANDS,
    rule_of,
)
from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.clusters import Cluster
from tests.support.replicas import wait_until_linked
from tests.support.system import STORE_DB

PERSISTS = ("--appendonly", "yes", "--appendfsync", "everysec")
PREFIX = "idempotent"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(args=PERSISTS) as server:
        yield server


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


def set_user(server: RedisServer, *rules: str) -> None:
    """Give the user ``worker`` these rights, and no others."""
    with redis.Redis.from_url(server.url()) as client:
        client.execute_command("ACL", "SETUSER", "worker", "reset", "on", ">secret", *rules)


def found_at(url: str, **settings: Any) -> list[Finding]:
    """What the doctor finds with a store at this URL, in an app with nothing else wrong."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(
        broker_url="amqp://localhost:1//",
        broker_transport_options={"confirm_publish": True},
        result_backend=None,
        task_ignore_result=True,
        idempotency_store_url=url,
        task_time_limit=600,
        worker_prefetch_multiplier=1,
    )
    app.conf.update(settings)

    @app.task(base=IdempotentTask, name="shop.charge", shared=False, idempotency_key="{order}")
    def charge(order: int) -> int:
        return order

    app.finalize()
    try:
        return examine(app)
    finally:
        app.close()


def errors_of(url: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in found_at(url) if finding.level == "error"}


def as_worker(url: str) -> str:
    return url.replace("://", "://worker:secret@")


#: What cannot be seen by a user who may not ask for INFO.
UNSEEN = {"server-not-seen"}


@pytest.mark.parametrize(
    "rules",
    [
        ("~idempotent:*", "&idempotent:*", "+@all", "-@admin", "-@dangerous"),
        tuple(rule_of(PREFIX, WORKER_COMMANDS).split()),
    ],
    ids=["all-but-dangerous", "exactly-those"],
)
def test_a_user_whose_tasks_run_is_no_error(server: RedisServer, rules: tuple[str, ...]) -> None:
    """One with least rights is only told what could not be looked at."""
    set_user(server, *rules)
    found = found_at(as_worker(server.url()))
    assert [finding.level for finding in found if finding.level != "hint"] in ([], ["warning"])
    assert {finding.name for finding in found} >= UNSEEN


def test_operators_need_a_few_more_rights(server: RedisServer) -> None:
    """With those nothing is found; without them a warning says which are missing."""
    set_user(server, *rule_of(PREFIX, [*WORKER_COMMANDS, *OPERATOR_COMMANDS]).split())
    assert found_at(as_worker(server.url())) == []
    set_user(server, *rule_of(PREFIX, WORKER_COMMANDS).split())
    (finding,) = (it for it in found_at(as_worker(server.url())) if it.level == "warning")
    assert finding.name == "no-permission-to-look"
    for command in ("+scan", "+zrange", "+xrevrange"):
        assert command in finding.value


@pytest.mark.parametrize("command", WORKER_COMMANDS)
def test_each_command_of_a_worker_is_needed(server: RedisServer, command: str) -> None:
    """Without it the doctor names it, and gives the rule to write."""
    # Given
    commands = [*WORKER_COMMANDS, *OPERATOR_COMMANDS]
    set_user(server, *rule_of(PREFIX, commands).split(), f"-{command}")
    # When
    told = found_at(
        as_worker(server.url(2 if command == "select" else 0)),
        idempotency_wait_replicas=1 if command == "wait" else 0,
    )
    (finding,) = (it for it in told if it.name.startswith("no-permission"))
    # Then: a journal that is not written, a list, or an end that is not told stops no task
    lists = ("xadd", "xtrim", "zadd", "zremrangebyscore", "getrange")
    lists += ("publish", "subscribe", "unsubscribe")
    assert finding.level == ("warning" if command in lists else "error")
    assert command in finding.what.lower()
    assert f"+{command} " in finding.value + " "
    assert "ACL SETUSER worker" in finding.value


def test_a_key_pattern_that_is_another_is_named(server: RedisServer) -> None:
    """The rule has the right one."""
    set_user(server, "~cache:*", "+@all")
    finding = errors_of(as_worker(server.url()))["no-permission"]
    assert "~idempotent:*" in finding.value


def test_a_user_who_may_not_run_scripts_is_named(server: RedisServer) -> None:
    """Every task would wait for ever."""
    set_user(server, "~idempotent:*", "+@all", "-@scripting")
    finding = errors_of(as_worker(server.url()))["no-permission"]
    assert "claim a key" in finding.what
    assert "evalsha" in finding.what.lower()


def test_a_user_who_only_reads_is_named(server: RedisServer) -> None:
    """Nothing can be claimed."""
    set_user(server, "~idempotent:*", "+@read", "+@scripting", "+@connection", "+time")
    assert "no-permission" in errors_of(as_worker(server.url()))


def test_a_wrong_password_is_told_from_a_server_that_is_away(server: RedisServer) -> None:
    """What is to be mended is the URL."""
    set_user(server, "~*", "+@all")
    found = errors_of(server.url().replace("://", "://worker:wrong@"))
    assert set(found) == {"login-refused"}
    assert "wrong" not in str(found["login-refused"]).replace("wrong password", "")


@pytest.mark.parametrize("renamed", ["EVALSHA", "HSET", "HGETALL", "XADD"])
def test_a_renamed_command_is_named(renamed: str) -> None:
    """A server where it has another name runs no task."""
    with RedisServer(args=(*PERSISTS, "--rename-command", renamed, "")) as server:
        found = {finding.name: finding for finding in found_at(server.url())}
    finding = found["missing-command"]
    assert finding.level == ("warning" if renamed == "XADD" else "error")
    assert renamed.lower() in finding.what.lower()


def test_a_replica_is_one_finding() -> None:
    """Whether or not it may be asked what it is."""
    with RedisServer(args=PERSISTS) as master:
        args = (*PERSISTS, "--replicaof", f"127.0.0.1 {master.port}")
        with RedisServer(args=args) as replica:
            wait_until_linked(replica)
            assert set(errors_of(replica.url())) == {"replica"}
            set_user(replica, *rule_of(PREFIX, WORKER_COMMANDS).split())
            assert set(errors_of(as_worker(replica.url()))) == {"replica"}


def test_a_server_that_is_full_is_named() -> None:
    """It takes no writes: every task waits."""
    with RedisServer(args=(*PERSISTS, "--maxmemory", "1mb")) as server:
        assert "full" in errors_of(server.url())


def test_a_node_of_a_cluster_by_redis_is_named(cluster: Cluster) -> None:
    """Tasks whose keys are on other nodes would wait for ever, the others run."""
    url = cluster.servers[0].url()
    assert "cluster-node" in errors_of(url)
    set_user(cluster.servers[0], *rule_of(PREFIX, [*WORKER_COMMANDS, *OPERATOR_COMMANDS]).split())
    finding = errors_of(as_worker(url))["cluster-node"]
    assert finding.value.startswith('idempotency_store_url = "redis+cluster://')


def test_each_node_of_a_cluster_is_tried(cluster: Cluster) -> None:
    """A user who lacks a right on one of three is found; with all rights nothing is."""
    # Given
    rules = rule_of(PREFIX, [*WORKER_COMMANDS, *CLUSTER_COMMANDS, *OPERATOR_COMMANDS]).split()
    for server in cluster.servers:
        set_user(server, *rules)
    assert set(errors_of(as_worker(cluster.url))) == {"no-persistence"}
    # When
    set_user(cluster.servers[2], *rules, "-hset")
    # Then
    finding = errors_of(as_worker(cluster.url))["no-permission"]
    assert "hset" in finding.what.lower()


@pytest.mark.parametrize("slots", ["none", "some"])
def test_a_cluster_without_all_its_slots_is_named(slots: str) -> None:
    """Keys in them have no node: their tasks wait for ever."""
    args = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no", *PERSISTS)
    with RedisServer(args=args) as server:
        if slots == "some":
            with redis.Redis.from_url(server.url()) as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16000)
        url = f"redis+cluster://127.0.0.1:{server.port}"

        def is_named() -> bool:
            return "cluster-incomplete" in errors_of(url)

        assert is_named()


def test_the_trial_leaves_nothing(server: RedisServer) -> None:
    """Its keys are gone after a second; nothing that is listed is ever there."""
    with redis.Redis.from_url(server.url()) as client:
        client.flushall()
        found_at(server.url())
        keys = {key.decode() for key in client.keys("*")}
        assert all(client.pttl(key) <= 1000 for key in keys if not key.endswith(":journal"))


def test_a_taken_journal_name_is_named(server: RedisServer) -> None:
    """Another program's key stands where the journal should: `why` and lists know nothing."""
    with redis.Redis.from_url(server.url()) as client:
        client.flushall()
        client.set("idempotent:journal", "another program's")
        try:
            found = {finding.name: finding for finding in found_at(server.url())}
        finally:
            client.flushall()
    assert "idempotent:journal" in found["journal-name-taken"].what


def test_a_worker_runs_with_exactly_those_rights(
    make_redis_system: MakeSystem, own_server: RedisServer
) -> None:
    """Calls with steps and duplicates run, and the journal is written."""
    # Given
    rules: Callable[[], list[str]] = rule_of(PREFIX, WORKER_COMMANDS).split
    set_user(own_server, *rules())
    system = make_redis_system(
        store=own_server, idempotency_store_url=as_worker(own_server.url(STORE_DB))
    )
    # When
    worker = system.start_worker(concurrency=1)
    first = system.task("charge").delay(1).get(timeout=30)
    second = system.task("charge").delay(1).get(timeout=30)
    # Then
    assert first == second
    assert "NOPERM" not in worker.log
