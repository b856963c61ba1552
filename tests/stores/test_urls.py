"""Stores from URLs: what Celery writes is understood, and what is wrong is said at once."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import Claim, Claimed
from celery_idempotent.errors import ConfigurationError, StoreUnavailable
from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.stores.redis.store import RedisStore
from celery_idempotent.stores.urls import mask_url, store_from_url
from celery_idempotent.testing.servers import RedisServer

KEY = "idempotent:{urls:1}"
CLAIM = Claim(Record(State.RUNNING, 0, owner=b"me", nonce=b"nonce"), 30_000, 60_000)


def connection_of(url: str, **options: Any) -> Any:
    """The (not yet connected) connection that a store of this URL would use."""
    store = store_from_url(url, options)
    assert isinstance(store, RedisStore)
    return store._wire._connect()


def login_of(connection: Any) -> tuple[str | None, str | None]:
    return connection.username or None, connection.password


class TestUnderstood:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("redis://", ("localhost", 6379, 0, None, None)),
            ("redis://cache", ("cache", 6379, 0, None, None)),
            ("redis://cache/", ("cache", 6379, 0, None, None)),
            ("redis://cache:6380/2", ("cache", 6380, 2, None, None)),
            ("REDIS://cache:6380/2", ("cache", 6380, 2, None, None)),
            ("redis://:p%40ss%2Fw@cache", ("cache", 6379, 0, None, "p@ss/w")),
            ("redis://us%3Aer:pass@cache:1/3", ("cache", 1, 3, "us:er", "pass")),
            ("redis://cache?db=4", ("cache", 6379, 4, None, None)),
            ("redis://[::1]:6380/1", ("::1", 6380, 1, None, None)),
        ],
    )
    def test_a_server(self, url: str, expected: tuple[Any, ...]) -> None:
        """Host, port, database and login are those of the URL, decoded."""
        # When
        connection = connection_of(url)
        # Then
        assert type(connection) is Connection
        found = (connection.host, connection.port, connection.db, *login_of(connection))
        assert found == expected

    @pytest.mark.parametrize(
        ("needs", "mode"),
        [
            ("CERT_NONE", ssl.CERT_NONE),
            ("none", ssl.CERT_NONE),
            ("CERT_OPTIONAL", ssl.CERT_OPTIONAL),
            ("optional", ssl.CERT_OPTIONAL),
            ("CERT_REQUIRED", ssl.CERT_REQUIRED),
            ("required", ssl.CERT_REQUIRED),
        ],
    )
    def test_tls_as_celery_writes_it(self, needs: str, mode: ssl.VerifyMode) -> None:
        """``ssl_cert_reqs`` may have Python's names, as Celery wants, or redis-py's."""
        # When
        connection = connection_of(f"rediss://:pass@cache:6380/1?ssl_cert_reqs={needs}")
        # Then
        assert type(connection) is SSLConnection
        assert connection.cert_reqs == mode
        assert (connection.port, connection.db) == (6380, 1)

    def test_tls_checks_certificates_unless_told_otherwise(self) -> None:
        """Nothing said is the safe choice; other options of the URL are passed on."""
        # When
        connection = connection_of("rediss://cache?ssl_ca_certs=/etc/ca.pem")
        # Then
        assert connection.cert_reqs == ssl.CERT_REQUIRED
        assert connection.ca_certs == "/etc/ca.pem"

    @pytest.mark.parametrize(
        ("url", "database"),
        [
            ("redis+socket:///run/redis.sock", 0),
            ("redis+socket:///run/redis.sock?virtual_host=1", 1),
            ("redis+socket:///run/redis.sock?virtual_host=/1", 1),
            ("unix:///run/redis.sock?db=2", 2),
        ],
    )
    def test_a_socket(self, url: str, database: int) -> None:
        """A path is a socket's, and ``virtual_host`` is how Celery names its database."""
        # When
        connection = connection_of(url)
        # Then
        assert type(connection) is UnixDomainSocketConnection
        assert (connection.path, connection.db) == ("/run/redis.sock", database)

    def test_a_socket_works(self, tmp_path: Path) -> None:
        """A store on a socket claims in the database of its URL."""
        # Given
        path = tmp_path / "redis.sock"
        with RedisServer(args=("--unixsocket", str(path))) as server:
            store = store_from_url(f"redis+socket://{path}?virtual_host=1")
            # When
            verdict = store.claim(KEY, CLAIM)
            # Then
            assert isinstance(verdict, Claimed)
            assert [*store_from_url(server.url(1)).scan("*")] == [KEY]
            assert [*store_from_url(server.url(0)).scan("*")] == []

    def test_sentinels(self) -> None:
        """Each part names a Sentinel; the first has database and login of the master."""
        # When
        connection = connection_of(
            "sentinel://us%3Aer:p%40ss@a:1/2;sentinel://b:2/0;sentinel://c", master_name="mymaster"
        )
        # Then
        assert type(connection) is SentinelManagedConnection
        pool = connection.connection_pool
        assert pool.service_name == "mymaster"
        assert pool.is_master
        assert [
            (each["host"], each["port"])
            for each in (
                sentinel.connection_pool.connection_kwargs
                for sentinel in pool.sentinel_manager.sentinels
            )
        ] == [("a", 1), ("b", 2), ("c", 26379)]
        assert connection.db == 2
        assert login_of(connection) == ("us:er", "p@ss")

    def test_sentinels_have_options_of_their_own(self) -> None:
        """A login for the Sentinels is not the master's; TLS is asked for by ``ssl``."""
        # When
        connection = connection_of(
            "sentinel://:master@a:1",
            master_name="mymaster",
            sentinel_kwargs={"password": "theirs"},
            min_other_sentinels=1,
            ssl=True,
        )
        # Then
        assert type(connection) is SentinelManagedSSLConnection
        manager = connection.connection_pool.sentinel_manager
        assert manager.min_other_sentinels == 1
        assert manager.sentinels[0].connection_pool.connection_kwargs["password"] == "theirs"

    @pytest.mark.parametrize("url", ["redis://cache", "sentinel://a;sentinel://b"])
    def test_nothing_waits_for_long(self, url: str) -> None:
        """A server or a Sentinel that hangs is given up after seconds, and not tried again."""
        # When
        connection = connection_of(url, master_name="mymaster")
        # Then
        clients = [connection.retry, connection.socket_timeout, connection.socket_connect_timeout]
        assert clients[1:] == [2.0, 2.0]
        retries = [connection.retry]
        if isinstance(connection, SentinelManagedConnection):
            for sentinel in connection.connection_pool.sentinel_manager.sentinels:
                kwargs = sentinel.connection_pool.connection_kwargs
                assert (kwargs["socket_timeout"], kwargs["socket_connect_timeout"]) == (2.0, 2.0)
                retries.append(kwargs["retry"])
        assert [retry._retries for retry in retries] == [0] * len(retries)

    def test_no_sentinel_is_an_outage(self) -> None:
        """Where no Sentinel answers the store is unavailable: nothing else is raised."""
        # Given
        store = store_from_url(
            "sentinel://:pw@127.0.0.1:1;sentinel://127.0.0.1:2", {"master_name": "mymaster"}
        )
        # Then
        with pytest.raises(StoreUnavailable, match="mymaster") as raised:
            store.claim(KEY, CLAIM)
        assert not raised.value.may_have_arrived

    def test_options_outrank_our_defaults(self) -> None:
        """``idempotency_store_options`` go to the client; those of the URL outrank them."""
        # Then
        assert connection_of("redis://cache", socket_timeout=9.0).socket_timeout == 9.0
        assert (
            connection_of("redis://cache?socket_timeout=7", socket_timeout=9.0).socket_timeout == 7
        )

    @pytest.mark.parametrize(
        ("url", "options"),
        [
            ("redis://cache?protocol=3&decode_responses=true", {}),
            ("redis://cache", {"protocol": 3, "decode_responses": True}),
            ("sentinel://a", {"protocol": 3, "decode_responses": True, "master_name": "m"}),
        ],
    )
    def test_how_answers_are_read_is_ours(self, url: str, options: dict[str, Any]) -> None:
        """Settings that are good for another client's answers don't garble ours."""
        # When
        connection = connection_of(url, **options)
        # Then
        assert int(connection.protocol) == 2
        assert not connection.encoder.decode_responses

    def test_memory_is_shared_by_url(self) -> None:
        """The same URL is the same store in this process, another URL another one."""
        # Then
        store = store_from_url("memory://a-test")
        assert isinstance(store, MemoryStore)
        assert store_from_url("memory://a-test") is store
        assert store_from_url("memory://another-test") is not store


