"""A store that is away is asked by one caller of a process at a time, whatever kind it is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.db import connections

from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.stores import outage as module
from celery_idempotent.stores.outage import Outage
from celery_idempotent.stores.sql.store import SqlStore
from celery_idempotent.testing.servers import RedisServer
from tests.stores.away import (
    CALLERS,
    Ask,
    ask_while_it_hangs,
    claim,
    proxy_to,
    reserve,
    store_through,
)
from tests.support.databases import MYSQL, POSTGRESQL, Database, emptied
from tests.support.djangos import database_at
from tests.support.workers import ROOT

ASKS = pytest.mark.parametrize("ask", [claim, reserve], ids=["claim", "reserve"])


class Clock(SimpleNamespace):
    """A clock that a test moves, in the place of the module ``time``."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def away(clock: Clock) -> Outage:
    """A server that did not answer an hour ago."""
    outage = Outage("redis://somewhere")
    outage.begins()
    clock.now += 3600
    return outage


def refused(outage: Outage) -> bool:
    """Whether somebody who asks now is told that it is away, and did not ask."""
    try:
        outage.one_at_a_time(lambda: None)
    except StoreUnavailable as exc:
        assert not exc.may_have_arrived
        assert str(exc) == "redis://somewhere did not answer a moment ago"
        return True
    return False


class TestTurns:
    def test_a_connection_that_broke_is_no_outage(self, clock: Clock) -> None:
        """It is remembered, and a store that did not answer is away."""
        # Given
        outage = Outage("redis://somewhere")
        # When
        outage.stumbled()
        # Then
        assert outage.failed_at == clock.now
        assert not outage.is_away
        outage.begins()
        assert outage.is_away

    def test_one_asks_and_the_others_do_not(self, clock: Clock) -> None:
        """While somebody asks whether it is back, to all others it is away."""
        # Given
        outage = away(clock)
        # Then
        assert outage.one_at_a_time(lambda: refused(outage)) is True
        assert not refused(outage)

    def test_it_is_left_alone_for_a_moment(self, clock: Clock) -> None:
        """Nobody asks a store that did not answer just now; a little later somebody may."""
        # Given
        outage = away(clock)
        outage.begins()
        # Then
        assert refused(outage)
        clock.now += 0.039
        assert refused(outage)
        clock.now += 0.002
        assert not refused(outage)

    def test_a_turn_ends_however_the_question_ends(self, clock: Clock) -> None:
        """What cuts in while somebody asks takes nobody else's turn."""
        # Given
        outage = away(clock)

        def interrupted() -> None:
            raise KeyboardInterrupt

        # When
        with pytest.raises(KeyboardInterrupt):
            outage.one_at_a_time(interrupted)
        # Then
        assert not refused(outage)

    def test_a_child_asks_for_itself(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        """Though its parent was asking when it forked."""
        # Given
        outage = away(clock)
        outage._turn.acquire()
        assert refused(outage)
        # When
        monkeypatch.setattr(module.os, "getpid", lambda: -1)
        # Then
        assert not refused(outage)


@pytest.fixture(params=["redis", POSTGRESQL, MYSQL])
def url(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store of each kind, without its tables' rows."""
    if request.param == "redis":
        yield redis_server.url()
        return
    database = Database(request.param, tmp_path)
    emptied(SqlStore.from_url(database.url)).close()
    yield database.url
    database.drop()


class TestStores:
    @ASKS
    def test_one_thread_asks(self, url: str, ask: Ask) -> None:
        """The others are told at once, while one waits for a server that hangs."""
        # Given
        proxy = proxy_to(url)
        store = store_through(url, proxy.port)
        try:
            # Then
            assert ask_while_it_hangs(store, proxy, ask) == ["away"] * CALLERS
        finally:
            store.close()
            proxy.close()

    def test_one_greenlet_asks(self, url: str) -> None:
        """So do greenlets, which gevent puts in the place of threads."""
        # When
        told = subprocess.run(
            [sys.executable, "-m", "tests.stores.away", url],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        # Then
        assert told.stdout.split() == ["away"] * CALLERS, told.stderr

    @pytest.mark.parametrize("kind", [POSTGRESQL])
    def test_one_thread_asks_a_database_of_django(self, kind: str, tmp_path: Path) -> None:
        """Each thread has a connection of its own there, and would make one."""
        # Given
        database = Database(kind, tmp_path)
        proxy = proxy_to(database.url)
        through = database.parsed().set(host="127.0.0.1", port=proxy.port)
        try:
            with database_at(through.render_as_string(hide_password=False)) as alias:
                from celery_idempotent.django.store import DjangoStore

                store = DjangoStore(alias)
                # Then
                told = ask_while_it_hangs(store, proxy, claim, lambda: connections[alias].close())
                assert told == ["away"] * CALLERS
        finally:
            proxy.close()
            database.drop()
