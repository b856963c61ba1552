"""Both outboxes, SQLAlchemy's and Django's, do what the relay asks of a database, on each kind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from celery_idempotent import (
    MESSAGE_ID,
    ConfigurationError,
    IdempotentTask,
    use_idempotency_key,
)
from celery_idempotent.outbox.broker import Broker, BrokerAway
from celery_idempotent.outbox.message import PendingCall
from celery_idempotent.outbox.publishing import publish as publish_sql
from celery_idempotent.outbox.relay import OutboxRelay
from celery_idempotent.outbox.rows import SqlOutbox
from celery_idempotent.outbox.schema import create_schema
from celery_idempotent.outbox.schema import outbox as table
from celery_idempotent.outbox.waiting import DatabaseAway, Failure, Outbox
from tests.support.databases import MYSQL, ON_A_SERVER, POSTGRESQL, Database
from tests.support.djangos import database_of, set_up

set_up()

# Django has to be set up first.
from django.db import connections, transaction  # noqa: E402
from django.utils import timezone  # noqa: E402

from celery_idempotent.django import models  # noqa: E402
from celery_idempotent.django.outbox import DjangoOutbox  # noqa: E402
from celery_idempotent.django.outbox import publish as publish_django  # noqa: E402

KINDS = [
    pytest.param("sqlalchemy-postgresql", marks=ON_A_SERVER),
    pytest.param("sqlalchemy-mysql", marks=ON_A_SERVER),
    "sqlalchemy-sqlite",
    pytest.param("django-postgresql", marks=ON_A_SERVER),
    pytest.param("django-mysql", marks=ON_A_SERVER),
    "django-sqlite",
]


@dataclass
class Side:
    """One outbox with its application."""

    kind: str
    #: Gives another relay's view of the same database.
    outbox: Callable[[], Outbox]
    publish: Callable[..., list[str]]
    #: Makes every row due.
    hurry: Callable[[], None]
    drop: Callable[[], None]
    #: The task ids of what waits.
    ids: Callable[[], list[str]]

    @property
    def is_sqlite(self) -> bool:
        return self.kind.endswith("sqlite")


@pytest.fixture(params=KINDS)
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Side]:
    library, _, kind = request.param.partition("-")
    yield from (_sqlalchemy if library == "sqlalchemy" else _django)(kind, tmp_path)


def _sqlalchemy(kind: str, directory: Path) -> Iterator[Side]:
    database = Database(kind, directory)
    engines: list[Engine] = []

    def engine() -> Engine:
        engines.append(create_engine(database.url))  # as an application makes it
        return engines[-1]

    first = engine()
    create_schema(first)

    def publish(*calls: Any) -> list[str]:
        with first.begin() as connection:
            return [publish_sql(connection, call).id for call in calls]

    def change(statement: Any) -> None:
        with first.begin() as connection:
            connection.execute(statement)

    def ids() -> list[str]:
        with first.connect() as connection:
            return list(connection.scalars(select(table.c.task_id).order_by(table.c.id)))

    yield Side(
        f"sqlalchemy-{kind}",
        lambda: SqlOutbox(engine()),
        publish,
        lambda: change(table.update().values(due_us=0)),
        lambda: table.drop(first),
        ids,
    )
    for one in engines:
        one.dispose()
    if kind != "sqlite":
        database.drop()


def _django(kind: str, directory: Path) -> Iterator[Side]:
    with database_of(kind, directory) as alias:
        copies: list[str] = []

        def outbox() -> DjangoOutbox:
            # Another alias: a connection of its own, as another process has.
            name = f"{alias}-{len(copies)}"
            connections.settings[name] = connections.settings[alias]
            copies.append(name)
            return DjangoOutbox(name)

        def publish(*calls: Any) -> list[str]:
            with transaction.atomic(using=alias):
                return [publish_django(call, using=alias).id for call in calls]

        def hurry() -> None:
            models.Message.objects.using(alias).update(due="2020-01-01 00:00:00+00:00")

        def drop() -> None:
            with connections[alias].schema_editor() as editor:
                editor.delete_model(models.Message)

        def ids() -> list[str]:
            rows = models.Message.objects.using(alias).order_by("id")
            return list(rows.values_list("task_id", flat=True))

        try:
            yield Side(f"django-{kind}", outbox, publish, hurry, drop, ids)
        finally:
            for name in copies:
                connections[name].close()
                del connections[name]
                del connections.settings[name]


@pytest.fixture
def app() -> Iterator[Celery]:
    made = Celery("shop", broker="memory://", set_as_current=False)
    made.conf.update(idempotency_store_url="memory://", task_default_queue="outboxes")

    def charge(order: int) -> None: ...

    made.task(base=IdempotentTask, name="outboxes.charge", shared=False)(charge)
    yield made
    made.close()


@pytest.fixture
def calls(app: Celery) -> Callable[[int], list[Any]]:
    return lambda count: [app.tasks["outboxes.charge"].s(number) for number in range(count)]


Calls = Callable[[int], list[Any]]


def taken(outbox: Outbox, most: int = 100) -> list[str]:
    with outbox.take(most) as batch:
        return [row.task_id for row in batch.rows]


def test_rows_are_taken_in_their_order_and_deleted_where_they_are_settled(
    side: Side, calls: Calls
) -> None:
    """What is not settled stays for the next batch."""
    # Given
    ids = side.publish(*calls(5))
    outbox = side.outbox()
    # When
    with outbox.take(3) as batch:
        first = [row.task_id for row in batch.rows]
        batch.settle([row.id for row in batch.rows[:2]], [])
    # Then
    assert first == ids[:3]
    assert taken(outbox) == side.ids() == ids[2:]


def test_a_call_of_a_request_that_is_carried_out_again_is_one_row(side: Side, app: Celery) -> None:
    """Where the key is the message's id; its row may have been sent in between."""

    # Given
    def mail(to: str) -> None: ...

    app.task(base=IdempotentTask, name="outboxes.mail", shared=False, idempotency_key=MESSAGE_ID)(
        mail
    )

    def request() -> list[str]:
        with use_idempotency_key("ann/7f3a"):
            return side.publish(*(app.tasks["outboxes.mail"].s("ann") for _ in range(2)))

    # When
    ids = request()
    outbox = side.outbox()
    with outbox.take(1) as batch:
        batch.settle([batch.rows[0].id], [])
    # Then
    assert request() == ids
    assert sorted(side.ids()) == sorted(ids)
    assert len(set(ids)) == 2


