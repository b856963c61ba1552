"""What the SQL store does beyond the store contract: locks, statements, purging, broken lines."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, MetaData, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, OperationalError

from celery_idempotent.core import transitions
from celery_idempotent.core.record import State
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.step import Step, StepState
from celery_idempotent.core.verdicts import (
    Busy,
    Claim,
    Claimed,
    Note,
    Recorded,
    Renewal,
    Replay,
    Reserve,
    Superseded,
)
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.outbox.schema import create_schema as create_outbox
from celery_idempotent.outbox.schema import metadata as outbox_metadata
from celery_idempotent.stores import deciding
from celery_idempotent.stores.sql import SqlStore, create_schema, metadata
from celery_idempotent.stores.sql.flavours import Trouble, trouble_of
from celery_idempotent.stores.sql.rows import SqlRows
from celery_idempotent.stores.sql.schema import notes, records, steps
from celery_idempotent.testing.contract.kit import (
    FAILURE,
    FIRST,
    HORIZON_MS,
    KEEP_MS,
    KEY,
    LEASE_MS,
    SECOND,
    THIRD,
    Message,
    claim,
    complete,
    hold,
    interrupt,
    note,
    release,
    release_failed,
    renew,
    replace,
    stored,
)
from tests.support.databases import ON_SERVERS, Database, emptied
from tests.support.proxy import Proxy
from tests.support.waiting import eventually


def statements(store: SqlStore, work: Callable[[], Any]) -> int:
    """How many statements an operation sends."""
    sent: list[str] = []

    def count(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append(statement)

    event.listen(store.engines.own, "before_cursor_execute", count)
    try:
        work()
    finally:
        event.remove(store.engines.own, "before_cursor_execute", count)
    return len(sent)


@contextmanager
def locked(database: Database, key: str = KEY) -> Iterator[Connection]:
    """Hold the row of a record in an open transaction of somebody else (SQLite: all rows)."""
    engine = create_engine(database.url)
    with engine.connect() as connection:
        if database.kind == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            wanted = select(records.c.record_key).where(records.c.record_key == key)
            assert connection.execute(wanted.with_for_update()).all()
        yield connection
        connection.rollback()
    engine.dispose()


# --- what it costs ---


def test_no_statement_too_many(store: SqlStore) -> None:
    """A claim, a renewal and a completion read and write; a note costs one more; a replay reads."""
    # Given
    claim(store, FIRST)  # connections are made
    store.forget(KEY, HORIZON_MS)
    held = []
    # Then
    assert statements(store, lambda: held.append(hold(store, FIRST, noted=True))) == 2
    assert statements(store, lambda: renew(store, held[0])) == 2
    assert statements(store, lambda: complete(store, held[0], delivery_ms=LEASE_MS)) == 2
    assert statements(store, lambda: note(store, FIRST, held[0].token)) == 3
    assert statements(store, lambda: claim(store, SECOND)) == 1


def test_only_the_first_who_waits_writes(store: SqlStore) -> None:
    """It marks the record, whose end is told then, in one transaction, where the store can tell."""
    # Given
    held = hold(store, FIRST)
    # Then
    assert statements(store, lambda: claim(store, SECOND)) == 2
    assert statements(store, lambda: claim(store, SECOND)) == 1
    assert statements(store, lambda: claim(store, THIRD)) == 1
    # BEGIN, SAVEPOINT, the notification, RELEASE, COMMIT
    told = 5 if store.rows.tells else 0
    assert statements(store, lambda: complete(store, held)) == 2 + told


# --- locks ---


def test_a_locked_record_is_busy(store: SqlStore, database: Database) -> None:
    """A claim waits for no lock: whoever has a taken key locked holds it, lease or no lease."""
    # Given
    interrupt(store, hold(store, FIRST))
    with locked(database):
        # When
        others, its_own = claim(store, SECOND), claim(store, FIRST)
    # Then
    for verdict, mine in ((others, False), (its_own, True)):
        assert isinstance(verdict, Busy)
        assert verdict.mine is mine
        assert verdict.record.owner == FIRST.owner
        assert verdict.record.until_ms > verdict.now_ms
    assert isinstance(claim(store, SECOND), Claimed)


def test_a_free_key_that_is_locked_is_nobodys(store: SqlStore, database: Database) -> None:
    """Nobody has it yet, so that no duplicate may be refused or dropped: it is to ask again."""
    # Given
    release(store, hold(store, FIRST))
    with locked(database), pytest.raises(StoreUnavailable, match="locked") as caught:
        # When
        claim(store, SECOND)
    # Then
    assert not caught.value.may_have_arrived
    assert isinstance(claim(store, SECOND), Claimed)


def test_who_only_reads_meets_no_lock(store: SqlStore, database: Database) -> None:
    """A key under a live lease is busy, and an outcome is given, whoever has the row locked."""
    # Given
    held = hold(store, FIRST)
    with locked(database):
        # Then
        assert isinstance(claim(store, SECOND), Busy)
    complete(store, held)
    with locked(database):
        assert isinstance(claim(store, SECOND), Replay)


def test_an_ending_waits_for_a_lock_that_is_let_go(store: SqlStore, database: Database) -> None:
    """What ends a run looks again until the row is free."""
    # Given
    held = hold(store, FIRST)
    with locked(database) as other, ThreadPoolExecutor(1) as pool:
        # When
        answer = pool.submit(complete, store, held)
        other.rollback()
        # Then
        assert answer.result(timeout=30) == Recorded(held.token)


@ON_SERVERS
def test_one_lease_that_is_locked_keeps_no_other_from_being_renewed(
    store: SqlStore, database: Database
) -> None:
    """The heartbeat gets an error for the one, and an answer for the other."""
    # Given
    held = hold(store, FIRST)
    other = replace(FIRST.candidate(), token=17)
    both = [Renewal(key, one, LEASE_MS, KEEP_MS) for key, one in ((KEY, held), ("other", other))]
    with locked(database):
        # When
        first, second = store.renew(both)
    # Then
    assert isinstance(first, StoreUnavailable)
    assert second == Recorded(17)


def test_a_row_that_changed_after_it_was_read_is_read_again(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two claims that both find the lease over: the second one to write finds it taken."""
    # Given
    interrupt(store, hold(store, FIRST))
    real, between = transitions.claim, []

    def decide(*args: Any, **more: Any) -> Any:
        monkeypatch.undo()
        between.append(claim(store, SECOND))
        return real(*args, **more)

    monkeypatch.setattr(transitions, "claim", decide)
    # When
    verdict = claim(store, THIRD)
    # Then
    assert isinstance(between[0], Claimed)
    assert isinstance(verdict, Busy)


