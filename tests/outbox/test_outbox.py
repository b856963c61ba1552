"""The outbox: what a call becomes as a row, what is refused, and what a relay makes of its rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from amqp.exceptions import MessageNacked, NotFound
from celery import Celery, Task, chain
from kombu import Connection
from kombu.exceptions import OperationalError, SerializerNotInstalled
from pydantic import BaseModel
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, ResponseError
from sqlalchemy import Engine, create_engine, inspect, select
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session

from celery_idempotent import (
    MESSAGE_ID,
    ConfigurationError,
    IdempotentTask,
    KeyDerivationError,
    outbox,
)
from celery_idempotent.core.message import OWN
from celery_idempotent.outbox import BrokerAway
from celery_idempotent.outbox.message import PendingCall
from celery_idempotent.outbox.rows import SqlOutbox, engine_of
from celery_idempotent.outbox.schema import outbox as table
from celery_idempotent.publishing import use_idempotency_key


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    outbox.create_schema(made)
    yield made
    made.dispose()


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app with a broker in memory, and one task of each kind.

    Their names are like no others: what another test shares, every app of the process has.
    """
    made = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    made.conf.update(idempotency_store_url="memory://", task_default_queue="outbox-tests")

    def charge(order: int, amount: Any = 1) -> None: ...
    def send(to: str, text: str = "") -> None: ...
    def note(text: str) -> None: ...
    def plain(a: Any, b: Any = 2) -> None: ...

    def add(function: Callable[..., Any], **options: Any) -> None:
        made.task(name=f"books.{function.__name__}", shared=False, **options)(function)

    add(charge, base=IdempotentTask, idempotency_key="o:{order}")
    add(send, base=IdempotentTask)
    add(note, base=IdempotentTask, idempotency_key=MESSAGE_ID)
    add(plain)
    yield made
    with made.connection_for_read() as connection:
        connection.SimpleQueue("outbox-tests").clear()
    made.close()


def publish(engine: Engine, *calls: Any) -> list[str]:
    with Session(engine) as session, session.begin():
        return [outbox.publish(session, call).id for call in calls]


def received(app: Celery) -> list[Any]:
    """What is in the queue, as the worker gets it."""
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue("outbox-tests")
        messages = [queue.get(timeout=5) for _ in range(queue.qsize())]
        for message in messages:
            message.ack()
        return messages


def key_of(signature: Any) -> Any:
    """The key that a call's message will have."""
    message = PendingCall.of(signature)
    own = message.options["headers"][OWN]
    assert own["id"] == message.task_id
    return message.task_id if own["key"] == message.task_id else own["key"]


# --- publishing ----------------------------------------------------------------------------------


def test_a_row_goes_the_way_of_its_transaction(engine: Engine, app: Celery) -> None:
    """It is there after a commit, and after a rollback it never was."""
    # When
    with Session(engine) as session:
        outbox.publish(session, app.tasks["books.charge"].s(1))
        session.rollback()
    rolled_back = outbox.backlog(engine).rows
    with engine.begin() as connection:
        outbox.publish(connection, app.tasks["books.charge"].s(1))
    # Then
    assert rolled_back == 0
    assert outbox.backlog(engine).rows == 1


