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
    RERUN,
    ConfigurationError,
    IdempotencyKeyMismatch,
    IdempotentTask,
    ResultNotKept,
)
from celery_idempotent.core.record import State
from celery_idempotent.ops.outcomes import kind_of
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


def test_a_success_leaves_a_free_key_with_its_outcome(
    guarded: Callable[..., Any], store: MovableStore
) -> None:
    """The record is released, however the run ended; its outcome says how."""

    # Given
    def fails(self: Any, order: int) -> str:
        raise ValueError("closed")

    task = guarded(second, fails)
    # When
    first = deliver(task, (1,))
    record = task.idempotency_record(1)
    # Then
    assert record is not None
    assert (record.state, kind_of(record.outcome)) == (State.RELEASED, "result")
    assert record.owner_id == first.message.task_id
    # When
    deliver(task, (1,))
    # Then
    failed = record_of(store)
    assert (failed.state, kind_of(failed.outcome)) == (State.RELEASED, "failure")


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


@pytest.mark.parametrize("window", [0, 60])
def test_a_call_that_was_cut_off_is_told_so_after_another_took_over_and_ended(
    guarded: Callable[..., Any], window: int
) -> None:
    """Its effect may have happened; with a window that is so where the other one failed."""
    # Given
    told: list[tuple[str, bool]] = []

    def tells(self: Any, order: int) -> str:
        told.append((self.request.id, self.idempotency.interrupted))
        return str(self.request.id)

    def is_cut_off(self: Any, order: int) -> str:
        tells(self, order)
        raise SystemExit

    def ends(self: Any, order: int) -> str:
        tells(self, order)
        if window:
            raise ValueError("no")
        return "ended"

    rest = [] if window else [tells]
    task = guarded(is_cut_off, ends, *rest, tells, idempotency_ttl=window)
    first = message_of(task, (1,), task_id="A")
    with pytest.raises(SystemExit):
        first.deliver()
    # When others take over and end
    deliver(task, (1,), task_id="B")
    if not window:
        deliver(task, (1,), task_id="C")
    # Then
    assert first.deliver(redelivered=True).get() == "A"
    others = [] if window else [("C", False)]
    assert told == [("A", False), ("B", True), *others, ("A", True)]


def test_a_call_is_reconciled_after_another_took_over_and_ended(
    guarded: Callable[..., Any],
) -> None:
    """Its body does not run again where its effect has happened."""
    # Given
    asked: list[int] = []

    def happened(order: int, amount: int = 0) -> Any:
        asked.append(order)
        return RERUN if len(asked) == 1 else "happened"

    def is_cut_off(self: Any, order: int) -> str:
        raise SystemExit

    task = guarded(is_cut_off, second, second, idempotency_reconcile=happened)
    first = message_of(task, (1,))
    with pytest.raises(SystemExit):
        first.deliver()
    # When
    assert deliver(task, (1,)).get() == "second"
    # Then
    assert first.deliver(redelivered=True).get() == "happened"
    assert asked == [1, 1]


@pytest.mark.parametrize("window", [0, 60])
@pytest.mark.parametrize("took_over", [False, True])
def test_a_call_that_another_took_over_runs_when_its_message_comes_again(
    guarded: Callable[..., Any], window: int, took_over: bool
) -> None:
    """After that one's end. Its key for others is the same, unless it had taken over itself.

    A window answers it instead. ``docs/keys.rst`` says so.
    """
    # Given
    keys: list[str] = []

    def pays(self: Any, order: int) -> str:
        keys.append(self.idempotency.key_for("bank"))
        return str(self.request.id)

    def is_cut_off(self: Any, order: int) -> str:
        pays(self, order)
        raise SystemExit

    ids = ["Z", "A"] if took_over else ["A"]
    task = guarded(*[is_cut_off] * len(ids), pays, pays, idempotency_ttl=window)
    cut_off = [message_of(task, (1,), task_id=task_id) for task_id in ids]
    for message in cut_off:
        with pytest.raises(SystemExit):
            message.deliver()
    # When
    assert deliver(task, (1,), task_id="B").get() == "B"
    before = list(keys)
    again = cut_off[-1].deliver(redelivered=True)
    # Then
    assert len(set(before)) == 1
    if window:
        assert (again.get(), keys) == ("B", before)
    else:
        assert again.get() == "A"
        assert (keys[-1] == before[-1]) is not took_over


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
