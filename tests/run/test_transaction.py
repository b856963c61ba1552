"""``self.idempotency.session`` where no worker and no server is needed: eager and plain calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy import insert

from celery_idempotent import ConfigurationError, IdempotentTask, State, StoreUnavailable
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.base import NotCommitted
from celery_idempotent.stores.sql.store import SqlStore
from celery_idempotent.stores.sql.transaction import SqlTransaction
from celery_idempotent.testing.deliveries import deliver
from tests.support.bookings import Books, bookings


def _app() -> Celery:
    return Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)


class Shop:
    """An app whose store is an SQLite file, and a task that books in it."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        url = f"sqlite:///{directory / 'records.db'}"
        self.app = Celery(
            "shop", broker="memory://", backend="cache+memory://", set_as_current=False
        )
        self.app.conf.update(idempotency_store_url=url, task_always_eager=True, **settings)
        store = environment_of(self.app).store
        assert isinstance(store, SqlStore)
        store.create_schema()
        self.store = store
        self.books = Books(url)
        self.runs = 0

    def task(self, **options: Any) -> Any:
        options = {"base": IdempotentTask, "idempotency_key": "order:{order}", **options}

        @self.app.task(bind=True, shared=False, name="book", **options)
        def book(task: Any, order: int, fails: bool = False) -> Any:
            self.runs += 1
            session = task.idempotency.session
            assert task.idempotency.session is session
            session.execute(insert(bookings).values(order_id=order, task_id="task"))
            if task.idempotency.token is not None:
                task.idempotency.check()
                task.idempotency.step("one", lambda: "done")
            if fails:
                raise ValueError("no")
            return order

        return book


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path)
    yield made
    made.books.close()
    made.store.close()


def test_a_duplicate_is_answered_and_books_nothing(shop: Shop) -> None:
    """One run, one row, the same answer."""
    # Given
    book = shop.task()
    # Then
    assert [book.delay(1).get(), book.delay(1).get()] == [1, 1]
    assert shop.runs == shop.books.count(1) == 1


def test_a_failure_books_nothing_and_frees_the_key(shop: Shop) -> None:
    """The next call runs."""
    # Given
    book = shop.task()
    # When
    with pytest.raises(ValueError, match="no"):
        book.delay(1, fails=True).get()
    # Then
    assert shop.books.count(1) == 0
    assert book.idempotency_record(1).state is State.RELEASED
    assert book.delay(1).get() == 1
    assert shop.books.count(1) == 1


def test_an_attempt_that_goes_on_after_its_retry_books_nothing(shop: Shop) -> None:
    """The next attempt does it again, and books it once."""

    # Given
    @shop.app.task(bind=True, shared=False, name="book", base=IdempotentTask)
    def book(task: Any, order: int) -> int:
        session = task.idempotency.session
        session.execute(insert(bookings).values(order_id=order, task_id="task"))
        if not task.request.retries:
            task.retry(throw=False, countdown=1)
        return order

    # When
    first = deliver(book, (1,))
    between = shop.books.count(1)
    # Then
    assert (first.state, between) == ("RETRY", 0)
    assert first.published[-1].deliver().get() == 1
    assert shop.books.count(1) == 1


@pytest.mark.parametrize(
    "options",
    [{}, {"idempotency_mode": "off"}, {"idempotency_key": lambda order, fails: None}],
    ids=["direct", "off", "no key"],
)
def test_without_a_claim_it_is_a_plain_session(shop: Shop, options: dict[str, Any]) -> None:
    """Committed when the body returned, rolled back if it raised, and nothing is deduplicated."""
    # Given
    book = shop.task(**options)
    call = book if not options else lambda *args, **kwargs: book.delay(*args, **kwargs).get()
    # Then
    assert [call(1), call(1)] == [1, 1]
    assert shop.books.count(1) == 2
    with pytest.raises(ValueError, match="no"):
        call(2, fails=True)
    assert shop.books.count(2) == 0


def test_in_shadow_mode_it_is_a_plain_session(shop: Shop) -> None:
    """Every call runs and books; the kept record suppresses nothing."""
    # Given
    book = shop.task(idempotency_mode="shadow")
    # When
    first = book.delay(1)
    # Then the session was committed before the end was recorded: both write to one file
    record = book.idempotency_record(1)
    assert (first.get(), record.state, record.owner_id) == (1, State.SUCCEEDED, first.id)
    assert not [lease for lease in heartbeat.leases() if lease.store is shop.store]
    # Then
    assert book.delay(1).get() == 1
    assert shop.books.count(1) == 2