class TestWrong:
    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("", "may begin with redis://"),
            ("amqp://guest:s3cret@broker//", "may begin with redis://"),
            ("redis-sentinel://:s3cret@a", "may begin with redis://"),
            ("redis://:s3cret@cache:port/0", "port and database are numbers"),
            ("redis://:s3cret@cache:99999/0", "port and database are numbers"),
            ("redis://:s3cret@cache/mydb", "port and database are numbers"),
            ("redis+socket://:s3cret@/run/redis.sock?virtual_host=mydb", "'db'"),
            ("redis://:s3/cret@cache/0", "%2F"),
            ("redis://:s3#cret@cache/0", "%23"),
            ("redis://:s3?cret@cache/0", "%3F"),
            ("redis://user:s3;cret@cache:x", "%3B"),
            ("redis://[:s3cret@cache", "cannot be read"),
            ("redis://:s3cret@cache?socket_timeout=soon", "socket_timeout"),
            ("redis://:s3cret@cache?no_such_option=1", "no_such_option"),
            ("redis://:s3cret@cache?ssl_cert_reqs=CERT_NONE", "ssl_cert_reqs"),
            ("rediss://:s3cret@cache?ssl_cert_reqs=CERT_MAYBE", "CERT_MAYBE"),
            ("sentinel://:s3cret@a:1", "master_name"),
        ],
    )
    def test_what_is_wrong_is_said(self, url: str, says: str) -> None:
        """A ConfigurationError, when the store is made, with no part of the password in it."""
        # Then
        with pytest.raises(ConfigurationError) as raised:
            store_from_url(url)
        chain: list[BaseException] = [raised.value]
        while chain[-1].__cause__ is not None:
            chain.append(chain[-1].__cause__)
        assert says in str(raised.value)
        assert not any(part in repr(shown) for shown in chain for part in ("s3", "cret"))

    @pytest.mark.parametrize(
        "url",
        ["sentinel://:s3cret@a:x", "sentinel://:s3cret@a/mydb", "sentinel://a;sentinel://b:x"],
    )
    def test_a_wrong_sentinel_is_said(self, url: str) -> None:
        """Port and database of each part are numbers."""
        # Then
        with pytest.raises(ConfigurationError, match="numbers") as raised:
            store_from_url(url, {"master_name": "mymaster"})
        assert "s3cret" not in str(raised.value)

    @pytest.mark.parametrize("url", ["redis://cache", "sentinel://a"])
    def test_an_unknown_option_is_said(self, url: str) -> None:
        """Another client's option is an error of the settings, not of the first claim."""
        # Then
        with pytest.raises(ConfigurationError, match=r"idempotency_store_options.*visibility"):
            store_from_url(url, {"visibility_timeout": 3, "master_name": "mymaster"})


