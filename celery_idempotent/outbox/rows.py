"""The outbox's rows: which of them are next, what became of them, and how many wait."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    bindparam,
    create_engine,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from celery_idempotent.errors import ConfigurationError
from celery_idempotent.outbox.schema import outbox
from celery_idempotent.stores.base import mask_url
from celery_idempotent.stores.sql_flavours import Flavour, flavour_of

__all__ = ["Alone", "Backlog", "Batch", "backlog", "engine_of", "flavour_for", "take"]

_SECOND_US: Final = 1_000_000
_LONGEST_ERROR: Final = 2000


def flavour_for(dialect: str) -> Flavour:
    """Give how a database of this kind does things.

    Raises:
        ConfigurationError: it is of a kind that the outbox doesn't know.
    """
    try:
        return flavour_of(URL.create(dialect))
    except KeyError:
        raise ConfigurationError(
            f"the outbox knows PostgreSQL, MySQL, MariaDB and SQLite, and not {dialect}"
        ) from None


def engine_of(url: str) -> Engine:
    """Make an engine for a relay.

    Raises:
        ConfigurationError: the URL can't be read, or its driver is not installed.
    """
    try:
        parsed = make_url(url)
        flavour = flavour_for(parsed.drivername.partition("+")[0])
        if "+" not in parsed.drivername:
            parsed = parsed.set(drivername=flavour.driver)
        more: dict[str, Any] = {"pool_pre_ping": True}
        if flavour.one_writer:
            more["connect_args"] = {"timeout": 30}
        else:
            more["isolation_level"] = "READ COMMITTED"
        return create_engine(parsed, **more)
    except ImportError as exc:
        raise ConfigurationError(
            f"the outbox at {mask_url(url)} needs {exc.name}: pip install 'celery-idempotent[sql]'"
        ) from exc
    except (SQLAlchemyError, ValueError):
        # Not chained: what can't be read may be a part of the password.
        raise ConfigurationError(f"the outbox's URL {mask_url(url)!r} can't be read") from None


@dataclass(frozen=True)
class Backlog:
    """What waits to be sent."""

    #: How many calls.
    rows: int
    #: How long the oldest of them has waited, in seconds; 0 where nothing waits.
    lag: float
    #: How many of them could not be sent for a reason of their own, and are tried again later.
    failing: int
    #: What the last one of those met.
    error: str | None = None

    def __str__(self) -> str:
        words = f"{self.rows} waiting, lag {self.lag:.1f} s"
        return f"{words}, {self.failing} failing ({self.error})" if self.failing else words


def backlog(engine: Engine) -> Backlog:
    """Say how many calls wait in the outbox, and for how long."""
    now_us = flavour_for(engine.dialect.name).now_us
    figures = select(func.count(), func.min(outbox.c.created_us), now_us).select_from(outbox)
    failing = outbox.c.attempts > 0
    last = select(outbox.c.error).where(failing).order_by(outbox.c.due_us.desc()).limit(1)
    with engine.connect() as connection:
        rows, oldest_us, at_us = connection.execute(figures).one()
        failed = connection.scalar(select(func.count()).select_from(outbox).where(failing)) or 0
        error = connection.scalar(last) if failed else None
    lag = 0.0 if oldest_us is None else max(0.0, (at_us - oldest_us) / _SECOND_US)
    return Backlog(rows, lag, failed, error)


@dataclass(frozen=True)
class Batch:
    """Rows that are this relay's for the moment, in the order in which they are to be sent."""

    rows: Sequence[Any]
    _engine: Engine
    _connection: Connection | None

    def settle(self, sent: Sequence[int], failed: Sequence[tuple[int, str, float]]) -> None:
        """Delete what was sent; note what failed, why, and in how many seconds to try it again."""
        if self._connection is not None:
            self._write(self._connection, sent, failed)
        elif sent or failed:
            with self._engine.begin() as connection:
                self._write(connection, sent, failed)

    def _write(
        self,
        connection: Connection,
        sent: Sequence[int],
        failed: Sequence[tuple[int, str, float]],
    ) -> None:
        if sent:
            connection.execute(delete(outbox).where(outbox.c.id.in_(sent)))
        if not failed:
            return
        later = flavour_for(connection.dialect.name).now_us + bindparam("later_us")
        statement = (
            update(outbox)
            .where(outbox.c.id == bindparam("failed_id"))
            .values(attempts=outbox.c.attempts + 1, error=bindparam("why"), due_us=later)
        )
        for row_id, why, pause_s in failed:
            values = {"failed_id": row_id, "why": why[:_LONGEST_ERROR]}
            connection.execute(statement, {**values, "later_us": int(pause_s * _SECOND_US)})


@contextmanager
def take(engine: Engine, most: int) -> Iterator[Batch]:
    """Take the next rows, which no other relay gets until this ends.

    They stay where they are until they are settled: a relay that is killed leaves them to the next.
    """
    flavour = flavour_for(engine.dialect.name)
    wanted = (
        select(outbox.c.id, outbox.c.task_id, outbox.c.task, outbox.c.message, outbox.c.attempts)
        .where(outbox.c.due_us <= flavour.now_us)
        .order_by(outbox.c.id)
        .limit(most)
    )
    if flavour.one_writer:
        # No transaction while it is sent: it would keep the application from writing.
        with engine.connect() as connection:
            rows = connection.execute(wanted).all()
        yield Batch(rows, engine, None)
        return
    with engine.begin() as connection:
        rows = connection.execute(wanted.with_for_update(skip_locked=True)).all()
        yield Batch(rows, engine, connection)


class Alone:
    """On SQLite, which has no locks on rows, one relay works and others stand by.

    The lock is a file beside the database, and the system frees it with the process.
    """

    def __init__(self, engine: Engine) -> None:
        name = engine.url.database if flavour_for(engine.dialect.name).one_writer else None
        self._path = f"{os.path.abspath(name)}-relay" if name and name != ":memory:" else None
        self._lock: sqlite3.Connection | None = None

    def __call__(self) -> bool:
        """Whether this relay may work; asked again, it may have become the one."""
        if self._path is None or self._lock is not None:
            return True
        lock = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            lock.close()
            return False
        self._lock = lock
        return True

    def free(self) -> None:
        """Let another relay have it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