def test_the_row_is_what_apply_async_would_have_sent(engine: Engine, app: Celery) -> None:
    """Arguments and options reach the worker as without an outbox, under the row's id."""
    # Given
    now = datetime.now(timezone.utc)
    plain = app.tasks["books.plain"]
    call = app.tasks["books.charge"].s(7, amount=Decimal("1.50"))
    call.set(headers={"trace": "t"}, priority=3, link=plain.s(b=now), countdown=60, expires=3600)
    # When
    (task_id,) = publish(engine, call)
    outbox.Relay(app, engine).once()
    # Then
    (message,) = received(app)
    headers = message.headers
    assert headers["id"] == message.properties["correlation_id"] == task_id
    assert headers["task"] == "books.charge"
    assert headers["trace"] == "t"
    assert headers[OWN]["key"] == "o:7"
    assert message.properties["priority"] == 3
    assert message.properties["reply_to"] == app.thread_oid
    args, kwargs, embed = message.payload
    assert (args, kwargs) == ([7], {"amount": Decimal("1.50")})
    assert embed["callbacks"][0]["task"] == "books.plain"
    assert embed["callbacks"][0]["kwargs"] == {"b": now}
    for name, seconds in (("eta", 60), ("expires", 3600)):
        late = datetime.fromisoformat(headers[name]) - now - timedelta(seconds=seconds)
        assert timedelta(0) <= late < timedelta(seconds=30), name


def test_a_task_that_nobody_here_knows_is_sent_by_its_name(engine: Engine, app: Celery) -> None:
    """As with send_task: another service has it."""
    # When
    publish(engine, app.signature("elsewhere.do", args=(1,)))
    outbox.Relay(app, engine).once()
    # Then
    assert [message.headers["task"] for message in received(app)] == ["elsewhere.do"]


def test_a_call_with_the_key_none_is_not_deduplicated(app: Celery) -> None:
    """Neither by its task's key nor by its row's id."""
    assert key_of(app.tasks["books.send"].s("a").set(idempotency_key=None)) is None


@pytest.mark.parametrize(
    ("task", "option"),
    [
        ("books.charge", "idempotency_ttl"),
        ("books.charge", "idempotency_keyy"),
        ("books.plain", "idempotency_key"),
        ("elsewhere.do", "idempotency_key"),
    ],
)
def test_an_option_that_nobody_would_read_is_refused(
    engine: Engine, app: Celery, task: str, option: str
) -> None:
    """Before the row is written: it would fail at the relay, or say nothing to anybody."""
    with pytest.raises(ConfigurationError, match=option):
        publish(engine, app.signature(task, args=(1,), options={option: "x"}))
    assert outbox.backlog(engine).rows == 0


def test_the_tasks_own_key_stands(app: Celery) -> None:
    """A key option of the task, an explicit key and one from the context are kept."""
    tasks = app.tasks
    assert key_of(tasks["books.charge"].s(7)) == "o:7"
    assert key_of(tasks["books.send"].s("a").set(idempotency_key="req-1")) == "req-1"
    assert key_of(tasks["books.send"].s("a").set(headers={"Idempotency-Key": "req-2"})) == "req-2"
    with use_idempotency_key("req-3"):
        first, second = (key_of(tasks["books.send"].s("a")) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", ["books.send", "books.note"])
def test_without_a_key_of_its_own_the_rows_id_is_the_key(app: Celery, name: str) -> None:
    """Two equal calls are two, and the two messages of a row are one."""
    calls = [PendingCall.of(app.tasks[name].s("a")) for _ in range(2)]
    keys = [call.options["headers"][OWN]["key"] for call in calls]
    assert keys == [call.task_id for call in calls]
    assert keys[0] != keys[1]


def test_a_task_id_that_was_chosen_is_kept(engine: Engine, app: Celery) -> None:
    """It is the row's, and the message's."""
    assert publish(engine, app.tasks["books.plain"].s(1).set(task_id="mine")) == ["mine"]


def test_the_message_keeps_its_place_in_a_task_that_publishes(app: Celery) -> None:
    """Within a running task the row names parent and root, and the call is among its children."""
    # Given
    seen: dict[str, Any] = {}

    def parent(self: Any) -> None:
        seen["id"] = self.request.id
        seen["message"] = PendingCall.of(app.tasks["books.plain"].s(1))

    app.task(name="books.parent", bind=True, shared=False)(parent)
    # When
    app.tasks["books.parent"].apply(task_id="root")
    # Then
    options = seen["message"].options
    assert (options["root_id"], options["parent_id"]) == ("root", "root")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda tasks: tasks["books.charge"].s(None), KeyDerivationError, "order"),
        (lambda tasks: tasks["books.charge"].s(), TypeError, "order"),
        (lambda tasks: tasks["books.plain"].s(1, 2, 3), TypeError, "argument"),
        (lambda tasks: tasks["books.plain"].s(object()), TypeError, "argument 1 can't be kept"),
        (lambda tasks: tasks["books.plain"].s(1, b={1}), TypeError, "argument 'b' can't be kept"),
        (lambda tasks: tasks["books.plain"].s(1).set(producer=object()), TypeError, "'producer'"),
        (lambda tasks: tasks["books.plain"].s(1).set(task_id="x" * 256), TypeError, "255"),
        (
            lambda tasks: chain(tasks["books.plain"].s(1), tasks["books.plain"].s()),
            TypeError,
            "one",
        ),
        (lambda tasks: "books.plain", TypeError, "signature"),
    ],
)
def test_what_can_not_be_sent_is_refused_before_anything_is_written(
    engine: Engine, app: Celery, call: Any, error: type[Exception], words: str
) -> None:
    """The error comes from publish(), names what is wrong, and leaves the transaction usable."""
    with Session(engine) as session, session.begin():
        with pytest.raises(error, match=words):
            outbox.publish(session, call(app.tasks))
        outbox.publish(session, app.tasks["books.plain"].s(1))
    assert outbox.backlog(engine).rows == 1


