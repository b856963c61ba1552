"""The transaction of effects and completion: what commits, what doesn't, and what nobody knows."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import create_engine, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, registry

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.verdicts import Busy, Lost, Recorded, Renewal, Replay, Settle
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.stores.base import NotCommitted
from celery_idempotent.stores.sql.engines import Engines
from celery_idempotent.stores.sql.rows import SqlRows
from celery_idempotent.stores.sql.store import SqlStore
from celery_idempotent.stores.sql.transaction import SqlTransaction
from celery_idempotent.testing.contract.kit import (
    FIRST,
    HORIZON_MS,
    KEEP_MS,
    KEY,
    LEASE_MS,
    RESULT,
    SECOND,
    TTL_MS,
    claim,
    complete,
    hold,
    interrupt,
    renew,
    replace,
    stored,
)
from tests.support.bookings import Books, bookings
from tests.support.databases import ON_SERVERS, Database, emptied


class Booking:
    """A booking as an object, so that it is written when the session is flushed."""

    def __init__(self, **columns: Any) -> None:
        for name, value in columns.items():
            setattr(self, name, value)


registry().map_imperatively(Booking, bookings)


def book(session: Session, order: int = 1) -> None:
    session.execute(insert(bookings).values(order_id=order, task_id="task"))


def success(held: Record) -> Settle:
    ended = replace(held, state=State.SUCCEEDED, outcome=RESULT, process=b"", nonce=b"")
    return Settle(ended, 0, TTL_MS)


def begin(store: SqlStore) -> SqlTransaction:
    transaction = store.begin()
    assert isinstance(transaction, SqlTransaction)
    return transaction


def commit(transaction: SqlTransaction, held: Record) -> Recorded | Lost:
    transaction.flush()
    return transaction.commit(KEY, success(held))


def test_effect_and_outcome_come_together(store: SqlStore, books: Books) -> None:
    """Before the commit nobody sees the effect, and the key is running; then both are there."""
    # Given
    held = hold(store, FIRST)
    transaction = begin(store)
    book(transaction.session)
    assert books.count(1) == 0
    assert isinstance(claim(store, SECOND), Busy)
    # When
    answer = commit(transaction, held)
    # Then
    assert answer == Recorded(held.token)
    assert books.count(1) == 1
    assert isinstance(claim(store, SECOND), Replay)


def test_what_a_zombie_wrote_is_rolled_back(store: SqlStore, books: Books) -> None:
    """Its key was taken over: its commit is refused, and shows who has the key."""
    # Given
    zombie = hold(store, FIRST)
    interrupt(store, zombie)
    winner = hold(store, SECOND)
    # When
    transaction = begin(store)
    book(transaction.session)
    answer = commit(transaction, zombie)
    # Then
    assert answer == Lost(stored(store))
    assert books.count(1) == 0
    assert complete(store, winner) == Recorded(winner.token)


def test_a_rollback_leaves_the_key_as_it_was(store: SqlStore, books: Books) -> None:
    """Undone: no effect, no outcome, and the connection serves the next one."""
    # Given
    held = hold(store, FIRST)
    for _ in range(7):  # more than the pool has
        transaction = begin(store)
        book(transaction.session)
        # When
        transaction.rollback()
    # Then
    assert books.count(1) == 0
    assert stored(store).state is State.RUNNING
    assert complete(store, held) == Recorded(held.token)


def test_nothing_that_a_session_says_is_durable(store: SqlStore, books: Books) -> None:
    """Its own commit and rollback, and its context managers, stay inside of the transaction."""
    # Given
    hold(store, FIRST)
    transaction = begin(store)
    session = transaction.session
    # When
    book(session, 1)
    session.commit()
    with session.begin():
        book(session, 2)
    book(session, 3)
    session.rollback()
    # Then
    transaction.rollback()
    assert [books.count(order) for order in (1, 2, 3)] == [0, 0, 0]


def test_a_session_goes_on_after_an_error(store: SqlStore, books: Books) -> None:
    """What failed is rolled back by the session, and the rest is committed."""
    # Given
    held = hold(store, FIRST)
    transaction = begin(store)
    session = transaction.session
    book(session, 1)
    session.commit()
    with pytest.raises(IntegrityError):
        session.execute(insert(bookings).values(order_id=None, task_id="task"))
    session.rollback()
    book(session, 2)
    # When
    answer = commit(transaction, held)
    # Then
    assert answer == Recorded(held.token)
    assert [books.count(order) for order in (1, 2)] == [1, 1]


def test_what_the_database_refuses_is_raised(store: SqlStore, books: Books) -> None:
    """Nothing of it is left, and the key is still the run's, to be settled as a failure."""
    # Given
    held = hold(store, FIRST)
    transaction = begin(store)
    book(transaction.session)
    transaction.session.add(Booking(order_id=None, task_id="task"))
    # When
    with pytest.raises(IntegrityError):
        transaction.flush()
    # Then
    assert books.count(1) == 0
    assert stored(store).state is State.RUNNING
    assert complete(store, held) == Recorded(held.token)