def test_in_shadow_mode_a_session_that_was_not_committed_is_no_success(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record says what became of the call."""
    # Given
    book = shop.task(idempotency_mode="shadow")

    def refuse(transaction: SqlTransaction) -> None:
        transaction.rollback()
        raise OSError("the disk is full")

    monkeypatch.setattr(SqlTransaction, "commit_alone", refuse)
    # When
    with pytest.raises(OSError, match="full"):
        book.delay(1).get()
    # Then
    assert book.idempotency_record(1).state is State.RELEASED
    assert shop.books.count(1) == 0


def test_a_session_needs_a_running_body(shop: Shop) -> None:
    """Outside of it nobody would commit."""
    with pytest.raises(ConfigurationError, match="only while the body"):
        _ = shop.task().idempotency.session


def test_a_session_is_over_with_its_body(shop: Shop) -> None:
    """A handler that comes after the body gets none: it would hold a connection for ever."""
    # Given
    seen: list[Any] = []

    class Task(IdempotentTask):
        abstract = True

        def on_success(self, *_: Any) -> None:
            with pytest.raises(ConfigurationError, match="only while the body") as caught:
                _ = self.idempotency.session
            seen.append(caught.value)

    book = shop.task(base=Task)
    # When
    book.delay(1).get()
    # Then
    assert len(seen) == 1
    assert shop.books.count(1) == 1


@pytest.mark.parametrize("directly", [False, True])
def test_a_store_that_is_no_database_has_none(directly: bool) -> None:
    """The error says what to set."""
    # Given
    app = _app()
    app.conf.update(idempotency_store_url="memory://inbox", task_always_eager=True)

    @app.task(bind=True, base=IdempotentTask, shared=False)
    def book(task: Any, order: int) -> None:
        _ = task.idempotency.session

    # Then
    with pytest.raises(ConfigurationError, match="idempotency_store_url = 'postgresql"):
        book(1) if directly else book.delay(1).get()


def test_what_was_not_committed_is_no_outcome(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rolled back for certain: the key is free at once (an eager call can't wait, and raises)."""
    # Given
    book = shop.task()

    def commit(transaction: Any, *_: Any) -> Any:
        transaction.rollback()
        raise NotCommitted("the line was cut")

    # When
    with monkeypatch.context() as patched:
        patched.setattr(SqlTransaction, "commit", commit)
        with pytest.raises(StoreUnavailable, match="the line was cut"):
            book.delay(1).get()
    # Then
    assert book.idempotency_record(1).state is State.RELEASED
    assert book.delay(1).get() == 1
    assert shop.books.count(1) == 1


def test_what_another_body_applied_and_was_not_committed_is_a_failure_of_that_body(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told that by the error, and does not begin anew behind its own back."""
    # Given
    book = shop.task()

    @shop.app.task(base=IdempotentTask, shared=False, name="outer")
    def outer(order: int) -> Any:
        return book.apply((order,)).get(disable_sync_subtasks=False)

    def commit(transaction: Any, *_: Any) -> Any:
        transaction.rollback()
        raise NotCommitted("the line was cut")

    monkeypatch.setattr(SqlTransaction, "commit", commit)
    # When
    ended = deliver(outer, (1,))
    # Then
    assert (ended.state, str(ended.result)) == ("FAILURE", "the line was cut")
    assert not ended.published


def test_a_time_limit_that_undid_the_commit_is_a_failure(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body is done but its effects are not: the outcome must not say that they are."""
    # Given
    book = shop.task()

    def commit(transaction: Any, *_: Any) -> Any:
        transaction.rollback()
        raise SoftTimeLimitExceeded

    # When
    with monkeypatch.context() as patched:
        patched.setattr(SqlTransaction, "commit", commit)
        with pytest.raises(SoftTimeLimitExceeded):
            book.delay(1).get()
    # Then
    assert book.idempotency_record(1).state is State.RELEASED
    assert shop.books.count(1) == 0


def test_no_lease_is_renewed_while_a_session_is_committed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its flush locks the row of the record: a renewal would wait, and hold up all others."""
    # Given a session that is no lease by itself
    real, renewed = SqlTransaction.commit, []

    def is_renewed() -> bool:
        return any("{pay:" in lease.key for lease in heartbeat.leases())

    def commit(transaction: Any, key: str, event: Any) -> Any:
        renewed.append(is_renewed())
        return real(transaction, key, event)

    @shop.app.task(
        bind=True, shared=False, name="pay", base=IdempotentTask, idempotency_key="{order}"
    )
    def book(task: Any, order: int) -> int:
        session = task.idempotency.session
        renewed.append(is_renewed())
        session.execute(insert(bookings).values(order_id=order, task_id="task"))
        return order

    monkeypatch.setattr(SqlTransaction, "is_lease", False)
    monkeypatch.setattr(SqlTransaction, "commit", commit)
    # When
    assert book.delay(1).get() == 1
    # Then it was renewed while the body ran, and not then
    assert renewed == [True, False]
