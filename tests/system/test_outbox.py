"""The outbox with real relays, brokers and workers: what commits is sent, and takes effect once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from celery_idempotent import outbox
from celery_idempotent.outbox.schema import outbox as table
from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.brokers import RedisBroker
from tests.support.databases import Database
from tests.support.relays import RelayProcess
from tests.support.system import System
from tests.support.waiting import eventually

EAGERLY = ("--interval", "0.1")


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """The database of the application, with an empty outbox."""
    made = create_engine(database.url)
    outbox.create_schema(made)
    with made.begin() as connection:
        connection.execute(table.delete())
    yield made
    made.dispose()


class Shop:
    """An application that writes calls into its outbox, and relays that send them."""

    def __init__(self, system: System, engine: Engine, url: str) -> None:
        self.system = system
        self.ledger = system.ledger
        self.engine = engine
        self._url = url
        self.relays: list[RelayProcess] = []

    def publish(self, *calls: Any) -> list[str]:
        """Publish calls in one transaction, and give their task ids."""
        with Session(self.engine) as session, session.begin():
            return [outbox.publish(session, call).id for call in calls]

    def start_relay(self, *options: str, killed_after: int | None = None) -> RelayProcess:
        relay = RelayProcess(self.system.settings, self._url, options, killed_after=killed_after)
        self.relays.append(relay)
        return relay

    def waiting(self) -> int:
        return outbox.backlog(self.engine).rows

    def sent(self) -> list[str]:
        return [entry["id"] for entry in self.ledger.entries("sent")]

    def charges(self, orders: list[int]) -> list[Any]:
        queue = self.system.settings["task_default_queue"]
        charge = self.system.task("charge")
        return [charge.s(order).set(queue=queue) for order in orders]


@pytest.fixture
def shop(make_redis_system: MakeSystem, engine: Engine, database: Database) -> Iterator[Shop]:
    made = Shop(make_redis_system(), engine, database.url)
    yield made
    for relay in made.relays:
        relay.kill()


def test_a_relay_killed_between_sending_and_marking_makes_no_second_effect(shop: Shop) -> None:
    """The next relay sends the row again under the same task id, and the worker answers it."""
    # Given two rows, of which the relay sends one, and is killed before it has marked it
    ids = shop.publish(*shop.charges([1, 2]))
    assert shop.start_relay(killed_after=1).wait() == -9
    assert shop.sent() == ids[:1]
    assert shop.waiting() == 2
    # When
    shop.start_relay("--once").wait()
    # Then the first message is there twice
    assert shop.sent() == [ids[0], *ids]
    assert shop.waiting() == 0
    assert shop.system.broker.messages() == 3
    # And when they have been worked off, each effect is there once
    shop.system.start_worker()
    shop.ledger.wait_for("effect", 2)
    shop.system.wait_until_quiet()
    assert shop.ledger.count("finished", id=ids[0]) >= 2
    assert [shop.ledger.count("effect", key=order) for order in (1, 2)] == [1, 1]


def test_two_relays_share_the_rows(shop: Shop) -> None:
    """Each row is sent by one of them, and none twice."""
    # Given
    orders = list(range(60))
    relays = [shop.start_relay(*EAGERLY, "--batch", "3") for _ in range(2)]
    for relay in relays:
        relay.wait_for_log("sending from")
    # When
    ids = [id for start in (0, 20, 40) for id in shop.publish(*shop.charges(orders[start:][:20]))]
    eventually(lambda: shop.waiting() == 0, "nothing waits")
    # Then
    codes = [relay.stop() for relay in relays]
    assert codes == [0, 0]
    assert sorted(shop.sent()) == sorted(ids)


def test_one_relay_keeps_the_order(shop: Shop) -> None:
    """Rows are sent in the order in which their transactions were committed."""
    # Given
    ids = [id for order in range(12) for id in shop.publish(*shop.charges([order]))]
    # When
    relay = shop.start_relay(*EAGERLY, "--batch", "5")
    eventually(lambda: shop.waiting() == 0, "nothing waits")
    # Then
    assert relay.stop() == 0
    assert shop.sent() == ids


def test_when_one_relay_dies_another_goes_on(shop: Shop) -> None:
    """What a killed relay had taken is the other's at once: the database frees it."""
    # Given
    ids = shop.publish(*shop.charges([1, 2, 3]))
    dying = shop.start_relay(*EAGERLY, killed_after=1)
    dying.wait()
    # When
    shop.start_relay(*EAGERLY)
    # Then
    eventually(lambda: shop.waiting() == 0, "nothing waits")
    assert shop.sent() == [ids[0], *ids]


@pytest.fixture
def breakable(
    own_server: RedisServer,
    redis_server: RedisServer,
    tmp_path: Any,
    engine: Engine,
    database: Database,
) -> Iterator[Shop]:
    """A shop whose broker can go away, and comes back with what it had."""
    system = System(RedisBroker(own_server), redis_server, tmp_path)
    made = Shop(system, engine, database.url)
    yield made
    for relay in made.relays:
        relay.kill()
    system.close()


def test_nothing_is_lost_while_the_broker_is_down(breakable: Shop, own_server: RedisServer) -> None:
    """The rows stay, the outage is one line, and when the broker is back they are sent."""
    # Given
    shop = breakable
    relay = shop.start_relay(*EAGERLY)
    first = shop.publish(*shop.charges([1]))
    shop.ledger.wait_for("sent", id=first[0])
    own_server.kill()
    # When
    ids = shop.publish(*shop.charges([2, 3]))
    relay.wait_for_log("the broker is away")
    # Then
    assert shop.waiting() == 2
    # When
    own_server.restart()
    # Then
    eventually(lambda: shop.waiting() == 0, "nothing waits")
    assert relay.stop() == 0
    assert shop.sent() == [*first, *ids]
    assert relay.log.count("the broker is away") == 1
    assert relay.log.count("the broker is back after") == 1


def test_once_says_that_the_broker_is_down(breakable: Shop, own_server: RedisServer) -> None:
    """It ends with 1 and a sentence, and keeps the rows."""
    # Given
    shop = breakable
    shop.publish(*shop.charges([1]))
    own_server.kill()
    # When
    once = shop.start_relay("--once")
    # Then
    assert once.wait() == 1
    assert "the rest is kept" in once.log
    assert "Traceback" not in once.log
    assert shop.waiting() == 1


def test_rabbitmq_confirms_what_is_sent(
    make_rabbit_system: MakeSystem, engine: Engine, database: Database
) -> None:
    """A relay that waits for the broker's word sends all, in order, and a worker takes it."""
    # Given
    shop = Shop(make_rabbit_system(), engine, database.url)
    ids = shop.publish(*shop.charges([1, 2, 3]))
    # When
    once = shop.start_relay("--once")
    # Then
    assert once.wait() == 0, once.log
    assert shop.sent() == ids
    assert shop.waiting() == 0
    assert shop.system.broker.messages() == 3
    shop.system.start_worker(pool="solo")
    shop.ledger.wait_for("effect", 3)


def test_status_says_what_waits(shop: Shop) -> None:
    """Backlog and lag are figures that an operator can read, and nothing is sent for them."""
    # Given
    shop.publish(*shop.charges([1, 2]))
    # When
    made = shop.start_relay("--init-db")
    status = shop.start_relay("--status")
    # Then
    assert (made.wait(), status.wait()) == (0, 0), made.log + status.log
    assert "idempotency_outbox is there already" in made.log
    assert status.log.startswith("2 waiting, lag ")
    assert shop.waiting() == 2
