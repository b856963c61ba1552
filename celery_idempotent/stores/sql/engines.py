"""Connections of the SQL store: bounded in time, never shared over a fork, never used half read."""

from __future__ import annotations

import inspect
import math
import os
import time
from collections.abc import Generator, Mapping
from typing import Any, Final

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import SQLAlchemyError

from celery_idempotent.errors import ConfigurationError, how_to_install
from celery_idempotent.stores.sql.files import open_only_what_is_there
from celery_idempotent.stores.sql.flavours import Flavour, flavour_of
from celery_idempotent.stores.urls import mask_url

#: Seconds, unless the option ``timeout`` says so: a database that hangs must hang no worker.
_TIMEOUT_S: Final = 5.0
#: How long SQLite itself waits for a lock, in seconds: the store looks again at what it wants to
#: write each time, the user's session has nothing else to do.
_SQLITE_WAIT_S: Final = {"own": 0.02, "sessions": 30.0}
#: How soon it is noticed that a host is gone without a word: seconds, a number of probes, and
#: milliseconds for what was sent and not received.
_KEEPALIVE: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
#: Engines of the parent process. They are kept so that a child never closes their connections,
#: which SQLite does not allow.
_inherited: Final[list[Engine]] = []


class Engines:
    """The engines of one database: ``own`` for the store's statements, ``sessions`` for users'.

    Args:
        url: as SQLAlchemy takes it, or without a driver.
        options: arguments of ``create_engine``, and ``timeout``: how many seconds the store waits
            for an answer.

    Raises:
        ConfigurationError: URL or options are wrong, or a package is missing.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.where = mask_url(url)
        self._options = dict(options or {})
        self.timeout_s = _seconds(self._options.pop("timeout", _TIMEOUT_S))
        try:
            self._url = make_url(url)
        except (SQLAlchemyError, ValueError):
            # Not chained: what could not be read may be a part of the password.
            raise ConfigurationError(
                f"the store's URL {self.where!r} cannot be read: in a user name or a password "
                "/ ? # @ : are written as %2F %3F %23 %40 %3A"
            ) from None
        self.flavour = flavour_of(self._url)
        self._url, self._prepared = take_prepare_threshold(
            self._url.set(drivername=self.flavour.driver)
        )
        if self.flavour.one_writer and self._url.database in (None, "", ":memory:"):
            raise ConfigurationError(
                "an SQLite database in memory is another one for each connection: name a file, "
                "sqlite:////var/lib/app/records.db, or use memory:// in tests"
            )
        self._pid = os.getpid()
        self._engines: dict[str, Engine] = {}
        # This connects to nothing: it makes SQLAlchemy check its arguments.
        self._engine("own")

    @property
    def own(self) -> Engine:
        """The engine of the store's own statements, each of which is a transaction of its own."""
        return self._engine("own")

    @property
    def sessions(self) -> Engine:
        """The engine of the sessions that bodies of tasks use."""
        return self._engine("sessions")

    def close(self) -> None:
        """Close the connections that nobody uses."""
        if self._pid == os.getpid():
            for engine in self._engines.values():
                engine.dispose()

    def _engine(self, name: str) -> Engine:
        if self._pid != os.getpid():
            _inherited.extend(self._engines.values())
            self._engines = {}
            self._pid = os.getpid()
        engine = self._engines.get(name)
        if engine is None:
            # Two threads may make one each: the second one has opened nothing yet.
            engine = self._engines.setdefault(name, self._make(name))
        return engine

    def _make(self, name: str) -> Engine:
        own = name == "own"
        arguments = dict(self._options)
        if "poolclass" not in arguments:
            # A process opens no more sessions than it runs tasks.
            pool = {"pool_size": 5, "max_overflow": 10 if own else -1, "pool_use_lifo": True}
            arguments = {**pool, "pool_timeout": self.timeout_s, **arguments}
        arguments["connect_args"] = {
            **connect_args(self.flavour, name, self.timeout_s),
            **self._prepared,
            **(self._options.get("connect_args") or {}),
        }
        if own:
            arguments["isolation_level"] = "AUTOCOMMIT"
            arguments.update(_NO_ROLLBACK)
        elif not self.flavour.one_writer:
            arguments["isolation_level"] = "READ COMMITTED"
        try:
            engine = create_engine(self._url, **arguments)
        except ImportError as exc:
            raise ConfigurationError(
                f"the store at {self.where} needs {exc.name}: {how_to_install('sql')}"
            ) from exc
        except (TypeError, ValueError, SQLAlchemyError) as exc:
            raise ConfigurationError(
                f"the store's URL {self.where!r} or its idempotency_store_options are wrong: {exc}"
            ) from exc
        event.listen(engine, "handle_error", _give_up_what_is_half_read)
        open_only_what_is_there(engine)
        if self.flavour.driver.endswith("psycopg") and own:
            answer_in_time(engine, self.timeout_s)
        if self.flavour.one_writer and own:
            event.listen(engine, "connect", _keep_foreign_keys)
        if self.flavour.one_writer and not own:
            event.listen(engine, "connect", _leave_transactions_to_us)
            event.listen(engine, "begin", _begin_immediately)
        return engine