def test_a_row_that_was_made_anew_is_not_the_one_that_was_read(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was deleted and has been written as often since: it is another row all the same."""
    # Given a row that was written twice
    interrupt(store, hold(store, FIRST))
    real = transitions.claim

    def decide(*args: Any, **more: Any) -> Any:
        monkeypatch.undo()
        with store.engines.own.connect() as connection:
            connection.execute(records.delete())
        renew(store, hold(store, SECOND))
        return real(*args, **more)

    monkeypatch.setattr(transitions, "claim", decide)
    # When
    verdict = claim(store, THIRD)
    # Then
    assert isinstance(verdict, Busy)


def _of(message: Message) -> Reserve:
    return Reserve(Reservation(message.owner, keeps_result=True), 10_000)


def test_only_what_was_read_is_deleted(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call undoes its own reservation, and not the one that took its place meanwhile."""
    # Given
    store.reserve(KEY, _of(FIRST))
    real = transitions.unreserve

    def decide(*args: Any) -> Any:
        monkeypatch.undo()
        store.unreserve(KEY, FIRST.owner)
        store.reserve(KEY, _of(SECOND))
        return real(*args)

    monkeypatch.setattr(transitions, "unreserve", decide)
    # When
    store.unreserve(KEY, FIRST.owner)
    # Then
    queued = store.reservation(KEY)
    assert queued is not None
    assert queued.owner == SECOND.owner


def test_a_slip_that_was_answered_after_it_was_read_is_not_deleted(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delivery that could not send what hangs on a call ends its lease; another has answered."""
    # Given
    complete(store, hold(store, FIRST))
    claim(store, SECOND, noted=True)
    real = transitions.note

    def decide(*args: Any, **more: Any) -> Any:
        monkeypatch.undo()
        note(store, SECOND)
        return real(*args, **more)

    monkeypatch.setattr(transitions, "note", decide)
    # When
    note(store, SECOND, sent=False)
    # Then
    slip = store.slip(SECOND.slip_key)
    assert slip is not None
    assert slip.answered


def test_racers_for_a_key_that_expired(store: SqlStore) -> None:
    """Claims at once of a key whose old row is still there: one is granted, all are answered."""
    # Given
    complete(store, hold(store, FIRST))
    with store.engines.own.connect() as connection:
        connection.execute(records.update().values(expires_ms=1))
    messages = [replace(FIRST, task_id=f"task-{number}") for number in range(12)]
    # When
    with ThreadPoolExecutor(6) as pool:
        verdicts = list(pool.map(lambda message: claim(store, message), messages))
    # Then
    winners = [verdict for verdict in verdicts if isinstance(verdict, Claimed)]
    assert len(winners) == 1
    assert sum(isinstance(verdict, Busy) for verdict in verdicts) == 11


# --- keys ---


def test_keys_are_compared_byte_by_byte(store: SqlStore) -> None:
    """Upper and lower case are two keys, whatever the database's collation says."""
    # Given
    upper, lower = KEY.replace("order", "ORDER"), KEY
    store.abandon(upper, FIRST.candidate(), HORIZON_MS)
    # Then
    assert store.get(lower) is None
    assert store.get(upper) is not None
    assert list(store.scan("idempotent:{shop.charge:ORDER*")) == [upper]
    assert list(store.scan("idempotent:{shop.charge:order*")) == []


@pytest.mark.parametrize("task_id", ["x" * 1000, "Bestellung-ä ", "Bestellung-a ", "a b"])
def test_any_task_id_has_a_note_of_its_own(store: SqlStore, task_id: str) -> None:
    """However long it is, and whatever is in it."""
    # Given
    message = replace(FIRST, task_id=task_id)
    near = replace(FIRST, task_id=f"{task_id}.")
    hold(store, SECOND)
    # When
    note(store, message, succeeded=False)
    # Then
    assert claim(store, message, noted=True) == Superseded()
    assert isinstance(claim(store, near, noted=True), Busy)


@pytest.mark.parametrize("name", ["charge", "Schritt ä", "s" * 200, "a ", "a"])
def test_a_step_may_have_any_name(store: SqlStore, name: str) -> None:
    """Names come back as they were, and those that look alike are two."""
    # Given
    held = hold(store, FIRST)
    packed = Step(StepState.DONE, 0, b"result").pack()
    renewal = Renewal(KEY, held, LEASE_MS, KEEP_MS)
    # When
    store.step(renewal, name, packed)
    store.step(replace(renewal, held=replace(held, has_steps=True)), name + " ", b"other")
    # Then
    assert store.steps(KEY) == {name: packed, name + " ": b"other"}


def test_pages_of_keys(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking around goes on from page to page, and each key comes once."""
    # Given
    monkeypatch.setattr("celery_idempotent.stores.deciding._PAGE", 3)
    keys = [f"idempotent:{{shop.charge:{number}}}" for number in range(10)]
    for key in keys:
        store.abandon(key, FIRST.candidate(), HORIZON_MS)
    # Then
    assert sorted(store.scan("idempotent:*")) == keys
    assert sorted(store.scan("*charge:?}")) == keys
    assert list(store.scan("idempotent:{shop.charge:7}")) == [keys[7]]


# --- purging ---


def rows(store: SqlStore, table: Any) -> int:
    with store.engines.own.connect() as connection:
        return connection.scalars(select(func.count()).select_from(table)).one()


def test_what_expired_is_deleted_a_little_at_a_time(store: SqlStore) -> None:
    """Records with their steps, and notes; what lives stays."""
    # Given
    held = hold(store, FIRST)
    store.step(Renewal(KEY, held, LEASE_MS, KEEP_MS), "one", b"step")
    for number in range(4):
        store.abandon(f"old-{number}", FIRST.candidate(), 1)
    store.note(KEY, Note("note", Slip(answered=True), 0, 1))
    with store.engines.own.connect() as connection:
        connection.execute(records.update().where(records.c.record_key == KEY).values(expires_ms=2))
    store.abandon("new", FIRST.candidate(), HORIZON_MS)
    store.note(KEY, Note("new note", Slip(answered=True), 0, HORIZON_MS))
    while store.get("old-3") is not None:
        pass  # a millisecond
    # When
    first = store.purge(2)
    # Then
    assert first == 3
    assert (rows(store, records), rows(store, steps), rows(store, notes)) == (4, 0, 1)
    # When
    more = store.tend()
    # Then
    assert not more
    assert (rows(store, records), rows(store, notes)) == (1, 1)
    assert store.get("new") is not None


@ON_SERVERS
def test_purging_waits_for_no_lock(store: SqlStore, database: Database) -> None:
    """A row that somebody is writing is left for the next time."""
    # Given
    for key in (KEY, "other"):
        store.abandon(key, FIRST.candidate(), HORIZON_MS)
    with store.engines.own.connect() as connection:
        connection.execute(records.update().values(expires_ms=1))
    with locked(database):
        # Then
        assert store.purge() == 1
    assert store.purge() == 1


# --- the schema ---


def test_the_schema_is_what_alembic_would_make(store: SqlStore) -> None:
    """Alembic, given the metadata, finds nothing to change in what create_schema made."""
    with store.engines.sessions.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"include_name": lambda name, kind, _: kind != "table" or name in metadata.tables},
        )
        assert compare_metadata(context, metadata) == []


def test_the_schema_may_be_made_again(store: SqlStore) -> None:
    """What is there stays: init-db may be a part of every deploy."""
    # Given
    metadata.drop_all(store.engines.sessions)
    create_schema(store.engines.sessions)
    hold(store, FIRST)
    # When
    store.create_schema()
    # Then
    assert stored(store).owner == FIRST.owner


def ahead(engine: Engine, kinds: tuple[str, ...]) -> Engine:
    """Let somebody else send each statement of these kinds that ``engine`` is about to send."""
    other = create_engine(engine.url)

    def first(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.strip().startswith(kinds):
            with other.begin() as connection:
                connection.exec_driver_sql(statement)

    event.listen(engine, "before_cursor_execute", first)
    return other


@pytest.mark.parametrize(
    ("create", "tables"),
    [(create_schema, metadata), (create_outbox, outbox_metadata)],
    ids=["records", "outbox"],
)
@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(("CREATE TABLE",), id="it dies before the indexes"),
        pytest.param(("CREATE TABLE", "CREATE INDEX"), id="it is always first"),
    ],
)
def test_the_schema_may_be_made_by_two_at_once(
    store: SqlStore,
    database: Database,
    create: Callable[[Engine], None],
    tables: MetaData,
    kinds: tuple[str, ...],
) -> None:
    """Whoever comes second at each table and index gets them all, and no error."""
    # Given
    tables.drop_all(store.engines.sessions)
    engine = create_engine(database.url)
    other = ahead(engine, kinds)
    try:
        # When
        create(engine)
        # Then
        with other.connect() as connection:
            context = MigrationContext.configure(
                connection,
                opts={
                    "include_name": lambda name, kind, _: kind != "table" or name in tables.tables
                },
            )
            found = compare_metadata(context, tables)
            # PostgreSQL alone has comments made by statements of their own: with the table or not.
            assert [one for one in found if isinstance(one, tuple)] == []
    finally:
        engine.dispose()
        other.dispose()


def test_a_column_may_be_added_by_two_at_once(store: SqlStore, database: Database) -> None:
    """An upgrade may run on every host of a deploy."""
    # Given
    with store.engines.sessions.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {notes.name} DROP COLUMN {notes.c.slip.name}")
    engine = create_engine(database.url)
    other = ahead(engine, ("ALTER TABLE",))
    # When
    create_schema(engine)
    # Then
    engine.dispose()
    other.dispose()
    assert store.slip("anybody's") is None


def test_a_schema_that_can_not_be_made_says_so(store: SqlStore) -> None:
    """Not every error means that somebody else was first."""
    # Given
    metadata.drop_all(store.engines.sessions)

    def denied(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.strip().startswith("CREATE INDEX"):
            raise OperationalError(statement, None, Exception("denied"))

    event.listen(store.engines.sessions, "before_cursor_execute", denied)
    try:
        # Then
        with pytest.raises(StoreUnavailable, match="denied"):
            store.create_schema()
    finally:
        event.remove(store.engines.sessions, "before_cursor_execute", denied)
        store.create_schema()


def test_a_database_without_tables_says_what_to_run(store: SqlStore) -> None:
    """Tasks wait, and the log says how the tables are made."""
    # Given
    metadata.drop_all(store.engines.sessions)
    try:
        # Then
        with pytest.raises(StoreUnavailable, match="idempotency init-db") as caught:
            claim(store, FIRST)
        assert not caught.value.may_have_arrived
        with pytest.raises(StoreUnavailable, match="idempotency init-db"):
            store.ping()
        assert caught.value.to_run.endswith("idempotency init-db")
    finally:
        made = store.create_schema()
    # And who makes them is told which, and that there was nothing left to make
    assert list(made) == [table.name for table in metadata.sorted_tables]
    assert list(store.create_schema()) == []


def test_a_mistyped_path_makes_no_file(tmp_path: Path) -> None:
    """SQLite would make an empty database there; only who makes the tables may."""
    # Given
    path = tmp_path / "mistyped.db"
    store = SqlStore.from_url(f"sqlite:///{path}")
    # Then
    with pytest.raises(StoreUnavailable, match="has no such file") as caught:
        store.now_ms()
    assert caught.value.to_run.endswith("idempotency init-db")
    with pytest.raises(DBAPIError, match="there is no file"), store.engines.sessions.begin():
        pass
    assert not path.exists()
    # And
    store.create_schema()
    assert store.now_ms() > 0
    store.close()


# --- the line ---


@pytest.fixture
def line(database: Database) -> Iterator[tuple[Proxy, SqlStore]]:
    """A store whose connections go through a proxy."""
    emptied(SqlStore.from_url(database.url)).close()
    url = database.parsed()
    proxy = Proxy(str(url.host), int(url.port or 0))
    through = url.set(host="127.0.0.1", port=proxy.port)
    store = SqlStore.from_url(through.render_as_string(hide_password=False))
    yield proxy, store
    store.close()
    proxy.close()


@ON_SERVERS
def test_a_connection_that_was_cut_is_not_noticed(line: tuple[Proxy, SqlStore]) -> None:
    """The database was started anew: the next operation makes a new connection."""
    # Given
    proxy, store = line
    held = hold(store, FIRST)
    proxy.cut()
    # Then
    assert complete(store, held) == Recorded(held.token)


@ON_SERVERS
def test_a_database_that_is_away_is_unavailable(line: tuple[Proxy, SqlStore]) -> None:
    """It says so, without a password, and works again as soon as the database does."""
    # Given
    proxy, store = line
    held = hold(store, FIRST)
    proxy.refuse()
    # Then
    with pytest.raises(StoreUnavailable, match="does not answer"):
        complete(store, held)
    # When
    proxy.accept()
    # Then
    assert complete(store, held) == Recorded(held.token)


_SLEEP = {"postgresql": "SELECT pg_sleep(20)", "mysql": "SELECT sleep(20)"}


@ON_SERVERS
def test_a_database_that_hangs_hangs_nobody(database: Database) -> None:
    """After its timeout an answer is waited for no longer, and may have been on its way."""
    # Given
    store = SqlStore.from_url(database.url, {"timeout": 1})

    def is_connected() -> bool:
        with suppress(StoreUnavailable):
            store.rows.operate(lambda connection: connection.execute(text("SELECT 1")))
            return True
        return False

    eventually(is_connected, "it has a connection, for which a busy server may take its time")
    seen = []

    def work(connection: Connection) -> None:
        seen.append(connection)
        connection.execute(text(_SLEEP[database.kind]))

    # When
    with pytest.raises(StoreUnavailable) as caught:
        store.rows.operate(work)
    # Then
    assert caught.value.may_have_arrived
    assert len(seen) == 1
    store.close()


class _Interrupt(Exception):
    """What a soft time limit raises, wherever the process is."""


@ON_SERVERS
def test_an_answer_that_was_cut_off_is_not_read_by_the_next(
    store: SqlStore, database: Database
) -> None:
    """A soft time limit that comes while the database works closes that connection."""
    # Given
    hold(store, FIRST)

    def interrupted(*_: Any) -> None:
        raise _Interrupt

    before = signal.signal(signal.SIGALRM, interrupted)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    # When
    try:
        with pytest.raises(_Interrupt):
            store.rows.operate(lambda c: c.execute(text(_SLEEP[database.kind])))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    # Then
    assert stored(store).owner == FIRST.owner


def test_a_deadlock_is_tried_again(store: SqlStore) -> None:
    """The database undid it so that others could go on: nothing was lost."""
    # Given
    tries = []

    class Deadlock(Exception):
        sqlstate = "40P01"

    def work(_: Connection) -> str:
        tries.append(1)
        if len(tries) < 3:
            raise OperationalError("UPDATE", {}, Deadlock())
        return "done"

    # Then
    assert store.rows.operate(work) == "done"
    assert len(tries) == 3


def test_a_forked_child_shares_no_connection(store: SqlStore) -> None:
    """Parent and child go on, each with connections of its own."""
    # Given
    held = hold(store, FIRST)
    child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if isinstance(claim(store, SECOND), Busy) else 2
        finally:
            os._exit(status)
    # When
    answers = [renew(store, held) for _ in range(20)]
    _, status = os.waitpid(child, 0)
    # Then
    assert status == 0
    assert answers == [Recorded(held.token)] * 20


def test_threads_share_a_store(store: SqlStore) -> None:
    """More threads than connections: each is answered."""
    # Given
    messages = [replace(FIRST, task_id=f"task-{number}") for number in range(20)]
    failed = []

    def work(number: int) -> None:
        key = f"key-{number}"
        for _ in range(3):
            verdict = store.claim(key, Claim(messages[number].candidate(), LEASE_MS, KEEP_MS))
            if not isinstance(verdict, (Claimed, Busy)):
                failed.append(verdict)

    # When
    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Then
    assert not failed
    assert len(list(store.scan("key-*"))) == 20


def test_errors_of_every_database_are_understood(store: SqlStore) -> None:
    """A row that is there already, and a table that is not, are told apart."""
    # Given
    engine: Engine = store.engines.own
    hold(store, FIRST)
    # When
    with engine.connect() as connection, pytest.raises(Exception) as there:
        connection.execute(
            records.insert().from_select(
                [c.name for c in records.c], select(records).where(records.c.record_key == KEY)
            )
        )
    with engine.connect() as connection, pytest.raises(Exception) as missing:
        connection.execute(text("SELECT 1 FROM idempotency_nothing"))
    # Then
    assert trouble_of(there.value) is Trouble.THERE
    assert trouble_of(missing.value) is Trouble.NO_TABLES
    assert stored(store).state is State.RUNNING


def test_what_was_decided_too_long_ago_is_not_written(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement lay in a socket: when it runs at last, its caller has given it up."""
    # Given
    monkeypatch.setattr(deciding, "_FRESH_US", -1_000_000)
    monkeypatch.setattr(deciding, "_PATIENT_S", 0.05)
    # Then a new row is not written
    with pytest.raises(StoreUnavailable):
        claim(store, FIRST)
    assert store.get(KEY) is None
    # Nor one that is there
    with monkeypatch.context() as patch:
        patch.setattr(deciding, "_FRESH_US", 10_000_000)
        held = hold(store, FIRST)
    with pytest.raises(StoreUnavailable):
        complete(store, held)
    assert store.get(KEY) == held._replace(until_ms=stored(store).until_ms)
    # Nor a slip, new or there already
    with pytest.raises(StoreUnavailable):
        note(store, SECOND)
    assert store.slip(SECOND.slip_key) is None
    with monkeypatch.context() as patch:
        patch.setattr(deciding, "_FRESH_US", 10_000_000)
        note(store, SECOND)
    with pytest.raises(StoreUnavailable):
        note(store, SECOND, digests=b"anothers")
    slip = store.slip(SECOND.slip_key)
    assert slip is not None
    assert slip.digests == SECOND.digest


def test_a_slip_that_changed_after_it_was_read_is_read_again(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two copies that both find callbacks unsent: the second one to write finds them being sent."""
    # Given
    complete(store, hold(store, FIRST))
    note(store, SECOND)
    anew = replace(SECOND, publication=b"published anew", digest=b"anothers")
    real, between = transitions.claim, []

    def decide(*args: Any, **more: Any) -> Any:
        monkeypatch.undo()
        between.append(claim(store, anew, noted=True))
        return real(*args, **more)

    monkeypatch.setattr(transitions, "claim", decide)
    # When
    verdict = claim(store, anew, noted=True)
    # Then
    assert isinstance(between[0], Replay)
    assert isinstance(verdict, Busy)


def test_record_and_slip_are_written_together(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slip has changed since it was read: the record is not written without it."""
    # Given
    held = hold(store, FIRST)
    note(store, FIRST, succeeded=False)
    seen: list[Any] = []

    def changed(*args: Any) -> bool:
        monkeypatch.undo()
        seen.append(args)
        return False

    monkeypatch.setattr(SqlRows, "write_slip", changed)
    monkeypatch.setattr(deciding, "_PAUSES_S", ())
    # When
    answer = release_failed(store, held, answers=FIRST)
    # Then
    assert seen
    assert answer == Recorded(held.token + 1)
    slip = store.slip(FIRST.slip_key)
    assert slip is not None
    assert slip.outcome == FAILURE
