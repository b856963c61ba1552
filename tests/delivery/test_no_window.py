"""A window of 0: the key is free when its run ends, and who waited for the run gets its outcome."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore

from celery_idempotent import (
    ConfigurationError,
    IdempotencyKeyMismatch,
    IdempotentTask,
    ResultNotKept,
)
from celery_idempotent.core.record import State
from celery_idempotent.testing.deliveries import Delivered, deliver, message_of
from celery_idempotent.testing.memory import MovableStore
from tests.delivery.conftest import Body, record_of

LEASE_S = 30


@pytest.fixture
def app() -> Celery:
    app = Celery("no window", broker="memory://", backend="cache+memory://")
    app.conf.update(idempotency_lease=LEASE_S, idempotency_ttl=0)
    app.task = functools.partial(app.task, shared=False)
    return app


def meets(seen: list[Delivered], **message: Any) -> Body:
    """Run while a duplicate of the call is delivered."""

    def body(self: Any, order: int) -> str:
        seen.append(deliver(self, (order,), **message))
        return "first"

    return body


def second(self: Any, order: int) -> str:
    return "second"


def test_the_next_call_runs(guarded: Callable[..., Any], store: MovableStore) -> None:
    """It is no duplicate: the run before it has ended."""
    # Given
    task = guarded(lambda self, order: "first", second)
    # When
    first, later = deliver(task, (1,)), deliver(task, (1,))
    # Then
    assert (first.get(), later.get()) == ("first", "second")
    # And each call's leftover copies get its own answer
    assert (first.again().get(), later.again().get()) == ("first", "second")


def test_who_waited_gets_the_outcome(guarded: Callable[..., Any]) -> None:
    """Whoever has the key since; its own copies then get that again."""
    # Given
    seen: list[Delivered] = []
    task = guarded(meets(seen), second)
    # When
    deliver(task, (1,))
    next_call = deliver(task, (1,))
    waited = seen[0].published[0].deliver()
    # Then
    assert (next_call.get(), waited.get()) == ("second", "first")
    assert waited.again().get() == "first"


def test_who_waited_shares_a_failure(guarded: Callable[..., Any]) -> None:
    """A failure ends the run as a result does, also one that would be stored."""
    # Given
    seen: list[Delivered] = []

    def fails(self: Any, order: int) -> str:
        meets(seen)(self, order)
        raise ValueError("closed")

    task = guarded(fails, second, idempotency_store_failures=True)
    # When
    deliver(task, (1,))
    # Then
    with pytest.raises(ValueError, match="closed"):
        seen[0].published[0].deliver().get()
    assert deliver(task, (1,)).get() == "second"


def test_a_result_that_is_not_kept_is_told_to_who_waited(guarded: Callable[..., Any]) -> None:
    """The run succeeded, so that nobody who waited for it runs."""
    # Given
    seen: list[Delivered] = []
    task = guarded(meets(seen), second, idempotency_max_result_size=1)
    # When
    first = deliver(task, (1,))
    # Then
    assert first.get() == "first"
    with pytest.raises(ResultNotKept):
        seen[0].published[0].deliver().get()
    with pytest.raises(ResultNotKept):
        first.again().get()
    assert deliver(task, (1,)).get() == "second"


def test_waits_are_as_long_as_with_a_day(guarded: Callable[..., Any]) -> None:
    """They grow: the outcome is there for who waits, however long that is."""
    # Given
    seen: list[Delivered] = []

    def waits(self: Any, order: int) -> str:
        waiting = deliver(self, (order,))
        for _ in range(6):
            seen.append(waiting)
            waiting = waiting.published[0].deliver()
        return "first"

    task = guarded(waits)
    # When
    deliver(task, (1,))
    # Then
    delays = [one.published[0].countdown for one in seen]
    assert all(longer > shorter for shorter, longer in itertools.pairwise(delays))
    assert delays[-1] > 5


def test_other_arguments_are_refused_only_while_it_runs(app: Celery, store: MovableStore) -> None:
    """An explicit key says nothing of arguments once it is free."""
    # Given
    seen: list[Delivered] = []

    @app.task(base=IdempotentTask, bind=True)
    def pay(self: Any, amount: int) -> int:
        if amount == 1:
            seen.append(deliver(self, (2,), idempotency_key="k"))
        return amount

    # When
    deliver(pay, (1,), idempotency_key="k")
    # Then
    with pytest.raises(IdempotencyKeyMismatch):
        seen[0].get()
    assert deliver(pay, (3,), idempotency_key="k").get() == 3


def test_callbacks_are_sent_once(app: Celery, guarded: Callable[..., Any]) -> None:
    """The note of each call keeps its own callbacks, whoever has the key."""
    # Given
    app.task(name="tail")(print)
    task = guarded(lambda self, order: "first", second)
    # When
    first = deliver(task, (1,), link=app.signature("tail"))
    later = deliver(task, (1,), link=app.signature("tail"))
    # Then
    assert [len(one.published) for one in (first, later)] == [1, 1]
    assert [len(one.again().published) for one in (first, later)] == [0, 0]


@pytest.mark.parametrize("where", ["task", "app"])
def test_an_endless_window_is_refused(app: Celery, where: str) -> None:
    """None means "not set" for the other options; for this one it may be meant as "for ever"."""
    # Given
    options = {"idempotency_ttl": None} if where == "task" else {}
    if where == "app":
        app.conf.idempotency_ttl = None
    # Then
    with pytest.raises(ConfigurationError, match=r"idempotency_ttl is None.* or 0 to free the key"):

        @app.task(base=IdempotentTask, lazy=False, **options)
        def pay(amount: int) -> int:
            return amount


def test_a_task_that_sets_its_window_may_have_a_base_that_does_not(app: Celery) -> None:
    """The last word counts."""

    # Given
    class Base(IdempotentTask):
        abstract = True
        idempotency_ttl = None

    # When
    @app.task(base=Base, lazy=False, idempotency_ttl=60)
    def pay(amount: int) -> int:
        return amount

    # Then
    assert pay.idempotency_ttl == 60


# --- what is shown, and keys for others ----------------------------------------------------------


def test_a_success_is_shown_as_one(guarded: Callable[..., Any], store: MovableStore) -> None:
    """The record is released, and its status says how the run ended."""

    # Given
    def fails(self: Any, order: int) -> str:
        raise ValueError("closed")

    task = guarded(second, fails)
    # When
    first = deliver(task, (1,))
    record = task.idempotency_record(1)
    # Then
    assert record is not None
    assert (record.state, record.status) == (State.RELEASED, "succeeded")
    assert record.owner_id == first.message.task_id
    # When
    deliver(task, (1,))
    # Then
    assert record_of(store).status == "released"


def test_a_key_for_others_is_of_the_runs_since_the_last_end(
    guarded: Callable[..., Any], store: MovableStore
) -> None:
    """A takeover keeps that of the call it took over from; the next call has another."""
    # Given
    keys: list[str] = []
    stuck: list[Delivered] = []

    def asks(self: Any, order: int) -> str:
        keys.append(self.idempotency.key_for("bank"))
        return "done"

    def stalls(self: Any, order: int) -> str:
        asks(self, order)
        store.advance(LEASE_S + 1)
        stuck.append(deliver(self, (order,), task_id="takes over"))
        return "late"

    def retries(self: Any, order: int) -> str:
        asks(self, order)
        raise self.retry(countdown=1)

    task = guarded(stalls, retries, asks, asks)
    # When
    deliver(task, (1,), task_id="begins")
    (retried,) = stuck[0].published
    retried.deliver()
    deliver(task, (1,), task_id="tomorrow")
    # Then
    began, took_over, again, tomorrow = keys
    assert began == took_over == again != tomorrow


def test_a_handler_asks_for_the_key_of_its_run(
    guarded: Callable[..., Any], app: Celery, store: MovableStore
) -> None:
    """The run has ended by then, and it took over from another call."""
    # Given
    keys: list[str] = []

    class Base(IdempotentTask):
        abstract = True

        def on_success(self, *_: Any) -> None:
            keys.append(self.idempotency.key_for("bank"))

    @app.task(base=Base, bind=True)
    def pay(self: Any, order: int) -> str:
        if self.request.id == "begins":
            keys.append(self.idempotency.key_for("bank"))
            store.advance(LEASE_S + 1)
            deliver(self, (order,), task_id="takes over", link=app.signature("tail"))
        return "paid"

    app.task(name="tail")(print)
    # When
    deliver(pay, (1,), task_id="begins")
    # Then
    assert keys[0] == keys[1]


def test_steps_are_of_one_call(guarded: Callable[..., Any]) -> None:
    """What a run has finished is done again by the next call, and not by its own retry."""
    # Given
    done: list[str] = []

    def pays(self: Any, order: int) -> str:
        self.idempotency.step("pay", done.append, self.request.id)
        if self.request.id == "first" and not self.request.retries:
            raise self.retry(countdown=1)
        return "paid"

    task = guarded(pays, pays, pays)
    # When
    first = deliver(task, (1,), task_id="first")
    first.published[0].deliver()
    deliver(task, (1,), task_id="second")
    # Then
    assert done == ["first", "second"]


def test_an_ignored_call_frees_its_key(guarded: Callable[..., Any]) -> None:
    """As with a window, and its copies leave."""

    # Given
    def ignores(self: Any, order: int) -> str:
        raise Ignore

    task = guarded(ignores, second)
    # When
    first = deliver(task, (1,))
    # Then
    assert deliver(task, (1,)).get() == "second"
    assert first.again().state == "IGNORED"


def test_a_call_attaches_only_to_what_is_not_done(app: Celery, guarded: Callable[..., Any]) -> None:
    """The key is free: the next call is published."""
    # Given
    task = guarded(second, second, idempotency_on_enqueue="attach")
    deliver(task, (1,))
    # Then
    assert message_of(task, (1,)).task == task.name


def test_mode_shadow_reports_no_duplicate(guarded: Callable[..., Any], store: MovableStore) -> None:
    """What would run in its turn without shadow mode is no would-be duplicate."""
    # Given
    task = guarded(second, second, idempotency_mode="shadow")
    # When
    first, later = deliver(task, (1,)), deliver(task, (1,))
    # Then
    assert (first.get(), later.get()) == ("second", "second")
    assert record_of(store).owner_id == later.message.task_id