class TestMasked:
    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("redis://cache:1/0", "redis://cache:1/0"),
            ("redis://:pw@cache", "redis://:**@cache"),
            ("redis://user:pw@cache/1", "redis://user:**@cache/1"),
            ("redis://user@cache", "redis://user@cache"),
            ("redis://:p@w@cache", "redis://:**@cache"),
            ("redis://:p:w@cache", "redis://:**@cache"),
            ("redis://:p/w?x#y;z@cache/0", "redis://:**@cache/0"),
            ("redis://:p://w@cache", "redis://:**@cache"),
            ("redis://cache?password=pw&db=1", "redis://cache?password=**&db=1"),
            ("rediss://:pw@c?ssl_password=pw&db=1", "rediss://:**@c?ssl_password=**&db=1"),
            (
                "redis+socket:///run/r.sock?virtual_host=1",
                "redis+socket:///run/r.sock?virtual_host=1",
            ),
            ("redis+socket://:pw@/run/r.sock", "redis+socket://:**@/run/r.sock"),
            ("sentinel://:pw@a:1;sentinel://u:pw@b", "sentinel://:**@a:1;sentinel://u:**@b"),
            ("sentinel://:p;w@a:1;sentinel://b", "sentinel://:**@a:1;sentinel://b"),
            ("user:pw@cache", "user:**@cache"),
            ("redis://cache?password=p@w", "redis://**"),
            ("", ""),
        ],
    )
    def test_a_password_is_not_shown(self, url: str, shown: str) -> None:
        """A URL that is logged or shown has no password, however badly it was written."""
        # Then
        assert mask_url(url) == shown