def test_a_model_is_kept_as_its_json(app: Celery) -> None:
    """Pydantic's models are dumped as Celery dumps them."""

    class Order(BaseModel):
        id: int

    message = PendingCall.of(app.tasks["books.plain"].s(Order(id=1)))
    again = PendingCall.from_row(message.task_id, message.task, message.to_json())
    assert again.args == [{"id": 1}]


async def publish_async(call: Any) -> None:
    engine = create_async_engine("postgresql+psycopg://nowhere/")
    sessions = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
    for session in (AsyncSession(engine), sessions, engine.connect()):
        with pytest.raises(TypeError, match=r"await session.run_sync\(outbox.publish"):
            outbox.publish(session, call)


def test_an_async_session_is_refused_with_what_to_write(app: Celery) -> None:
    """It would write nothing, and say nothing."""
    asyncio.run(publish_async(app.tasks["books.plain"].s(1)))


@pytest.mark.parametrize("where", ["engine", "connection", "session"])
def test_a_connection_that_commits_by_itself_is_refused(
    engine: Engine, app: Celery, where: str
) -> None:
    """The row would survive a rollback; nothing is written."""
    # Given
    level = {"isolation_level": "AUTOCOMMIT"}
    made = create_engine(engine.url, **(level if where == "engine" else {}))
    call = app.tasks["books.plain"].s(1)
    # When
    with Session(made) as session:
        connection = session.connection(execution_options=level if where == "connection" else {})
        if where == "session":
            made = made.execution_options(**level)
            session = Session(made)
        with pytest.raises(InvalidRequestError, match="AUTOCOMMIT"):
            outbox.publish(session, call)
        if where != "session":
            with pytest.raises(InvalidRequestError, match="AUTOCOMMIT"):
                outbox.publish(connection, call)
        session.close()
    # Then
    assert outbox.backlog(engine).rows == 0


# --- the relay -----------------------------------------------------------------------------------


def test_rows_are_sent_in_their_order_in_batches(engine: Engine, app: Celery) -> None:
    """Whatever the batch, all that is there is sent, in order, and deleted."""
    # Given
    ids = publish(engine, *(app.tasks["books.charge"].s(order) for order in range(7)))
    relay = outbox.Relay(app, engine, batch=3)
    # When
    count = relay.once()
    # Then
    assert (count, relay.sent, outbox.backlog(engine).rows) == (7, 7, 0)
    assert [message.headers["id"] for message in received(app)] == ids


