"""The store django://: how it is named, and what a body's transaction does in a project's hands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_idempotent import ConfigurationError, IdempotentTask
from celery_idempotent.stores.urls import store_from_url
from tests.support.djangos import database_of, set_up

set_up()

# Django has to be set up first.
from django.db import IntegrityError, close_old_connections, transaction  # noqa: E402
from django.db.models import F  # noqa: E402

from celery_idempotent.django.store import DjangoStore  # noqa: E402
from tests.django_project.shop.models import Account  # noqa: E402


@pytest.fixture
def alias(tmp_path: Path) -> Iterator[str]:
    with database_of("sqlite", tmp_path) as made:
        Account.objects.using(made).create(name="ann")
        yield made


def make_task(alias: str, body: Any, **settings: Any) -> Any:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(task_always_eager=True, idempotency_store_url=f"django://{alias}", **settings)
    return app.task(
        base=IdempotentTask, bind=True, name="shop.task", shared=False, idempotency_key="{n}"
    )(body)


def balance(alias: str) -> int:
    found: int = Account.objects.using(alias).get(name="ann").balance
    return found


def pay(alias: str) -> None:
    Account.objects.using(alias).filter(name="ann").update(balance=F("balance") + 100)


def test_its_url_names_one_of_the_databases() -> None:
    """And nothing else."""
    store, other = store_from_url("django://"), store_from_url("django://other")
    assert isinstance(store, DjangoStore)
    assert isinstance(other, DjangoStore)
    assert (store.alias, other.alias) == ("default", "other")
    for url, options in (
        ("django://a/b", {}),
        ("django://?a=1", {}),
        ("django://", {"timeout": 1}),
        ("django://", {"atomic": "yes"}),
    ):
        with pytest.raises(ConfigurationError):
            store_from_url(url, options)
    with pytest.raises(ConfigurationError, match="nowhere"):
        store_from_url("django://nowhere").ping()


def test_a_body_runs_in_a_transaction(alias: str) -> None:
    """What it wrote is gone if it fails, and there once if it doesn't."""

    # Given
    def body(self: Any, n: int, fails: bool = False) -> None:
        assert transaction.get_connection(alias).in_atomic_block
        pay(alias)
        if fails:
            raise ValueError("declined")

    task = make_task(alias, body)
    # Then
    assert task.delay(1, fails=True).failed()
    assert balance(alias) == 0
    for _ in range(2):
        task.delay(1).get()
    assert balance(alias) == 100


def test_a_body_may_have_transactions_and_failures_of_its_own(alias: str) -> None:
    """An inner block that fails is undone, and the rest is committed."""

    def body(self: Any, n: int) -> str:
        pay(alias)
        try:
            with transaction.atomic(using=alias):
                pay(alias)
                Account.objects.using(alias).create(name="ann")
        except IntegrityError:
            return "once"
        return "twice"

    assert make_task(alias, body).delay(1).get() == "once"
    assert balance(alias) == 100


def test_a_hook_that_fails_after_the_commit_undoes_nothing(alias: str) -> None:
    """The body is done, and its key with it."""

    def hook() -> None:
        raise ZeroDivisionError

    def body(self: Any, n: int) -> str:
        pay(alias)
        transaction.on_commit(hook, using=alias)
        return "paid"

    task = make_task(alias, body)
    assert [task.delay(1).get() for _ in range(2)] == ["paid", "paid"]
    assert balance(alias) == 100


def test_without_atomic_a_body_may_ask_for_it(alias: str) -> None:
    """By using the session; one that doesn't runs as in plain Celery."""

    # Given
    def body(self: Any, n: int, asks: bool) -> None:
        if asks:
            assert self.idempotency.session.alias == alias
        assert transaction.get_connection(alias).in_atomic_block == asks
        pay(alias)
        raise ValueError("declined")

    task = make_task(alias, body, idempotency_store_options={"atomic": False})
    # Then
    assert task.delay(1, asks=True).failed()
    assert balance(alias) == 0
    assert task.delay(2, asks=False).failed()
    assert balance(alias) == 100


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_body_that_closes_its_connection_fails_and_is_told_why(
    alias: str, at_the_end: bool
) -> None:
    """Its transaction is gone, and it isn't run again for that; without atomic it may."""
    # Given
    runs: list[int] = []

    def body(self: Any, n: int) -> None:
        runs.append(n)
        pay(alias)
        close_old_connections()
        if not at_the_end:
            pay(alias)

    # When
    failed = make_task(alias, body).delay(1)
    # Then
    assert failed.failed()
    assert balance(alias) == 0
    assert runs == [1]
    if at_the_end:
        assert "close_old_connections" in str(failed.result)
        assert '"atomic": False' in str(failed.result)
    # When
    make_task(alias, body, idempotency_store_options={"atomic": False}).delay(2).get()
    # Then
    assert balance(alias) == (100 if at_the_end else 200)


def test_a_body_has_no_durable_block_unless_it_runs_without_atomic(alias: str) -> None:
    """Django refuses one within another block."""

    # Given
    def body(self: Any, n: int) -> None:
        with transaction.atomic(using=alias, durable=True):
            pay(alias)

    # Then
    refused = make_task(alias, body).delay(1)
    assert "durable" in str(refused.result)
    assert balance(alias) == 0
    make_task(alias, body, idempotency_store_options={"atomic": False}).delay(1).get()
    assert balance(alias) == 100


@pytest.mark.parametrize("atomic", [True, False])
def test_a_body_frees_its_key_early_only_without_atomic(alias: str, atomic: bool) -> None:
    """The key goes with the transaction around the body; the error says what to set."""

    # Given
    def body(self: Any, n: int) -> str:
        self.idempotency.release()
        if self.request.id == "first":
            self.apply((n,)).get()
        pay(alias)
        return "ran"

    task = make_task(alias, body, idempotency_ttl=0, idempotency_store_options={"atomic": atomic})
    # When
    answer = task.apply((1,), task_id="first")
    # Then
    if atomic:
        with pytest.raises(ConfigurationError, match=r'idempotency_store_options = {"atomic"'):
            answer.get()
    else:
        assert answer.get() == "ran"
    assert balance(alias) == (0 if atomic else 200)


def test_steps_are_a_part_of_it(alias: str) -> None:
    """A step that a failed run finished is undone with all else, and done again."""
    # Given
    done: list[int] = []

    def body(self: Any, n: int) -> int:
        result: int = self.idempotency.step("pay", lambda: done.append(1) or len(done))
        pay(alias)
        if len(done) == 1:
            raise ValueError("declined")
        return result

    task = make_task(alias, body)
    # Then
    assert task.delay(1).failed()
    assert task.delay(1).get() == 2
    assert balance(alias) == 100


def test_in_somebody_elses_transaction_it_is_a_part_of_that(alias: str) -> None:
    """A call that is run eagerly in a view that fails has not happened."""

    # Given
    def body(self: Any, n: int) -> None:
        self.idempotency.check()
        pay(alias)

    task = make_task(alias, body)

    @transaction.atomic(using=alias)
    def view() -> None:
        task.delay(1).get()
        raise ZeroDivisionError

    # When
    with pytest.raises(ZeroDivisionError):
        view()
    # Then
    assert balance(alias) == 0
    task.delay(1).get()
    assert balance(alias) == 100
