"""Connections to Redis or Valkey: to one server, by Sentinel, over TLS or a socket, from a URL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

import redis
import redis.sentinel
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_idempotent.errors import ConfigurationError
from celery_idempotent.stores.redis.wire import MOST_CONNECTIONS
from celery_idempotent.stores.urls import mask_url

#: Seconds, unless ``idempotency_store_options`` says so: a server that hangs must hang no worker.
_TIMEOUTS: Final = {"socket_timeout": 2.0, "socket_connect_timeout": 2.0}
#: How the wire reads answers, whatever the options say: as bytes, and by RESP2, in which no push
#: message can come between a command and its answer.
_OURS: Final = {"protocol": 2, "decode_responses": False}
#: Options that are Sentinel's or Celery's, not a connection's.
_SENTINEL_OPTIONS: Final = ("master_name", "sentinel_kwargs", "min_other_sentinels")
#: Celery writes Python's names of these, redis-py wants its own.
_CERT_REQS: Final = {
    "CERT_REQUIRED": "required",
    "CERT_OPTIONAL": "optional",
    "CERT_NONE": "none",
}


def connector(url: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any], int]:
    """Return the class of the connections that a URL asks for, the arguments of each, and how many
    there may be (redis-py's ``max_connections``).

    Raises:
        ConfigurationError: the URL or an option is wrong.
    """
    sentinel_options = {name: options.pop(name, None) for name in _SENTINEL_OPTIONS}
    kwargs: dict[str, Any] = {
        **_TIMEOUTS,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        "max_connections": MOST_CONNECTIONS,
        **options,
        **_OURS,
    }
    try:
        if url.lower().startswith("sentinel://"):
            pool = _sentinel_pool(url, kwargs, sentinel_options)
        else:
            pool = redis.ConnectionPool.from_url(_for_redis_py(url), **kwargs)
        # This connects to nothing: it makes redis-py check its arguments.
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError, redis.RedisError) as exc:
        raise ConfigurationError(
            f"the store's URL {mask_url(url)!r} or its idempotency_store_options are wrong: {exc}"
        ) from exc
    return pool.connection_class, pool.connection_kwargs, pool.max_connections


def patience_of(kwargs: Mapping[str, Any]) -> int:
    """For how many milliseconds replicas are waited for: half of what the socket waits."""
    return int((kwargs.get("socket_timeout") or _TIMEOUTS["socket_timeout"]) * 500)


def _split(url: str) -> tuple[SplitResult, int]:
    """Read one URL, and the number of its database."""
    try:
        parts = urlsplit(url)
        is_path = parts.scheme.lower() in ("redis+socket", "unix")
        database = 0 if is_path else int(parts.path.strip("/") or 0)
        parts.port  # noqa: B018  raises the error of a port that is no number
    except ValueError:
        # Not chained: what could not be read as a number may be a part of the password.
        raise ConfigurationError(
            f"the store's URL {mask_url(url)!r} cannot be read: port and database are numbers, and "
            "in a user name or a password / ? # @ : ; are written as %2F %3F %23 %40 %3A %3B"
        ) from None
    return parts, database


def _for_redis_py(url: str) -> str:
    """Translate a URL as Celery writes it into one that redis-py reads."""
    parts, _ = _split(url)
    query = {name: text for name, text in parse_qsl(parts.query) if name not in _OURS}
    scheme = parts.scheme.lower()
    if scheme == "redis+socket":
        scheme = "unix"
        if "virtual_host" in query:
            query["db"] = query.pop("virtual_host").strip("/")
    if "ssl_cert_reqs" in query:
        query["ssl_cert_reqs"] = _CERT_REQS.get(query["ssl_cert_reqs"], query["ssl_cert_reqs"])
    tail = f"?{urlencode(query)}" if query else ""
    return f"{scheme}://{parts.netloc}{parts.path}{tail}"


def _sentinel_pool(
    url: str, kwargs: dict[str, Any], options: dict[str, Any]
) -> redis.ConnectionPool:
    sentinels: Any = redis.sentinel  # its constructors have no types

    splits = [_split(part) for part in url.split(";") if part]
    parts = [part for part, _ in splits]
    first, database = splits[0]
    if not options["master_name"]:
        raise ConfigurationError(
            "a sentinel:// store needs to know which master: set idempotency_store_options = "
            "{'master_name': '...'}"
        )
    login = {"username": unquote(first.username or ""), "password": unquote(first.password or "")}
    kwargs = {
        **{name: value for name, value in login.items() if value},
        "db": database,
        **kwargs,
    }
    # No retries here either: by default, a client waits for a dead Sentinel for seconds.
    timeouts = {name: kwargs[name] for name in (*_TIMEOUTS, "retry")}
    sentinel = sentinels.Sentinel(
        [(part.hostname or "localhost", part.port or 26379) for part in parts],
        min_other_sentinels=options["min_other_sentinels"] or 0,
        sentinel_kwargs={**timeouts, **(options["sentinel_kwargs"] or {})},
    )
    pool: redis.ConnectionPool = sentinels.SentinelConnectionPool(
        options["master_name"], sentinel, **kwargs
    )
    return pool