def test_a_call_is_a_child_of_the_task_that_publishes_it(side: Side, app: Celery) -> None:
    """Whoever reads that task's result finds the call's among its children, as with delay()."""
    # Given
    ids: list[str] = []

    def parent(self: Any) -> list[str]:
        call = app.tasks["outboxes.charge"].s
        ids.extend(side.publish(call(1), call(2).set(add_to_parent=False)))
        return [child.id for child in self.request.children]

    app.task(name="outboxes.parent", bind=True, shared=False)(parent)
    # When
    children = app.tasks["outboxes.parent"].apply().get()
    # Then
    assert children == ids[:1]


def test_each_row_is_one_relays_at_a_time(side: Side, calls: Calls) -> None:
    """Where rows can be locked relays share them; on SQLite one of them works."""
    # Given
    ids = side.publish(*calls(4))
    first, second = side.outbox(), side.outbox()
    assert first.is_ours()
    if side.is_sqlite:
        assert not second.is_ours()
        first.close()
        assert second.is_ours()
        second.close()
        return
    assert second.is_ours()
    # When
    with first.take(2) as batch:
        # Then
        assert [row.task_id for row in batch.rows] == ids[:2]
        assert taken(second) == ids[2:]
    assert taken(second) == ids


@pytest.mark.parametrize(
    "text", ["a NUL \0 in it", "half a pair \ud83d", "\N{PILE OF POO}", "x" * 10_000]
)
def test_whatever_an_error_says_it_is_kept(side: Side, calls: Calls, text: str) -> None:
    """A text that the database refused would undo the batch, which would be sent again for ever."""
    # Given
    ids = side.publish(*calls(2))
    outbox = side.outbox()
    # When
    with outbox.take(2) as batch:
        sent, failed = batch.rows
        batch.settle([sent.id], [Failure.of(failed.id, ValueError(text), 60)])
    # Then
    assert side.ids() == ids[1:]
    waiting = outbox.backlog()
    assert (waiting.rows, waiting.failing) == (1, 1)
    assert (waiting.error or "").startswith("ValueError: ")