@ON_SERVERS
def test_a_lease_may_be_renewed_while_the_body_writes(store: SqlStore, books: Books) -> None:
    """On a server the record's row is free until the end: the heartbeat goes on."""
    # Given
    held = hold(store, FIRST)
    transaction = begin(store)
    book(transaction.session)
    assert not transaction.is_lease
    # Then
    assert renew(store, held) == Recorded(held.token)
    assert transaction.lost(KEY, held.token) is None
    assert commit(transaction, held) == Recorded(held.token)


@ON_SERVERS
def test_heartbeats_and_commits_do_not_meet(store: SqlStore, books: Books) -> None:
    """However a renewal and a commit come together, the commit is accepted."""
    # Given
    done = threading.Event()
    current: list[Record] = []
    lost: list[Any] = []

    def beat() -> None:
        while not done.is_set():
            for held in current[-1:]:
                answer = renew(store, held)
                if isinstance(answer, Lost) and answer.record.token == held.token:
                    lost.append(answer)

    thread = threading.Thread(target=beat)
    thread.start()
    # When
    try:
        for _ in range(25):
            held = hold(store, FIRST)
            current.append(held)
            transaction = begin(store)
            book(transaction.session)
            assert commit(transaction, held) == Recorded(held.token)
            store.forget(KEY, KEEP_MS)
    finally:
        done.set()
        thread.join()
    # Then
    assert books.count(1) == 25
    assert not lost


def test_one_writer_needs_no_heartbeat(tmp_path: Any) -> None:
    """On SQLite the session's lock is the lease: from its first use nobody else can write."""
    # Given
    database = Database("sqlite", tmp_path)
    store = emptied(SqlStore.from_url(database.url))
    held = hold(store, FIRST)
    interrupt(store, held)
    # When
    transaction = begin(store)
    # Then
    assert transaction.is_lease
    verdict = claim(store, SECOND)
    assert isinstance(verdict, Busy)
    assert verdict.record.until_ms > verdict.now_ms
    assert commit(transaction, held) == Recorded(held.token)
    assert isinstance(claim(store, SECOND), Replay)


