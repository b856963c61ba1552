"""What the store is asked, as the server itself sees it come in, and what it has to keep."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.system import STORE_DB, System
from tests.support.waiting import eventually

#: Anything that ends when the watch ends is in the list: the last line is our own.
MARK = "the-watch-ends-here"
JOURNAL = '"idempotent:journal"'


@contextmanager
def watched(server: RedisServer) -> Iterator[list[str]]:
    """The commands that clients sent meanwhile; those that scripts issue are not among them."""
    commands: list[str] = []
    with (
        redis.Redis.from_url(server.url()) as client,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
        connection.makefile("rb") as lines,
    ):
        client.ping()  # its greeting must not be among what is counted
        connection.sendall(b"MONITOR\r\n")
        assert lines.readline().startswith(b"+OK")
        yield commands
        client.echo(MARK)
        for line in lines:
            text = line.decode(errors="replace")
            if MARK in text:
                break
            # `+1700000000.123 [2 127.0.0.1:5000] "EVALSHA" ...`; a script's has [2 lua].
            origin, _, command = text.partition("]")
            if not origin.endswith("lua"):
                commands.append(command.strip())


def without_journal(commands: list[str]) -> list[str]:
    """All but what the heartbeat adds to the journal, about twice a second and for no one task.

    For that it opens a connection of its own where the other one is in use.
    """
    greetings = ('"HELLO"', '"SELECT"', '"CLIENT"')
    return [
        command
        for command in commands
        if JOURNAL not in command and not command.startswith(greetings)
    ]


def warmed_up(make_system: MakeSystem, store: RedisServer) -> System:
    """A worker of one process that is connected and has sent each script."""
    system = make_system(store=store)
    system.start_worker(concurrency=1)
    charge, tail = system.task("charge"), system.task("tail")
    charge.delay(0).get(timeout=30)
    charge.apply_async((0,), link=tail.s("warm")).get(timeout=30)
    charge.apply_async((-1,), link=tail.s("warm")).get(timeout=30)
    system.ledger.wait_for("tail", times=2)
    system.wait_until_quiet()
    return system


def test_a_first_execution_is_two_commands_and_a_replay_is_one(
    make_system: MakeSystem, own_server: RedisServer
) -> None:
    """One to claim and one to complete; a duplicate's claim brings the outcome along."""
    two_commands_and_one(make_system, own_server)


def test_on_redis_it_is_as_many(make_redis_system: MakeSystem, redis_program: Path) -> None:
    """What Valkey is asked Redis is asked."""
    with RedisServer(binary=redis_program) as server:
        two_commands_and_one(make_redis_system, server)


def two_commands_and_one(make_system: MakeSystem, server: RedisServer) -> None:
    # Given
    system = warmed_up(make_system, server)
    charge = system.task("charge")
    # When
    with watched(server) as first:
        charge.delay(1).get(timeout=30)
        system.wait_until_quiet()
    with watched(server) as replay:
        charge.delay(1).get(timeout=30)
        system.wait_until_quiet()
    # Then
    assert len(without_journal(first)) == 2, first
    assert len(without_journal(replay)) == 1, replay
    assert system.ledger.count("effect", key=1) == 1


def test_callbacks_cost_one_command_more(make_system: MakeSystem, own_server: RedisServer) -> None:
    """The note that they went out, for a first execution and for a replay."""
    # Given
    system = warmed_up(make_system, own_server)
    charge, tail = system.task("charge"), system.task("tail")
    # When
    with watched(own_server) as first:
        charge.apply_async((1,), link=tail.s("one")).get(timeout=30)
        system.ledger.wait_for("tail", times=3)
        system.wait_until_quiet()
    with watched(own_server) as replay:
        charge.apply_async((1,), link=tail.s("two")).get(timeout=30)
        system.ledger.wait_for("tail", times=4)
        system.wait_until_quiet()
    # Then
    assert len(without_journal(first)) == 3, first
    assert len(without_journal(replay)) == 2, replay


def test_the_journal_costs_no_task_a_command(
    make_redis_system: MakeSystem, own_server: RedisServer
) -> None:
    """Its additions go by time, not by tasks, and tell each of these all the same."""
    # Given
    system = warmed_up(make_redis_system, own_server)
    charge = system.task("charge")
    # When
    with watched(own_server) as commands:
        began = time.monotonic()
        for result in [charge.delay(number) for number in range(1, 101)]:
            result.get(timeout=60)
        system.wait_until_quiet()
        took = time.monotonic() - began
    # Then
    assert len(without_journal(commands)) == 200
    assert len(commands) - 200 <= 50 + 4 * took, commands
    eventually(lambda: told_of(own_server, "succeeded") >= 100, "all of them in the journal")


def told_of(server: RedisServer, what: str) -> int:
    """How many events of a kind the journal has."""
    with redis.Redis.from_url(server.url(STORE_DB)) as client:
        events = [json.loads(fields[b"e"]) for _, fields in client.xrange("idempotent:journal")]
    return sum(event.get("event") == what for event in events)  # the check-up's trial has none


def test_a_producer_asks_the_store_nothing(
    make_redis_system: MakeSystem, own_server: RedisServer
) -> None:
    """To publish a call is one message to the broker, whatever the state of its key."""
    # Given
    system = make_redis_system(store=own_server)
    # When
    with watched(own_server) as commands:
        system.task("charge").delay(1)
        system.task("charge").apply_async((1,), idempotency_key="req-1")
    # Then
    assert commands == []


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("echo", {}),
        ("echo", {"idempotency_key": None}),
        ("echo", {"idempotency_redact_key": True}),
    ],
    ids=["readable-key", "digest-key", "redacted-key"],
)
def test_a_record_takes_three_hundred_bytes(
    make_redis_system: MakeSystem, own_server: RedisServer, task: str, options: dict[str, object]
) -> None:
    """A completed record with a result of 64 bytes is one key of at most 300 bytes."""
    # Given
    system = make_redis_system(store=own_server, task_options={f"shop.{task}": options})
    system.start_worker(concurrency=1)
    answer = "x" * 62  # and two quotes in JSON
    # When
    assert system.task(task).delay("order-4711", answer=answer).get(timeout=30) == answer
    # Then
    with redis.Redis.from_url(own_server.url(STORE_DB)) as client:
        (key,) = (key for key in client.keys("*{*}") if b"{celery_idempotent.doctor:" not in key)
        assert client.memory_usage(key) <= 300
        assert 0 < client.ttl(key) <= 86400