def test_an_error_without_a_text_is_named(side: Side, calls: Calls) -> None:
    """Even where making its text fails."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert Failure.of(1, Mute(), 1).why == "Mute"
    side.publish(*calls(1))
    assert side.outbox().backlog().failing == 0


def test_what_failed_is_not_due_until_its_pause_is_over(side: Side, calls: Calls) -> None:
    """Its attempts are counted; the others are taken meanwhile."""
    # Given
    ids = side.publish(*calls(2))
    outbox = side.outbox()
    # When
    for _ in range(2):
        side.hurry()
        with outbox.take(1) as batch:
            batch.settle([], [Failure.of(batch.rows[0].id, OSError(), 60)])
    # Then
    assert taken(outbox) == ids[1:]
    side.hurry()
    with outbox.take(1) as batch:
        assert batch.rows[0].attempts == 2


def test_a_row_is_due_at_once_though_the_publishers_clock_is_wrong(
    side: Side, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's clock alone says when a row was written, and when it is due."""
    # Given a publisher whose clock is an hour ahead
    real = timezone.now
    with monkeypatch.context() as ahead:
        ahead.setattr("django.utils.timezone.now", lambda: real() + timedelta(hours=1))
        ids = side.publish(*calls(1))
    # Then
    assert taken(side.outbox()) == ids
    assert side.outbox().backlog().lag < 600


def test_a_batch_that_is_sent_keeps_nobody_from_publishing(side: Side, calls: Calls) -> None:
    """At a higher level MySQL would lock the end of the table, too."""
    # Given
    ids = side.publish(*calls(1))
    # When
    with side.outbox().take(10) as batch:
        ids += side.publish(*calls(1))
        batch.settle([row.id for row in batch.rows], [])
    # Then
    assert side.ids() == ids[1:]


def test_a_backlog_is_empty_or_has_a_lag(side: Side, calls: Calls) -> None:
    """Nothing waits for no time at all."""
    assert str(side.outbox().backlog()) == "0 waiting, lag 0.0 s"
    side.publish(*calls(3))
    waiting = side.outbox().backlog()
    assert (waiting.rows, waiting.failing, waiting.error) == (3, 0, None)
    assert 0 <= waiting.lag < 600


def test_without_its_table_an_outbox_says_how_to_make_it(side: Side) -> None:
    """That is no outage, which would end by itself."""
    # Given
    side.drop()
    outbox = side.outbox()
    # Then
    with pytest.raises(ConfigurationError, match=r"init-db|migrate"):
        taken(outbox)
    with pytest.raises(ConfigurationError, match=r"init-db|migrate"):
        outbox.backlog()


