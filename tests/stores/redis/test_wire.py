"""Scripts over single connections: each answer goes to who asked, whatever breaks in between."""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import Busy, Claim, Claimed, Recorded, Renewal, Replay, Settle
from celery_idempotent.errors import RecordCorrupt, StoreError, StoreUnavailable
from celery_idempotent.stores.redis import wire as wire_module
from celery_idempotent.stores.redis.cluster import ClusterStore, ClusterWire
from celery_idempotent.stores.redis.store import RedisStore
from celery_idempotent.stores.redis.wire import Wire, pack_command
from celery_idempotent.testing.contract.kit import replace
from celery_idempotent.testing.servers import RedisServer
from tests.support.waiting import eventually
from tests.support.workers import ROOT

KEY = "idempotent:{wire:1}"
CANDIDATE = Record(State.RUNNING, 0, owner=b"owner", process=b"process", nonce=b"nonce")
CLAIM = Claim(CANDIDATE, 30_000, 60_000)


#: For how long a store of these tests waits for an answer, in seconds: longer than a server that is
#: there takes, however busy the machine is.
PATIENCE_S = 30.0


def store_on(server: RedisServer, **options: Any) -> RedisStore:
    return RedisStore.from_url(server.url(), {"socket_timeout": PATIENCE_S, **options})


def be_impatient(store: RedisStore, seconds: float) -> None:
    """Have a store that is connected wait only for so long from now on."""
    store._wire._patience_ms = int(seconds * 1000)
    for connection, _ in store._wire._idle:
        connection._sock.settimeout(seconds)  # type: ignore[attr-defined]


def clients_of(client: Any) -> set[str]:
    """The connections that a server has; those of earlier tests may end at any moment."""
    return {it["id"] for it in client.client_list()}


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A server for this module, which stops, pauses and flushes it."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisStore]:
    store = store_on(server)
    store._wire.command("FLUSHALL")
    yield store
    store.close()


@pytest.fixture
def wire(store: RedisStore) -> Wire:
    return store._wire


@pytest.mark.parametrize(
    "parts",
    [(b"GET", "key"), (b"SET", b"\0\xff\r\n", 0, -7, 2**53 - 1), ("", b""), ("\ud83d", "\u20ac")],
)
def test_a_command_is_packed_alike_with_hiredis_and_without(
    monkeypatch: pytest.MonkeyPatch, parts: tuple[bytes | str | int, ...]
) -> None:
    """Bytes, text, half a surrogate pair and numbers go over the wire as the same bytes."""
    packed = pack_command(parts)
    monkeypatch.setattr("celery_idempotent.stores.redis.wire._hiredis_pack", None)

    assert pack_command(parts) == packed


def connection_id(wire: Wire) -> int:
    number: int = wire.command("CLIENT", "ID")
    return number


