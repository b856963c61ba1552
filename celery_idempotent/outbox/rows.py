"""The outbox in a database that SQLAlchemy reads: its statements, and the relay for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

from celery_idempotent.errors import ConfigurationError, how_to_install, missing_extra
from celery_idempotent.outbox.relay import OutboxRelay
from celery_idempotent.outbox.schema import outbox
from celery_idempotent.outbox.waiting import Backlog, DatabaseAway, Failure, Outbox
from celery_idempotent.stores.sql.engines import (
    answer_in_time,
    connect_args,
    take_prepare_threshold,
)
from celery_idempotent.stores.sql.files import open_only_what_is_there
from celery_idempotent.stores.sql.flavours import Flavour, Trouble, flavour_of, hint_of, trouble_of
from celery_idempotent.stores.urls import mask_url

try:
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
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError
except ImportError as exc:
    raise missing_extra(exc, "the outbox needs", "sql") from exc

_SECOND_US: Final = 1_000_000
#: How long the relay waits for an answer of the database, in seconds.
_ANSWER_S: Final = 30.0


def flavour_for(dialect: str) -> Flavour:
    """Return how a database of this kind does things.

    Raises:
        ConfigurationError: the outbox doesn't know this kind of database.
    """
    try:
        return flavour_of(URL.create(dialect))
    except KeyError:
        raise ConfigurationError(
            f"the outbox works with PostgreSQL, MySQL, MariaDB and SQLite, not with {dialect}"
        ) from None


def engine_of(url: str) -> Engine:
    """Make the engine of a relay.

    Raises:
        ConfigurationError: the URL can't be read, or its driver is not installed.
    """
    try:
        parsed = make_url(url)
        flavour = flavour_for(parsed.drivername.partition("+")[0])
        if "+" not in parsed.drivername:
            parsed = parsed.set(drivername=flavour.driver)
        parsed, prepared = take_prepare_threshold(parsed)
        arguments = connect_args(flavour, "own", _ANSWER_S)
        if flavour.one_writer:
            arguments["timeout"] = _ANSWER_S
        if flavour.driver.startswith("postgresql"):
            # Behind a pooler prepared statements collide; the relay sends few of them twice.
            arguments.update(prepared or {"prepare_threshold": None})
        level = {} if flavour.one_writer else {"isolation_level": "READ COMMITTED"}
        engine = create_engine(parsed, pool_pre_ping=True, connect_args=arguments, **level)
        open_only_what_is_there(engine)
        if flavour.driver.startswith("postgresql"):
            answer_in_time(engine, _ANSWER_S)
        return engine
    except ImportError as exc:
        raise ConfigurationError(
            f"the outbox at {mask_url(url)} needs {exc.name}: {how_to_install('sql')}"
        ) from exc
    except (SQLAlchemyError, ValueError):
        # Not chained: its text may show a part of the password.
        raise ConfigurationError(f"the outbox's URL {mask_url(url)!r} can't be read") from None


class SqlOutbox(Outbox):
    """An outbox that SQLAlchemy reads."""

    def __init__(self, engine: Engine) -> None:
        flavour = flavour_for(engine.dialect.name)
        super().__init__(
            engine.url.render_as_string(),
            one_writer=flavour.one_writer,
            database=engine.url.database,
        )
        self.engine = engine
        self._now_us = flavour.now_us
        # At a higher level MySQL also locks the end of the table, where the application writes.
        level = {} if flavour.one_writer else {"isolation_level": "READ COMMITTED"}
        self._sending = engine.execution_options(**level)

    def _connect(self) -> AbstractContextManager[Connection]:
        return self.engine.connect()

    def _begin(self) -> AbstractContextManager[Connection]:
        return self._sending.begin()

    def _due(self, connection: Connection, most: int, *, lock: bool) -> Sequence[Any]:
        columns = outbox.c
        wanted = (
            select(columns.id, columns.task_id, columns.task, columns.message, columns.attempts)
            .where(columns.due_us <= self._now_us)
            .order_by(columns.id)
            .limit(most)
        )
        for dialect in ("mysql", "mariadb"):
            # Sorting would lock every due row, and leave none for another relay.
            wanted = wanted.with_hint(outbox, "FORCE INDEX (PRIMARY)", dialect)
        if lock:
            self._refuse_without_skip_locked(connection.dialect)
            wanted = wanted.with_for_update(skip_locked=True)
        return connection.execute(wanted).all()

    def _refuse_without_skip_locked(self, dialect: Any) -> None:
        """Refuse a server that is too old; its own error would look like one of the syntax."""
        version, is_mariadb = dialect.server_version_info, getattr(dialect, "is_mariadb", False)
        oldest = {"postgresql": (9, 5), "mysql": (10, 6) if is_mariadb else (8, 0, 1)}
        if version < oldest.get(dialect.name, (10, 6)):
            raise self._no_skip_locked(f"its version is {'.'.join(map(str, version))}")

    def _write(
        self, connection: Connection, sent: Sequence[int], failed: Sequence[Failure]
    ) -> None:
        if sent:
            connection.execute(delete(outbox).where(outbox.c.id.in_(sent)))
        statement = (
            update(outbox)
            .where(outbox.c.id == bindparam("failed_id"))
            .values(
                attempts=outbox.c.attempts + 1,
                error=bindparam("why"),
                due_us=self._now_us + bindparam("later_us"),
            )
        )
        for one in failed:
            later_us = int(one.pause_s * _SECOND_US)
            values = {"failed_id": one.row_id, "why": one.why, "later_us": later_us}
            connection.execute(statement, values)

    def _count(self, connection: Connection) -> Backlog:
        figures = select(func.count(), func.min(outbox.c.created_us), self._now_us)
        rows, oldest_us, at_us = connection.execute(figures.select_from(outbox)).one()
        failing = outbox.c.attempts > 0
        last = select(outbox.c.error).where(failing).order_by(outbox.c.due_us.desc()).limit(1)
        failed = connection.scalar(select(func.count()).select_from(outbox).where(failing)) or 0
        error = connection.scalar(last) if failed else None
        lag = 0.0 if oldest_us is None else max(0.0, (at_us - oldest_us) / _SECOND_US)
        return Backlog(rows, lag, failed, error)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as exc:
            trouble = trouble_of(exc)
            if trouble is Trouble.NO_FILE:
                raise ConfigurationError(
                    f"the outbox at {self.where} has no such file: is the path right? To make it, "
                    "run celery -A <your app> idempotency relay --init-db"
                ) from exc
            if trouble is Trouble.NO_TABLES:
                raise ConfigurationError(
                    f"there is no table {outbox.name} in {self.where}: make it with "
                    "outbox.create_schema(engine), or celery -A <your app> idempotency relay "
                    "--init-db"
                ) from exc
            raise DatabaseAway(str(exc.orig or exc) + hint_of(exc)) from exc
        except SQLAlchemyError as exc:
            raise DatabaseAway(str(exc)) from exc


class Relay(OutboxRelay):
    """Sends the rows of one outbox.

    Several relays may run at once: each row is sent by one of them. One relay alone sends rows in
    the order in which they were committed.

    Args:
        app: the Celery app, whose broker gets the messages.
        engine: the engine of the database with the outbox's table.
        batch: how many rows are sent between two commits.
        interval: how many seconds it waits when nothing is left to send.
    """

    def __init__(
        self, app: Any, engine: Engine, *, batch: int = 100, interval: float = 1.0
    ) -> None:
        super().__init__(app, SqlOutbox(engine), batch=batch, interval=interval)


def backlog(engine: Engine) -> Backlog:
    """Return how many calls wait in the outbox, and for how long.

    Raises:
        DatabaseAway: the database can't be reached.
        ConfigurationError: the outbox's table is not there.
    """
    return SqlOutbox(engine).backlog()