def test_a_row_that_can_not_be_sent_does_not_hold_up_the_others(
    engine: Engine, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    """It is kept, tried again later, and shown with its error; it is logged once."""
    # Given
    publish(engine, *(app.tasks["books.plain"].s(number) for number in range(3)))
    with engine.begin() as connection:
        connection.execute(table.update().where(table.c.id == 2).values(message="{"))
    # When
    relay = outbox.Relay(app, engine)
    relay.once()
    # Then
    assert [message.payload[0] for message in received(app)] == [[0], [2]]
    waiting = outbox.backlog(engine)
    assert (waiting.rows, waiting.failing) == (1, 1)
    assert "JSONDecodeError" in (waiting.error or "")
    assert "1 failing (JSONDecodeError" in str(waiting)
    # When it is due again it is tried again, and not logged again
    with engine.begin() as connection:
        connection.execute(table.update().values(due_us=0))
    relay.once()
    with engine.connect() as connection:
        assert connection.scalar(select(table.c.attempts)) == 2
    assert len([record for record in caplog.records if "can't be sent" in record.message]) == 1
    # And once it is put right, it is sent
    with engine.begin() as connection:
        text = '{"args": [1], "kwargs": {}, "options": {}}'
        connection.execute(table.update().values(due_us=0, message=text))
    assert relay.once() == 1


def test_what_was_sent_before_the_broker_went_is_settled(
    engine: Engine, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest stays, with no attempt counted, and goes out when the broker is back."""
    # Given
    ids = publish(engine, *(app.tasks["books.plain"].s(number) for number in range(3)))
    sent: list[str] = []

    def send(message: PendingCall, app: Any, producer: Any) -> None:
        if len(sent) == 1:
            raise ConnectionResetError("gone")
        sent.append(message.task_id)

    real_connect = Connection.connect

    def connect(self: Any) -> Any:
        if sent:
            raise ConnectionRefusedError("not there")
        return real_connect(self)

    monkeypatch.setattr(PendingCall, "send", send)
    relay = outbox.Relay(app, engine)
    # When
    with monkeypatch.context() as away:
        away.setattr(Connection, "connect", connect)
        with pytest.raises(BrokerAway, match="not there"):
            relay.once()
    # Then
    waiting = outbox.backlog(engine)
    assert (sent, waiting.rows, waiting.failing) == (ids[:1], 2, 0)
    # When
    monkeypatch.setattr(PendingCall, "send", lambda message, *_: sent.append(message.task_id))
    relay.once()
    # Then
    assert sent == ids


class Refusals:
    """A broker that raises for some calls of ``books.plain`` or ``books.charge``, by argument."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        #: Argument -> the errors of its next attempts.
        self.errors: dict[int, list[Exception]] = {}
        self.tried: list[int] = []
        self.sent: list[int] = []
        monkeypatch.setattr(PendingCall, "send", lambda message, *_: self._send(message))

    def _send(self, message: PendingCall) -> None:
        (number,) = message.args
        self.tried.append(number)
        if self.errors.get(number):
            raise self.errors[number].pop(0)
        self.sent.append(number)


def wrapped(error: Exception) -> Exception:
    """As kombu raises it."""
    made = OperationalError(str(error))
    made.__cause__ = error
    return made


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> Refusals:
    return Refusals(monkeypatch)


@pytest.mark.parametrize(
    "error",
    [
        wrapped(MessageNacked()),
        wrapped(NotFound("no exchange")),
        wrapped(ResponseError("WRONGTYPE Operation against a key of another kind")),
        wrapped(KeyError("queue")),
        SerializerNotInstalled("yaml"),
        ValueError("anything"),
    ],
    ids=lambda error: type(error.__cause__ or error).__name__,
)
def test_what_refuses_one_message_stops_no_other(
    engine: Engine, app: Celery, refusals: Refusals, error: Exception
) -> None:
    """A full queue, a missing exchange, an unknown serializer: that row waits by itself."""
    # Given
    publish(engine, *(app.tasks["books.plain"].s(number) for number in range(3)))
    refusals.errors = {1: [error]}
    # When
    outbox.Relay(app, engine).once()
    # Then
    assert (refusals.tried, refusals.sent) == ([0, 1, 2], [0, 2])
    assert outbox.backlog(engine).failing == 1


@pytest.mark.parametrize(
    "error",
    [
        wrapped(OutOfMemoryError("OOM command not allowed when used memory > 'maxmemory'")),
        wrapped(ReadOnlyError("You can't write against a read only replica.")),
        wrapped(BusyLoadingError("loading the dataset in memory")),
    ],
    ids=lambda error: type(error.__cause__).__name__,
)
def test_a_server_that_takes_no_message_is_away(
    engine: Engine, app: Celery, refusals: Refusals, error: Exception
) -> None:
    """Every other message would be refused too: no attempt is counted, and the order is kept."""
    # Given
    publish(engine, *(app.tasks["books.plain"].s(number) for number in range(3)))
    refusals.errors = {1: [error]}
    relay = outbox.Relay(app, engine)
    # When
    with pytest.raises(BrokerAway):
        relay.once()
    # Then
    assert (refusals.sent, outbox.backlog(engine).failing) == ([0], 0)
    relay.once()
    assert refusals.sent == [0, 1, 2]


def test_a_connection_that_breaks_once_costs_no_row_its_place(
    engine: Engine, app: Celery, refusals: Refusals
) -> None:
    """The message is sent on a new connection, before those behind it."""
    # Given
    publish(engine, *(app.tasks["books.plain"].s(number) for number in range(3)))
    refusals.errors = {1: [wrapped(ConnectionResetError("idle for too long"))]}
    # When
    outbox.Relay(app, engine).once()
    # Then
    assert (refusals.tried, refusals.sent) == ([0, 1, 1, 2], [0, 1, 2])
    assert outbox.backlog(engine).rows == 0


def test_a_queue_that_never_answers_is_waited_for_once_a_batch(
    engine: Engine, app: Celery, refusals: Refusals
) -> None:
    """The others of its queue wait with it, and those of other queues go on."""
    # Given a quorum queue without its quorum, say
    plain = app.tasks["books.plain"]
    to_others = [plain.s(number).set(queue="outbox-tests") for number in (3, 4)]
    publish(engine, *(plain.s(number) for number in range(3)), *to_others)
    refusals.errors = {0: [TimeoutError("timed out"), TimeoutError("timed out")]}
    # When
    outbox.Relay(app, engine).once()
    # Then
    assert (refusals.tried, refusals.sent) == ([0, 0, 3, 4], [3, 4])
    waiting = outbox.backlog(engine)
    assert (waiting.rows, waiting.failing) == (3, 3)
    assert "TimeoutError" in (waiting.error or "")


def test_a_relay_that_is_told_to_stop_does_not_wait_for_each_queue(
    engine: Engine, app: Celery, refusals: Refusals
) -> None:
    """It leaves the rest of the batch, once one of its queues has not answered."""
    # Given
    plain = app.tasks["books.plain"]
    publish(engine, *(plain.s(number).set(queue=f"outbox-{number}") for number in range(3)))
    errors = [TimeoutError("timed out"), TimeoutError("timed out")]
    refusals.errors = {number: list(errors) for number in range(3)}
    relay = outbox.Relay(app, engine)
    # When
    relay.stop()
    relay.turn()
    # Then
    assert refusals.tried == [0, 0]
    waiting = outbox.backlog(engine)
    assert (waiting.rows, waiting.failing) == (3, 1)


def test_a_rabbitmq_that_is_short_of_memory_is_away(
    engine: Engine, app: Celery, refusals: Refusals
) -> None:
    """It says so when it blocks a connection, and answers no message then."""
    # Given
    publish(engine, *(app.tasks["books.plain"].s(number) for number in range(2)))
    relay = outbox.Relay(app, engine)
    broker = relay._broker
    told = broker._options("amqp", {})["on_blocked"]
    real = broker.connect

    def connect() -> None:
        real()
        told("low on memory")

    refusals.errors = {0: [TimeoutError("timed out")]}
    with pytest.MonkeyPatch.context() as blocked:
        blocked.setattr(broker, "connect", connect)
        # When
        with pytest.raises(BrokerAway):
            relay.once()
    # Then
    assert (refusals.tried, outbox.backlog(engine).failing) == ([0], 0)


def test_a_batch_that_can_not_be_sent_is_one_line(
    engine: Engine, app: Celery, refusals: Refusals, caplog: pytest.LogCaptureFixture
) -> None:
    """It names the first of its calls, and says how many more there are."""
    # Given
    publish(engine, *(app.tasks["books.plain"].s(number) for number in range(5)))
    refusals.errors = {number: [wrapped(MessageNacked())] for number in range(5)}
    # When
    outbox.Relay(app, engine).once()
    # Then
    (line,) = [record.getMessage() for record in caplog.records]
    assert "MessageNacked" in line
    assert "nor can 4 more" in line


def test_a_row_gets_past_a_base_that_locks(engine: Engine, app: Celery) -> None:
    """It was enqueued with its transaction: a lock that another call holds must not swallow it."""

    # Given
    class Locking(Task):
        def apply_async(self, *_: Any, **__: Any) -> None:
            """Publish nothing."""

    class Both(Locking, IdempotentTask): ...

    @app.task(base=Both, name="books.locked", shared=False)
    def locked(order: int) -> None: ...

    (task_id,) = publish(engine, locked.s(1))
    # When
    outbox.Relay(app, engine).once()
    # Then
    assert [message.headers["id"] for message in received(app)] == [task_id]


def test_a_relay_that_is_told_to_stop_finishes_its_batch(engine: Engine, app: Celery) -> None:
    """What is under way is sent and marked; the next batch is not begun."""
    # Given
    publish(engine, *(app.tasks["books.plain"].s(number) for number in range(6)))
    relay = outbox.Relay(app, engine, batch=2)
    # When
    relay.run(told=relay.stop)
    # Then
    assert (relay.sent, outbox.backlog(engine).rows) == (2, 4)


def test_an_outage_of_the_database_is_outlived(
    engine: Engine, app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The relay goes on trying, says so once, and sends when the database is back."""
    # Given
    publish(engine, app.tasks["books.plain"].s(1))
    relay = outbox.Relay(app, engine)
    pauses: list[float] = []
    real = engine.connect
    monkeypatch.setattr(relay, "_pause", pauses.append)

    def connect() -> Any:
        if len(pauses) < 3:
            raise DBAPIError("SELECT", None, OSError("gone"))
        return real()

    monkeypatch.setattr(engine, "connect", connect)
    # When
    relay.run(told=relay.stop)
    # Then
    assert relay.sent == 1
    assert 0.25 <= pauses[0] <= 0.5 <= pauses[1] <= 1 <= pauses[2] <= 2
    words = [record.getMessage() for record in caplog.records]
    assert len([line for line in words if "database is away, nothing is lost" in line]) == 1
    assert len([line for line in words if "database is back after" in line]) == 1


def test_without_its_table_the_relay_says_how_to_make_it(app: Celery, tmp_path: Path) -> None:
    """That is no outage, which would end by itself."""
    empty = create_engine(f"sqlite:///{tmp_path / 'empty.db'}")
    for send in (outbox.Relay(app, empty).once, outbox.Relay(app, empty).run):
        with pytest.raises(ConfigurationError, match="--init-db"):
            send()


def test_a_mistyped_path_of_an_outbox_makes_no_file(app: Celery, tmp_path: Path) -> None:
    """The relay says so, and makes the file only where it is told to make the table."""
    # Given
    path = tmp_path / "mistyped.db"
    engine = engine_of(f"sqlite:///{path}")
    # Then
    with pytest.raises(ConfigurationError, match="has no such file"):
        outbox.Relay(app, engine).backlog()
    assert not path.exists()
    # And
    assert outbox.create_schema(engine) == ["idempotency_outbox"]
    assert outbox.create_schema(engine) == []
    assert outbox.Relay(app, engine).backlog().rows == 0
    engine.dispose()


def test_on_sqlite_one_relay_works_at_a_time(engine: Engine, app: Celery) -> None:
    """Another stands by, and takes over when the first one has ended."""
    # Given
    publish(engine, app.tasks["books.plain"].s(1))
    first = SqlOutbox(engine)
    assert first.is_ours()
    # When
    standby = outbox.Relay(app, engine).once()
    first.close()
    # Then
    assert standby == 0
    assert outbox.Relay(app, engine).once() == 1


def test_the_lag_is_the_age_of_the_oldest_row(engine: Engine, app: Celery) -> None:
    """By the database's clock."""
    # Given
    publish(engine, *(app.tasks["books.plain"].s(number) for number in range(2)))
    # When
    with engine.begin() as connection:
        older = table.c.created_us - 90_000_000
        connection.execute(table.update().where(table.c.id == 1).values(created_us=older))
    # Then
    waiting = outbox.backlog(engine)
    assert waiting.rows == 2
    assert 90 <= waiting.lag < 120
    assert outbox.Backlog(0, 0.0, 0) == outbox.Backlog(rows=0, lag=0.0, failing=0, error=None)


@pytest.mark.parametrize(
    ("url", "given"),
    [
        ("", None),
        ("?prepare_threshold=0", None),
        ("?prepare_threshold=none", None),
        ("?prepare_threshold=5", 5),
    ],
)
def test_the_relay_prepares_no_statement_unless_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch, url: str, given: int | None
) -> None:
    """Behind a pooler one relay's statement would meet another's."""
    # Given
    seen: dict[str, Any] = {}

    def connect(*_: Any, **arguments: Any) -> Any:
        seen.update(arguments)
        raise psycopg.OperationalError("not there")

    monkeypatch.setattr(psycopg.Connection, "connect", connect)
    # When
    with pytest.raises(outbox.DatabaseAway):
        outbox.backlog(engine_of(f"postgresql://somewhere/shop{url}"))
    # Then
    assert seen["prepare_threshold"] == given
    assert {"connect_timeout", "keepalives_idle"} <= seen.keys()


def test_a_threshold_that_is_no_number_is_refused() -> None:
    """With what to write."""
    with pytest.raises(ConfigurationError, match="0 for never"):
        engine_of("postgresql://somewhere/shop?prepare_threshold=off")


def test_the_schema_may_be_made_again(engine: Engine) -> None:
    """What is there is left as it is; the metadata names the one table."""
    outbox.create_schema(engine)
    assert inspect(engine).get_table_names() == list(outbox.metadata.tables)


def test_the_relay_asks_for_the_brokers_word_on_amqp(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dying RabbitMQ loses must not count as sent; the app's own time limits stand."""
    # Given
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(
        Connection, "connect", lambda self: seen.append(dict(self.transport_options))
    )
    for given in ({}, {"read_timeout": 5, "confirm_publish": False}):
        app = Celery("shop", broker="amqp://", set_as_current=False)
        app.conf.broker_transport_options = given
        broker = outbox.Relay(app, create_engine("sqlite://"))._broker
        # When
        broker.connect()
    # Then
    assert [options["confirm_publish"] for options in seen] == [True, True]
    assert [options["read_timeout"] for options in seen] == [10, 5]