class Breaking:
    """A connection that does as it is told once, instead of giving its next answer."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.raises: BaseException | None = None
        self.gives: Any = None
        self.reads_first = False
        self.disconnected = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def disconnect(self, *args: Any) -> None:
        self.disconnected = True
        self._real.disconnect(*args)

    def read_response(self) -> Any:
        raises, self.raises = self.raises, None
        gives, self.gives = self.gives, None
        if raises is not None:
            if self.reads_first:
                self._real.read_response()
            raise raises
        if gives is None:
            return self._real.read_response()
        with suppress(ResponseError):  # the server may not have the script yet
            self._real.read_response()
        return gives


@pytest.fixture
def connections(wire: Wire) -> list[Breaking]:
    """The connections that the wire makes from now on."""
    made: list[Breaking] = []
    connect = wire._connect

    def watch() -> Breaking:
        made.append(Breaking(connect()))
        return made[-1]

    wire.close()
    wire._connect = watch
    return made


class TestAnswers:
    @pytest.mark.parametrize(
        ("sent", "echoed"),
        [
            (b"\x00\r\n\xff$3\r\n", b"\x00\r\n\xff$3\r\n"),
            (b"", b""),
            ("ключ", "ключ".encode()),
            (2**53 - 1, b"9007199254740991"),
            (b"x" * 1_000_000, b"x" * 1_000_000),
        ],
        ids=["bytes", "nothing", "text", "number", "much"],
    )
    def test_arguments_arrive_as_they_are(
        self, wire: Wire, sent: bytes | str | int, echoed: bytes
    ) -> None:
        """Bytes, text and numbers reach the server unchanged, whatever is in them."""
        # Then
        assert wire.command("ECHO", sent) == echoed

    def test_one_connection_is_enough(self, wire: Wire) -> None:
        """Calls that come one after the other use the same connection."""
        # Then
        assert len({connection_id(wire) for _ in range(10)}) == 1

    def test_threads_never_share_a_connection(self, wire: Wire) -> None:
        """Each thread gets its own answers, and there are no more connections than threads."""
        # Given
        begin = threading.Barrier(8)

        def ask(thread: int) -> bool:
            begin.wait()
            return all(
                wire.command("ECHO", f"{thread}-{n}") == f"{thread}-{n}".encode()
                for n in range(100)
            )

        # When
        with ThreadPoolExecutor(8) as pool:
            right = list(pool.map(ask, range(8)))
        # Then
        assert all(right)
        assert 1 <= len(wire._idle) <= 8

    def test_close_gives_back_all_connections(self, wire: Wire) -> None:
        """After close nothing is connected, and the next call connects again."""
        # Given
        before = connection_id(wire)
        # When
        wire.close()
        # Then
        assert not wire._idle
        assert connection_id(wire) != before


class TestHowMany:
    def test_there_are_no_more_than_are_wanted(self, server: RedisServer) -> None:
        """Who needs one more waits for one that is given back, and each gets its own answer."""
        # Given
        store = store_on(server, max_connections=3)
        observer = redis.Redis.from_url(server.url())
        before = clients_of(observer)
        store.ping()
        made: list[Any] = []
        connect = store._wire._connect

        def watch() -> Any:
            made.append(connect())
            return made[-1]

        store._wire._connect = watch
        begin = threading.Barrier(40)

        def ask(caller: int) -> bool:
            begin.wait()
            return all(
                store._wire.command("ECHO", f"{caller}-{n}") == f"{caller}-{n}".encode()
                for n in range(20)
            )

        # When
        with ThreadPoolExecutor(40) as callers:
            right = list(callers.map(ask, range(40)))
        # Then
        assert all(right)
        assert len(made) == 2
        assert len(clients_of(observer) - before) == 3
        observer.close()
        store.close()

    def test_thirty_two_by_default(self, server: RedisServer) -> None:
        """Of one server and of each node of a cluster; an option or the URL says another number."""
        # Then
        assert store_on(server)._wire._most == 32
        cluster = ClusterStore.from_url(f"redis+cluster://{server.url().partition('://')[2]}")
        assert cluster._wire._wire(("127.0.0.1", 1))._most == 32
        other = RedisStore.from_url(f"{server.url()}?max_connections=7")
        assert other._wire._most == 7

    @pytest.mark.parametrize(
        ("kind", "url"),
        [(RedisStore, "redis://127.0.0.1:1"), (ClusterStore, "redis+cluster://127.0.0.1:1")],
    )
    def test_nothing_has_failed_before_anything_was_asked(
        self, kind: type[RedisStore], url: str
    ) -> None:
        """One server, and a cluster of them."""
        assert kind.from_url(url).failed_at == -math.inf

    def test_greenlets_share_them(self) -> None:
        """Two hundred that claim at one moment take as many as one process may have."""
        # When
        with RedisServer() as server:
            told = subprocess.run(
                [sys.executable, "-m", "tests.stores.redis.greenlets", server.url()],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        # Then
        assert told.stdout.split() == ["1000", "32"], told.stderr

    def test_a_broken_one_makes_room(self, server: RedisServer) -> None:
        """One that was closed, and one that its user lost, are not counted any more."""
        # Given
        store = store_on(server, max_connections=1)
        wire = store._wire
        store.ping()
        # When one is closed, since something cut in
        wire._connect, connect = (lambda: Breaking(connect())), wire._connect
        wire.close()
        wire.command("ECHO", "x")
        breaking: Any = wire._idle[0][0]
        breaking.raises = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            wire.command("ECHO", "x")
        del breaking
        store.ping()
        # And one is lost between two lines
        lost: Any = wire._idle.pop()[0]
        del lost
        gc.collect()
        # Then
        store.ping()
        store.close()

    def test_who_waits_gets_the_first_one(self, server: RedisServer) -> None:
        """In the order in which they came: nobody who comes later goes before them."""
        # Given the only connection in use, and three who wait for one
        store = store_on(server, max_connections=1)
        wire = store._wire
        store.ping()
        held, _ = wire._idle.pop()
        came: list[int] = []

        def ask(caller: int) -> None:
            wire.command("ECHO", caller)
            came.append(caller)

        callers = [threading.Thread(target=ask, args=(caller,)) for caller in range(3)]
        for number, caller in enumerate(callers, 1):
            caller.start()
            eventually(lambda wanted=number: len(wire._waiting) == wanted, "it waits", 30)
        # When
        wire._idle.append((held, time.monotonic()))
        wire._hand_on()
        for caller in callers:
            caller.join(30)
        # Then
        assert came == [0, 1, 2]
        store.close()

    def test_who_waits_in_vain_is_told(self, server: RedisServer) -> None:
        """After as long as an answer is waited for; what is given back later goes to the next."""
        # Given
        store = store_on(server, max_connections=1)
        store.ping()
        held, _ = store._wire._idle.pop()
        # Then
        be_impatient(store, 0.1)
        with pytest.raises(StoreUnavailable, match="all 1 connections") as raised:
            store.ping()
        assert not raised.value.may_have_arrived
        assert not store._wire._waiting
        # When
        store._wire._idle.append((held, time.monotonic()))
        # Then
        store.ping()
        store.close()

    def test_what_is_not_used_any_more_is_closed(
        self, server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a burst, though nothing comes after it; then nobody looks for more to close."""
        # Given
        monkeypatch.setattr(wire_module, "_IDLE_S", 0.05)
        store = store_on(server)
        begin = threading.Barrier(20)

        def ask(_: int) -> None:
            connection = store._wire._one_more()
            begin.wait(30)
            store._wire._idle.append((connection, time.monotonic()))

        with redis.Redis.from_url(server.url()) as client:
            before = clients_of(client)
            # When
            with ThreadPoolExecutor(20) as callers:
                list(callers.map(ask, range(20)))
            # Then
            eventually(lambda: len(clients_of(client) - before) == 2, "two are kept", 30)
            eventually(lambda: not store._wire._trims, "no timer is left", 30)
            store.ping()
            assert len(clients_of(client) - before) == 2
        store.close()

    def test_what_is_used_is_not_closed(
        self, server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither while somebody waits for its answer, nor if it was used since."""
        # Given five that are in use, and a clock that a test moves
        store = store_on(server)
        wire = store._wire
        clock = SimpleNamespace(now=time.monotonic(), monotonic=lambda: clock.now)
        monkeypatch.setattr(wire_module, "time", clock)
        held = [wire._one_more() for _ in range(5)]
        for connection in held[:4]:
            wire._idle.append((connection, clock.now))
        # When
        clock.now += 10
        used = [wire._idle.pop()[0] for _ in range(2)]
        wire._idle.extend((connection, clock.now) for connection in used)
        wire._trim()
        # Then
        assert [connection for connection, _ in wire._idle] == used
        assert set(wire._made) == {*used, held[4]}
        wire._idle.append((held[4], clock.now))
        store.close()

    def test_a_child_closes_its_own(self, server: RedisServer) -> None:
        """Its parent's timer is not in the child, which has one of its own."""
        # Given
        store = store_on(server)
        held = [store._wire._one_more() for _ in range(3)]
        assert store._wire._trims
        reader, writer = os.pipe()
        # When
        pid = os.fork()
        if pid == 0:
            try:
                store.ping()
                os.write(writer, repr(store._wire._trims).encode())
                more = [store._wire._one_more() for _ in range(2)]
                os.write(writer, repr((len(more), store._wire._trims)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            told = pipe.read()
        os.waitpid(pid, 0)
        # Then
        assert told == b"False(2, True)"
        store._wire._idle.extend((connection, time.monotonic()) for connection in held)
        store.close()

    def test_a_node_that_left_keeps_none(self) -> None:
        """Nobody gives a connection back there any more."""
        # Given
        closed: list[str] = []
        wire = ClusterWire([("a", 1)], lambda host, port: pytest.fail("it connected"), "a cluster")
        for host in ("a", "b"):
            wire._wire((host, 1)).close = lambda host=host: closed.append(host)  # type: ignore[method-assign]
        slots = [[0, 16383, [b"a", 1]]]
        wire._anywhere = lambda ask, doubted=None: (("a", 1), slots)  # type: ignore[method-assign]
        # When
        wire.look_up()
        # Then
        assert closed == ["b"]


class TestBrokenConnections:
    def test_a_restarted_server_is_not_noticed(
        self, store: RedisStore, server: RedisServer
    ) -> None:
        """Connections from before it are stale: all are dropped, and the call is sent again."""
        # Given several idle connections
        for _ in range(3):
            connection = store._wire._connect()
            connection.connect()
            store._wire._idle.append((connection, time.monotonic()))
        # When
        server.restart()
        # Then
        assert isinstance(store.claim(KEY, CLAIM), Claimed)
        assert len(store._wire._idle) == 1

    def test_a_server_that_is_away_is_unavailable(
        self, store: RedisStore, server: RedisServer
    ) -> None:
        """It says so, that nothing can have arrived, and goes on when the server is back."""
        # Given
        server.kill()
        try:
            # Then
            store.close()
            for ask in (store.ping, lambda: store.claim(KEY, CLAIM)):
                with pytest.raises(StoreUnavailable, match="not answer") as raised:
                    ask()
                assert not raised.value.may_have_arrived
        finally:
            server.restart()
        store.ping()

    def test_a_connection_that_ends_is_no_proof(
        self, store: RedisStore, server: RedisServer
    ) -> None:
        """Ended while it was in use, and nobody there afterwards: it may have arrived."""
        # Given
        store.ping()
        server.kill()
        try:
            # Then
            with pytest.raises(StoreUnavailable) as raised:
                store.claim(KEY, CLAIM)
            assert raised.value.may_have_arrived
        finally:
            server.restart()

    def test_a_server_that_hangs_is_unavailable(self, server: RedisServer) -> None:
        """After the timeout it says so; a late answer is never taken for that of the next call."""
        # Given
        store = store_on(server)
        store.ping()
        be_impatient(store, 0.1)
        server.pause()
        # When
        try:
            with pytest.raises(StoreUnavailable, match=r"[Tt]imeout") as raised:
                store._wire.command("ECHO", "late")
        finally:
            server.resume()
        # Then
        assert raised.value.may_have_arrived
        patient = store_on(server)
        store._wire._connect = patient._wire._connect
        assert store._wire.command("ECHO", "next") == b"next"
        store.close()

    def test_a_lost_answer_to_a_claim_costs_nothing(
        self, store: RedisStore, connections: list[Breaking]
    ) -> None:
        """The server claimed and the answer was lost: sent again, it is the same claim."""
        # Given
        store.claim(KEY.replace("1", "2"), CLAIM)
        connections[0].reads_first = True
        connections[0].raises = RedisConnectionError("gone")
        # When
        verdict = store.claim(KEY, CLAIM)
        # Then
        record = store.get(KEY)
        assert record is not None
        assert verdict == Claimed(record.token)
        assert len(connections) == 2

    def test_a_lost_answer_to_a_completion_costs_nothing(
        self, store: RedisStore, connections: list[Breaking]
    ) -> None:
        """The server completed and the answer was lost: sent again, it is accepted."""
        # Given
        verdict = store.claim(KEY, CLAIM)
        assert isinstance(verdict, Claimed)
        done = replace(
            CANDIDATE, state=State.SUCCEEDED, token=verdict.token, nonce=b"", outcome=b"\x01\x01{}"
        )
        connections[-1].reads_first = True
        connections[-1].raises = RedisConnectionError("gone")
        # Then
        assert store.settle(KEY, Settle(done, 0, 60_000)) == Recorded(verdict.token)
        assert isinstance(
            store.claim(KEY, replace(CLAIM, candidate=replace(CANDIDATE, owner=b"x"))), Replay
        )

    @pytest.mark.parametrize("cut_in", [KeyboardInterrupt, SystemExit, MemoryError])
    def test_what_cuts_in_leaves_no_half_answer(
        self, store: RedisStore, connections: list[Breaking], cut_in: type[BaseException]
    ) -> None:
        """A soft time limit or an exit in the middle of a read: that connection is dropped."""
        # Given
        store.ping()
        connections[0].raises = cut_in()
        # When
        with pytest.raises(cut_in):
            store._wire.command("ECHO", "first")
        # Then
        assert connections[0].disconnected
        assert store._wire.command("ECHO", "second") == b"second"
        assert len(connections) == 2

    @pytest.mark.parametrize(
        "answer",
        [
            ReadOnlyError("You can't write against a read only replica."),
            ResponseError("Error running script (call to f_1): -READONLY You can't write against"),
        ],
        ids=["its own code", "hidden in a script's"],
    )
    def test_a_master_that_was_demoted_is_left(
        self, store: RedisStore, connections: list[Breaking], answer: ResponseError
    ) -> None:
        """Who is the master is asked again, once, by a new connection."""
        # Given
        store.ping()
        connections[0].gives = answer
        # Then
        assert isinstance(store.claim(KEY, CLAIM), Claimed)
        assert connections[0].disconnected
        assert len(connections) == 2

    def test_a_replica_is_unavailable(self, store: RedisStore, server: RedisServer) -> None:
        """A server that stays read-only refuses, and keeps nobody's connection."""
        # Given
        with redis.Redis(port=server.port) as client, RedisServer() as master:
            client.replicaof("127.0.0.1", master.port)
            try:
                # Then
                with pytest.raises(StoreUnavailable, match="refused to work") as raised:
                    store.claim(KEY, CLAIM)
                assert not raised.value.may_have_arrived
                assert not store._wire._idle
            finally:
                client.replicaof("NO", "ONE")
        assert isinstance(store.claim(KEY, CLAIM), Claimed)

    @pytest.mark.parametrize("held", [False, True])
    def test_a_claim_that_is_late_gets_nothing(
        self, store: RedisStore, monkeypatch: pytest.MonkeyPatch, held: bool
    ) -> None:
        """Its server stood still for longer than it was waited for: the claim is refused."""
        # Given
        if held:
            store.claim(KEY, CLAIM._replace(candidate=CLAIM.candidate._replace(nonce=b"another")))
        before = store.get(KEY)
        monkeypatch.setattr(store._wire, "_deadline_ms", lambda: store.now_ms() - 1)
        # When
        with pytest.raises(StoreUnavailable, match="too late") as raised:
            store.claim(KEY, CLAIM)
        # Then
        assert not raised.value.may_have_arrived
        assert store.get(KEY) == before

    @pytest.mark.parametrize("held", [False, True])
    def test_a_claim_in_the_millisecond_of_its_deadline_is_late(
        self, store: RedisStore, monkeypatch: pytest.MonkeyPatch, held: bool
    ) -> None:
        """Its sender may have given it up within that very millisecond."""
        # Given
        if held:
            store.claim(KEY, CLAIM._replace(candidate=CLAIM.candidate._replace(nonce=b"another")))
        before = store.get(KEY)
        monkeypatch.setattr(store._wire, "_deadline_ms", store.now_ms)
        # Then a server that is asked so soon mostly answers before the next millisecond begins
        for _ in range(50):
            with pytest.raises(StoreUnavailable, match="too late"):
                store.claim(KEY, CLAIM)
        assert store.get(KEY) == before

    def test_a_claim_that_lay_in_a_socket_gets_nothing(self, server: RedisServer) -> None:
        """The server stood still for longer than the claim was waited for, and then goes on."""
        # Given
        store = store_on(server)
        store._wire.command("FLUSHALL")
        store.claim(KEY.replace("1", "2"), CLAIM)
        be_impatient(store, 0.3)
        server.pause()
        # When
        try:
            with pytest.raises(StoreUnavailable):
                store.claim(KEY, CLAIM)
        finally:
            server.resume()
        # Then
        assert store_on(server).get(KEY) is None
        store.close()

    def test_a_clock_that_was_moved_refuses_a_claim_once(
        self, store: RedisStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is asked for again, by the clock as it is now."""
        # Given
        deadlines = iter((store.now_ms() - 1, store.now_ms() + 60_000))
        monkeypatch.setattr(store._wire, "_deadline_ms", lambda: next(deadlines))
        # Then
        assert isinstance(store.claim(KEY, CLAIM), Claimed)

    def test_a_claim_over_a_line_that_broke_leaves_runs_time_to_renew(
        self, store: RedisStore, connections: list[Breaking], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server may just be back: a lease that ended meanwhile is not taken over at once."""

        def broken(*_: Any, **__: Any) -> None:
            raise RedisConnectionError("gone")

        # Given a run whose lease is over
        other = CLAIM.candidate._replace(nonce=b"another", owner=b"")
        store.claim(KEY, CLAIM._replace(candidate=other, lease_ms=0))
        monkeypatch.setattr(connections[0], "send_packed_command", broken, raising=False)
        # Then
        assert isinstance(store.claim(KEY, CLAIM), Busy)


class TestScripts:
    def test_flushed_scripts_are_loaded_again(self, store: RedisStore) -> None:
        """SCRIPT FLUSH is invisible, to one call and to several in one round trip."""
        # Given
        verdict = store.claim(KEY, CLAIM)
        assert isinstance(verdict, Claimed)
        held = replace(CANDIDATE, token=verdict.token)
        renewals = [Renewal(KEY, held, 1_000, 60_000)] * 3
        store.renew(renewals)
        # When
        store._wire.command("SCRIPT", "FLUSH")
        # Then
        assert store.claim(KEY, CLAIM) == verdict
        assert store.renew(renewals) == [Recorded(held.token)] * 3

    def test_one_error_among_several_answers(self, store: RedisStore) -> None:
        """Each call has its own answer or its own error, in the order of the calls."""
        # Given
        held = replace(CANDIDATE, token=17)
        other = KEY.replace("1", "2")
        store._wire.command("RPUSH", other, "not a record")
        # When
        answers = store.renew([Renewal(key, held, 1_000, 60_000) for key in (KEY, other, KEY)])
        # Then
        assert answers[0] == answers[2] == Recorded(17)
        assert isinstance(answers[1], RecordCorrupt)

    def test_something_else_under_a_key_is_corrupt(self, store: RedisStore) -> None:
        """Another program's data stop the call with an error that says so; forget frees the key."""
        # Given
        store._wire.command("RPUSH", KEY, "not a record")
        # Then
        for ask in (lambda: store.claim(KEY, CLAIM), lambda: store.get(KEY)):
            with pytest.raises(RecordCorrupt, match="idempotency_key_prefix"):
                ask()
        assert store.forget(KEY, 60_000)
        assert isinstance(store.claim(KEY, CLAIM), Claimed)

    def test_a_server_that_refuses_is_unavailable(self, store: RedisStore) -> None:
        """Out of memory: nothing was written, and the connection is good for the next call."""
        # Given
        before = connection_id(store._wire)
        store._wire.command("CONFIG", "SET", "maxmemory", "1")
        try:
            # Then
            with pytest.raises(StoreUnavailable, match="refused to work") as raised:
                store.claim(KEY, CLAIM)
            assert not raised.value.may_have_arrived
        finally:
            store._wire.command("CONFIG", "SET", "maxmemory", "0")
        assert store.get(KEY) is None
        assert connection_id(store._wire) == before

    def test_tokens_are_exact(self, store: RedisStore) -> None:
        """A number goes through a script, and comes back, with all of its digits."""
        # Given
        for token in (1_763_948_123_456_789, 2**53 - 1):
            held = replace(CANDIDATE, token=token, state=State.SUCCEEDED)
            store._wire.command("DEL", KEY)
            # Then
            assert store.settle(KEY, Settle(held, 0, 60_000)) == Recorded(token)
            record = store.get(KEY)
            assert record is not None
            assert record.token == token


class TestForks:
    def test_a_child_leaves_its_parents_connections(self, wire: Wire) -> None:
        """After a fork the child connects by itself, and the parent's connection stays good."""
        # Given
        parent = connection_id(wire)
        reader, writer = os.pipe()
        # When
        pid = os.fork()
        if pid == 0:
            try:
                numbers = {connection_id(wire) for _ in range(3)}
                wire.close()
                os.write(writer, repr(numbers).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            childs = eval(pipe.read())
        os.waitpid(pid, 0)
        # Then
        assert len(childs) == 1
        assert parent not in childs
        assert connection_id(wire) == parent
        assert wire.command("ECHO", "still mine") == b"still mine"

    def test_a_child_that_only_closes_ends_nothing(self, wire: Wire) -> None:
        """A child that closes what it inherited shuts down none of its parent's connections."""
        # Given
        parent = connection_id(wire)
        # When
        pid = os.fork()
        if pid == 0:
            try:
                wire.close()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        # Then
        assert connection_id(wire) == parent


class TestPasswords:
    def errors_of(self, store: RedisStore) -> list[StoreError]:
        errors = []
        for ask in (store.ping, lambda: store.claim(KEY, CLAIM), lambda: store.get(KEY)):
            with pytest.raises(StoreError) as raised:
                ask()
            errors.append(raised.value)
        return errors

    @pytest.mark.parametrize("user", ["", "worker"])
    def test_no_error_shows_a_password(self, server: RedisServer, user: str) -> None:
        """Refused for its password, or not reached at all: the message names the server only."""
        # Given
        login = f"{user}:s3cr%2Ft"
        for address in (f"127.0.0.1:{server.port}", "127.0.0.1:1"):
            store = RedisStore.from_url(f"redis://{login}@{address}/0")
            # Then
            for error in self.errors_of(store):
                shown = f"{error} {error!r} {error.__cause__} {error.__cause__!r}"
                assert "s3cr" not in shown
                assert f"redis://{user}:**@{address}/0" in str(error)