def test_record_and_slip_are_written_together_in_it(
    store: SqlStore, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slip has changed since it was read: the record is read again too, and both are there."""
    # Given
    held = hold(store, FIRST)
    transaction = begin(store)
    book(transaction.session)
    transaction.flush()
    slip = Slip(answered=True, token=held.token, outcome=RESULT)
    event = success(held)._replace(slip=slip, slip_key=FIRST.slip_key, slip_ttl_ms=HORIZON_MS)
    seen: list[Any] = []

    def changed(*args: Any) -> bool:
        monkeypatch.undo()
        seen.append(args)
        return False

    monkeypatch.setattr(SqlRows, "write_slip", changed)
    # When
    answer = transaction.commit(KEY, event)
    # Then
    assert seen
    assert answer == Recorded(held.token)
    assert store.slip(FIRST.slip_key) == slip
    assert stored(store).outcome == RESULT
    assert books.count(1) == 1


def test_a_step_joins_the_transaction(store: SqlStore, books: Books) -> None:
    """A step that is written in it is there if it commits, and only then."""
    # Given
    held = hold(store, FIRST)
    renewal = Renewal(KEY, held, LEASE_MS, KEEP_MS)
    for end in ("rollback", "commit"):
        transaction = begin(store)
        book(transaction.session)
        # When
        assert transaction.step(renewal, "one", b"step") == Recorded(held.token)
        # Then
        assert transaction.is_lease
        assert isinstance(claim(store, SECOND), Busy)
        if end == "rollback":
            transaction.rollback()
            assert store.steps(KEY) == {}
        else:
            assert commit(transaction, held) == Recorded(held.token)
            assert store.steps(KEY) == {"one": b"step"}


@ON_SERVERS
def test_it_is_read_committed_whatever_the_server_prefers(
    database: Database, store: SqlStore, books: Books
) -> None:
    """A session that has read before the lease was renewed can still settle its record."""
    # Given
    url = database.parsed()
    if database.kind == "postgresql":
        strict = "-c default_transaction_isolation=serializable"
        url = url.update_query_dict({"options": strict})
    store = SqlStore(Engines(url.render_as_string(hide_password=False)))
    held = hold(store, FIRST)
    transaction = begin(store)
    assert transaction.lost(KEY, held.token) is None
    # When
    renew(store, held)
    answer = commit(transaction, held)
    # Then
    assert answer == Recorded(held.token)
    store.close()


@ON_SERVERS
def test_another_transaction_that_has_the_row_is_not_waited_for_for_ever(
    store: SqlStore, books: Books
) -> None:
    """The row is somebody else's: nothing is committed, for certain, and the run begins anew."""
    # Given
    held = hold(store, FIRST)
    other = begin(store)
    other.step(Renewal(KEY, held, LEASE_MS, KEEP_MS), "one", b"step")
    transaction = begin(store)
    book(transaction.session)
    transaction.flush()
    # When
    with pytest.raises(NotCommitted) as caught:
        transaction.commit(KEY, success(held))
    # Then
    assert caught.value.sure
    other.rollback()
    assert books.count(1) == 0
    assert complete(store, held) == Recorded(held.token)


# --- the answer to COMMIT is lost ---


def lose_the_answer(store: SqlStore, monkeypatch: pytest.MonkeyPatch, how: str) -> list[Any]:
    """Have the next COMMIT arrive or not, and its connection be cut; gives what is kept open."""
    kept: list[Any] = []
    dialect = store.engines.sessions.dialect
    real = dialect.do_commit
    module: Any = dialect.loaded_dbapi

    def do_commit(connection: Any) -> None:
        monkeypatch.setattr(dialect, "do_commit", real)
        if how == "committed":
            real(connection)
        if how == "nobody knows":
            kept.append(connection.dbapi_connection)  # the server has not heard of it yet
        else:
            connection.dbapi_connection.close()
        raise module.OperationalError(2013, "server closed the connection")

    monkeypatch.setattr(dialect, "do_commit", do_commit)
    return kept


@ON_SERVERS
def test_a_lost_answer_of_a_commit_that_arrived(
    store: SqlStore, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token is read back: it is committed, and counts."""
    # Given
    held = hold(store, FIRST)
    transaction = begin(store)
    book(transaction.session)
    transaction.flush()
    lose_the_answer(store, monkeypatch, "committed")
    # When
    answer = transaction.commit(KEY, success(held))
    # Then
    assert answer == Recorded(held.token)
    assert books.count(1) == 1


@ON_SERVERS
def test_a_lost_answer_of_a_commit_that_did_not_arrive(
    store: SqlStore, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token is read back: nothing was committed, for certain."""
    # Given
    held = hold(store, FIRST)
    transaction = begin(store)
    book(transaction.session)
    transaction.flush()
    lose_the_answer(store, monkeypatch, "rolled back")
    # When
    with pytest.raises(NotCommitted) as caught:
        transaction.commit(KEY, success(held))
    # Then
    assert caught.value.sure
    assert books.count(1) == 0
    assert stored(store).state is State.RUNNING


@ON_SERVERS
def test_a_commit_of_which_nobody_knows(
    store: SqlStore, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the row is locked it may still be committed: the run says so, and nobody runs."""
    # Given
    held = hold(store, FIRST)
    transaction = begin(store)
    book(transaction.session)
    transaction.flush()
    monkeypatch.setattr("celery_idempotent.stores.deciding._ASK_S", 0.3)
    kept = lose_the_answer(store, monkeypatch, "nobody knows")
    # What is given up here is kept open, as by a server that is far away.
    dialect = store.engines.sessions.dialect
    monkeypatch.setattr(dialect, "is_disconnect", lambda *_: True)
    monkeypatch.setattr(dialect, "do_terminate", lambda _: None)
    # When
    with pytest.raises(NotCommitted) as caught:
        transaction.commit(KEY, success(held))
    # Then
    assert not caught.value.sure
    assert isinstance(claim(store, SECOND), Busy)
    # When it arrives after all
    kept[0].commit()
    kept[0].close()
    # Then
    assert isinstance(claim(store, SECOND), Replay)
    assert books.count(1) == 1


@ON_SERVERS
def test_a_stale_connection_is_not_noticed(store: SqlStore, database: Database) -> None:
    """The database was started anew since the last session: the next one has a new connection."""
    # Given
    begin(store).rollback()
    end = {
        "postgresql": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        "mysql": "SELECT id FROM information_schema.processlist "
        "WHERE db = database() AND id <> connection_id()",
    }[database.kind]
    engine = create_engine(database.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for (process,) in connection.exec_driver_sql(end).all():
            if database.kind == "mysql":
                connection.exec_driver_sql(f"KILL {process}")
    engine.dispose()
    # When
    held = hold(store, FIRST)
    transaction = begin(store)
    # Then
    assert commit(transaction, held) == Recorded(held.token)


def test_a_database_that_is_away_begins_nothing() -> None:
    """Opening a session says that the store is away, as every operation does."""
    # Given
    store = SqlStore.from_url("postgresql://nobody@127.0.0.1:1/nothing")
    # Then
    assert store.transactions is store
    with pytest.raises(StoreUnavailable, match="does not answer"):
        store.begin()


@ON_SERVERS
def test_a_deferred_constraint_is_the_bodys_failure(
    store: SqlStore, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database refuses at the COMMIT: the error is raised, and all of it is rolled back."""
    # Given
    held = hold(store, FIRST)
    transaction = begin(store)
    book(transaction.session)
    transaction.flush()
    dialect: Any = store.engines.sessions.dialect

    class Refused(dialect.loaded_dbapi.IntegrityError):
        sqlstate = "23503"

    def refuse(_: Any) -> None:
        monkeypatch.undo()
        raise Refused(1452, "a deferred constraint")

    monkeypatch.setattr(dialect, "do_commit", refuse)
    # When
    with pytest.raises(IntegrityError):
        transaction.commit(KEY, success(held))
    # Then
    assert books.count(1) == 0
    assert complete(store, held) == Recorded(held.token)