def test_a_server_that_can_not_pass_over_locked_rows_is_refused(
    side: Side, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two relays would wait for each other there; that is no outage, which would end by itself."""
    # Given
    ids = side.publish(*calls(1))
    outbox = side.outbox()
    assert taken(outbox) == ids
    if isinstance(outbox, DjangoOutbox):
        features = connections[outbox.using].features
        monkeypatch.setattr(features, "has_select_for_update_skip_locked", False)
    else:
        assert isinstance(outbox, SqlOutbox)
        monkeypatch.setattr(outbox.engine.dialect, "server_version_info", (5, 7, 44))
    # Then
    if side.is_sqlite:
        assert taken(outbox) == ids  # it has no locks on rows, and one relay
        return
    with pytest.raises(ConfigurationError, match="SKIP LOCKED, which PostgreSQL, MySQL 8"):
        taken(outbox)


def test_what_was_sent_is_not_sent_again_where_the_database_lost_its_mark(
    side: Side, calls: Calls, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay remembers it until the database has deleted it."""
    # Given a relay whose database goes after two rows were sent, and before it deleted them
    ids = side.publish(*calls(3))
    sent: list[str] = []
    monkeypatch.setattr(Broker, "send", lambda _, message: sent.append(message.task_id))
    relay = OutboxRelay(app, side.outbox(), batch=2)
    with monkeypatch.context() as broken:
        broken.setattr(OutboxRelay, "_send", _then_raise(OutboxRelay._send, side))
        with pytest.raises(DatabaseAway):
            relay.turn()
    assert (sent, side.ids()) == (ids[:2], ids)
    # When
    while relay.turn():
        pass
    # Then
    assert (sent, side.ids()) == (ids, [])


def _then_raise(send: Any, side: Side) -> Any:
    """Have the database's own error raised once all is sent and settled: nothing is committed."""
    from django.db import OperationalError
    from sqlalchemy.exc import DBAPIError

    def sending(self: Any, batch: Any) -> None:
        def settle(*_: Any) -> None:
            if side.kind.startswith("django"):
                raise OperationalError("gone")
            raise DBAPIError("DELETE", None, OSError("gone"))

        send(self, type(batch)(batch.rows, settle))

    return sending


def test_the_broker_going_settles_what_was_sent(
    side: Side, calls: Calls, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest stays, with no attempt counted."""
    # Given
    ids = side.publish(*calls(3))
    sent: list[str] = []

    def send(_: Broker, message: PendingCall) -> None:
        if len(sent) == 1:
            raise BrokerAway("gone")
        sent.append(message.task_id)

    monkeypatch.setattr(Broker, "send", send)
    # When
    with pytest.raises(BrokerAway, match="gone"):
        OutboxRelay(app, side.outbox()).once()
    # Then
    assert (sent, side.ids()) == (ids[:1], ids[1:])
    assert side.outbox().backlog().failing == 0


def test_a_database_that_is_away_is_no_error_of_the_configuration() -> None:
    """The relay waits for it to come back."""
    engine = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(DatabaseAway):
        SqlOutbox(engine).backlog()
    with pytest.raises(ConfigurationError, match="nowhere"):
        DjangoOutbox("nowhere")
    connections.settings["away"] = {
        **connections.configure_settings({"default": {}, "away": {}})["away"],
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "127.0.0.1",
        "PORT": "1",
        "NAME": "none",
    }
    try:
        with pytest.raises(DatabaseAway):
            DjangoOutbox("away").backlog()
    finally:
        del connections["away"]
        del connections.settings["away"]


async def publish_async(url: str, call: Any) -> str:
    engine = create_async_engine(url)
    async with AsyncSession(engine) as session, session.begin():
        found: str = (await session.run_sync(publish_sql, call)).id
    await engine.dispose()
    return found


@pytest.mark.system
@pytest.mark.matrix
def test_an_async_session_publishes_as_the_error_says(tmp_path: Path, calls: Calls) -> None:
    """``await session.run_sync(outbox.publish, ...)`` writes the row."""
    database = Database("postgresql", tmp_path)
    create_schema(create_engine(database.url))
    task_id = asyncio.run(publish_async(database.url, *calls(1)))
    assert taken(SqlOutbox(create_engine(database.url))) == [task_id]
    database.drop()


@pytest.mark.parametrize("kind", [POSTGRESQL, MYSQL])
def test_a_driver_that_commits_by_itself_is_refused(
    tmp_path: Path, calls: Calls, kind: str
) -> None:
    """SQLAlchemy doesn't know of it, and its rollback undoes nothing."""
    database = Database(kind, tmp_path)
    events: dict[str, Any] = {"postgresql": {"connect_args": {"autocommit": True}}, "mysql": {}}
    engine = create_engine(database.url, **events[kind])
    create_schema(engine)
    with engine.connect() as connection:
        if kind == "mysql":
            connection.connection.dbapi_connection.autocommit(True)  # type: ignore[union-attr]
        with pytest.raises(InvalidRequestError, match="AUTOCOMMIT"):
            publish_sql(connection, *calls(1))
    engine.dispose()
    database.drop()