# The store's own connections never hold a transaction that could be rolled back.
_NO_ROLLBACK: Final[dict[str, Any]] = {"pool_reset_on_return": None}
if "skip_autocommit_rollback" in inspect.signature(DefaultDialect.__init__).parameters:
    _NO_ROLLBACK["skip_autocommit_rollback"] = True  # SQLAlchemy 2.0.43 and newer


def _seconds(timeout: Any) -> float:
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or timeout <= 0:
        raise ConfigurationError(
            f"idempotency_store_options: timeout is {timeout!r}, and must be seconds over 0"
        )
    return float(timeout)


def take_prepare_threshold(url: URL) -> tuple[URL, dict[str, Any]]:
    """Take ``prepare_threshold`` out of a URL, which SQLAlchemy would hand to psycopg as text.

    Returns:
        The URL, and the argument for psycopg. 0 and ``none`` mean: prepare no statement, which a
        pooler that gives each transaction another connection needs.

    Raises:
        ConfigurationError: it is no number.
    """
    given = url.query.get("prepare_threshold")
    if given is None:
        return url, {}
    words = str(given).lower()
    if words != "none" and not words.isdecimal():
        raise ConfigurationError(
            f"prepare_threshold={given}: write the number of executions after which psycopg "
            "prepares a statement, or 0 for never, behind a pooler"
        )
    never = words == "none" or int(words) == 0
    rest = url.difference_update_query(["prepare_threshold"])
    return rest, {"prepare_threshold": None if never else int(words)}


def connect_args(flavour: Flavour, name: str, timeout_s: float) -> dict[str, Any]:
    """Return the driver's arguments for time limits."""
    whole = max(2, math.ceil(timeout_s))
    if flavour.driver.startswith("postgresql"):
        return {"connect_timeout": whole, **_KEEPALIVE}
    if flavour.driver.startswith("mysql"):
        if name == "sessions":
            return {"connect_timeout": whole}
        return {
            **{f"{what}_timeout": whole for what in ("connect", "read", "write")},
            "init_command": "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        }
    return {"timeout": _SQLITE_WAIT_S[name]}


def _give_up_what_is_half_read(context: Any) -> None:
    """Close a connection whose answer was cut off by something other than the driver's own error.

    A soft time limit can cut in while an answer is under way: the next statement would read it.
    """
    mine = isinstance(context.original_exception, context.dialect.loaded_dbapi.Error)
    sent = context.statement is None or context.execution_context is not None
    if sent and not mine:
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False


def _keep_foreign_keys(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA foreign_keys = ON")


def _leave_transactions_to_us(connection: Any, _: Any) -> None:
    connection.isolation_level = None


def _begin_immediately(connection: Any) -> None:
    # A transaction that reads first and then writes fails if another wrote in between.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def answer_in_time(engine: Engine, limit_s: float) -> None:
    """Bound how long psycopg waits for an answer: it has no time limit of its own.

    Since 3.2.13 it looks up from its waiting ten times a second; before, this has no effect.
    """
    import psycopg

    class NoAnswer(psycopg.OperationalError, TimeoutError):
        pass

    def until(waiting: Generator[Any, Any, Any], deadline: float) -> Generator[Any, Any, Any]:
        ready = None
        try:
            while True:
                ready = yield waiting.send(ready)
                if not ready and time.monotonic() > deadline:
                    raise NoAnswer(f"no answer within {limit_s:g} s")
        except StopIteration as done:
            return done.value

    class Connection(psycopg.Connection[Any]):
        def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().wait(until(gen, time.monotonic() + limit_s), *args, **kwargs)
            except NoAnswer:
                self.close()
                raise

    @event.listens_for(engine, "do_connect")
    def connect(_: Any, __: Any, args: Any, kwargs: Any) -> Any:
        return Connection.connect(*args, **kwargs)
