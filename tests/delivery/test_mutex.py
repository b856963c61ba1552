"""``idempotency_after_wait = "run"``: a mutex: every call runs, and never two at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from celery_idempotent import (
    ConfigurationError,
    IdempotencyInProgress,
    IdempotentTask,
    OutcomeUnknown,
)
from celery_idempotent.core.record import Label
from celery_idempotent.testing.deliveries import Delivered, deliver, message_of
from celery_idempotent.testing.memory import MovableStore
from tests.delivery.conftest import record_of

LEASE_S = 30


@pytest.fixture
def app() -> Celery:
    app = Celery("mutex", broker="memory://", backend="cache+memory://")
    app.conf.update(idempotency_lease=LEASE_S, idempotency_ttl=0, idempotency_after_wait="run")
    app.task = functools.partial(app.task, shared=False)
    return app


#: What was compensated, after so many times at which the process was killed.
undone: list[Any] = []
kills: list[bool] = []


@pytest.fixture(autouse=True)
def nothing_is_undone() -> None:
    undone.clear()


def second(self: Any, order: int) -> str:
    return "second"


def test_only_a_window_of_0_has_turns(app: Celery) -> None:
    """Within a window a duplicate is answered."""
    with pytest.raises(ConfigurationError, match=r"idempotency_ttl is 60: .* Set idempotency_ttl"):

        @app.task(base=IdempotentTask, lazy=False, idempotency_ttl=60)
        def pay(amount: int) -> int:
            return amount


def test_who_waited_runs(guarded: Callable[..., Any]) -> None:
    """In its turn; its leftover copies get its own outcome."""
    # Given
    seen: list[Delivered] = []

    def first(self: Any, order: int) -> str:
        seen.append(deliver(self, (order,)))
        return "first"

    task = guarded(first, second)
    # When
    done = deliver(task, (1,))
    waited = seen[0].published[0].deliver()
    # Then
    assert (seen[0].state, done.get(), waited.get()) == ("RETRY", "first", "second")
    assert (done.again().get(), waited.again().get()) == ("first", "second")


def test_arguments_are_never_checked(guarded: Callable[..., Any]) -> None:
    """The key names what is locked, and not what is done."""
    # Given
    seen: list[Delivered] = []

    def first(self: Any, order: int) -> str:
        seen.append(deliver(self, (1, 2), idempotency_key="k"))
        return "first"

    task = guarded(first, second)
    # When
    deliver(task, (1, 1), idempotency_key="k")
    # Then
    assert seen[0].published[0].deliver().get() == "second"


def crash(self: Any, order: int) -> Any:
    """Be killed: nothing is recorded, and the lease ends."""
    raise SystemExit


@pytest.mark.parametrize("reconcile", [None, lambda order, amount=0: "happened"])
def test_a_takeover_begins_clean(
    guarded: Callable[..., Any], store: MovableStore, reconcile: Any
) -> None:
    """What was cut off is another call's: nothing of it is asked for, told or taken up."""
    # Given
    done: list[str] = []
    asked: list[tuple[bool, int, str]] = []

    def steps(self: Any, order: int) -> str:
        context = self.idempotency
        asked.append((context.interrupted, context.attempt, context.key_for("bank")))
        context.step("withdraw", done.append, self.request.id)
        if len(asked) == 1:
            raise SystemExit
        return self.request.id

    task = guarded(steps, steps, steps, idempotency_reconcile=reconcile)
    # When
    with pytest.raises(SystemExit):
        deliver(task, (1,), task_id="A")
    other = deliver(task, (1,), task_id="B")
    # Then
    assert other.get() == "B"
    assert done == ["A", "B"]
    assert [it[:2] for it in asked] == [(False, 1), (False, 1)]
    assert asked[0][2] != asked[1][2]
    # When its message comes again
    again = deliver(task, (1,), task_id="A", redelivered=True)
    # Then its own step is not repeated, and its key for others is the same
    assert again.get() == ("A" if reconcile is None else "happened")
    assert done == ["A", "B"]
    assert reconcile is not None or asked[2][2] == asked[0][2]
    assert store.steps(*store.scan("*")).keys() <= {"withdraw"}


def test_its_own_takeover_is_interrupted(guarded: Callable[..., Any]) -> None:
    """A message that comes again after its run was cut off is told so."""
    # Given
    asked: list[bool] = []

    def tells(self: Any, order: int) -> str:
        asked.append(self.idempotency.interrupted)
        return "done"

    task = guarded(crash, crash, tells)
    # When
    with pytest.raises(SystemExit):
        deliver(task, (1,), task_id="A")
    with pytest.raises(SystemExit):
        deliver(task, (1,), task_id="B")
    deliver(task, (1,), task_id="B", redelivered=True)
    # Then
    assert asked == [True]


def test_a_compensation_is_finished_first(
    app: Celery, guarded: Callable[..., Any], store: MovableStore
) -> None:
    """Another call undoes what a run has left, then runs; the run's own call gets its failure."""

    # Given
    def fails(self: Any, order: int) -> str:
        self.idempotency.step("withdraw", lambda: 7, compensate=app.signature("undo"))
        raise ValueError("closed")

    @app.task(name="undo")
    def undo(it: Any) -> None:
        if kills:
            raise SystemExit(kills.pop())
        undone.append(it)

    app.finalize()
    task = guarded(fails, second)
    kills.append(True)
    with pytest.raises(SystemExit):
        deliver(task, (1,), task_id="A")
    # When
    other = deliver(task, (1,), task_id="B")
    # Then
    assert (other.state, undone) == ("RETRY", [7])
    assert other.published[0].deliver().get() == "second"
    # And
    with pytest.raises(ValueError, match="closed"):
        deliver(task, (1,), task_id="A", redelivered=True).get()


def test_a_failure_undoes_only_its_own_steps(
    app: Celery, guarded: Callable[..., Any], store: MovableStore
) -> None:
    """What a call that was cut off has done is undone, or gone on with, by that call alone."""

    # Given
    def cut_off(self: Any, order: int) -> None:
        self.idempotency.step("withdraw", lambda: 7, compensate=app.signature("undo"))
        raise SystemExit

    def fails(self: Any, order: int) -> None:
        raise ValueError("closed")

    def goes_on(self: Any, order: int) -> Any:
        return self.idempotency.step("withdraw", lambda: 8, compensate=app.signature("undo"))

    @app.task(name="undo")
    def undo(it: Any) -> None:
        undone.append(it)

    app.finalize()
    task = guarded(cut_off, fails, goes_on)
    with pytest.raises(SystemExit):
        deliver(task, (1,), task_id="A")
    # When
    other = deliver(task, (1,), task_id="B")
    # Then
    assert (other.state, undone) == ("FAILURE", [])
    assert deliver(task, (1,), task_id="A", redelivered=True).get() == 7


def test_a_run_that_lost_its_key_answers_its_own_call(
    guarded: Callable[..., Any], store: MovableStore
) -> None:
    """Each call has its own outcome: unrecorded, and its leftover copy gets it."""
    # Given
    seen: list[Delivered] = []

    def stalls(self: Any, order: int) -> str:
        store.advance(LEASE_S + 1)
        seen.append(deliver(self, (order,), task_id="B"))
        return "late"

    task = guarded(stalls, second)
    # When
    done = deliver(task, (1,), task_id="A")
    # Then
    assert (seen[0].get(), done.get()) == ("second", "late")
    record = task.idempotency_record(1)
    assert record is not None
    assert record.owner_id == "B"
    assert done.again().get() == "late"


def test_a_call_that_was_cut_off_is_told_so_though_others_had_their_turns(
    guarded: Callable[..., Any], store: MovableStore
) -> None:
    """When its message comes again: its effect may have happened. The others are not."""
    # Given
    told: dict[str, list[tuple[bool, int]]] = {}

    def tells(self: Any, order: int) -> str:
        seen = told.setdefault(self.request.id, [])
        seen.append((self.idempotency.interrupted, self.idempotency.attempt))
        if self.request.id == "A" and len(seen) < 3:
            raise SystemExit
        return str(self.request.id)

    task = guarded(*[tells] * 6)
    first = message_of(task, (1,), task_id="A")
    # When it is cut off twice, with the turns of others in between
    with pytest.raises(SystemExit):
        first.deliver()
    for task_id in "BC":
        deliver(task, (1,), task_id=task_id)
    with pytest.raises(SystemExit):
        first.deliver(redelivered=True)
    deliver(task, (1,), task_id="D")
    # Then
    assert first.deliver(redelivered=True).get() == "A"
    assert told["A"] == [(False, 1), (True, 2), (True, 3)]
    assert [told[it] for it in "BCD"] == [[(False, 1)]] * 3
    # And nothing of it is left
    assert Label.of(record_of(store)).cut_off == ""


def test_a_call_is_reconciled_though_others_had_their_turns(guarded: Callable[..., Any]) -> None:
    """Its body does not run again where its effect has happened."""
    # Given
    asked: list[int] = []

    def happened(order: int, amount: int = 0) -> str:
        asked.append(order)
        return "happened"

    task = guarded(crash, second, second, idempotency_reconcile=happened)
    first = message_of(task, (1,))
    with pytest.raises(SystemExit):
        first.deliver()
    # When
    assert deliver(task, (1,)).get() == "second"
    # Then
    assert asked == []
    assert first.deliver(redelivered=True).get() == "happened"
    assert asked == [1]


def test_a_call_that_kills_its_worker_each_time_stops_though_others_succeed(
    guarded: Callable[..., Any],
) -> None:
    """``idempotency_max_interruptions`` is counted for each call."""
    # Given
    task = guarded(crash, second, crash, second, crash, second, idempotency_max_interruptions=1)
    first = message_of(task, (1,))
    for redelivered in (False, True):
        with pytest.raises(SystemExit):
            first.deliver(redelivered=redelivered)
        assert deliver(task, (1,)).get() == "second"
    # Then
    with pytest.raises(OutcomeUnknown, match="cut off"):
        first.deliver(redelivered=True).get()


def test_a_wait_is_counted_over_the_turns_of_others(
    guarded: Callable[..., Any], store: MovableStore
) -> None:
    """``idempotency_wait_timeout`` holds, though each time another run has the key."""
    # Given
    waiting: list[Delivered] = []

    def holds(self: Any, order: int) -> str:
        store.advance(40)
        waiting.append(waiting[-1].published[0].deliver() if waiting else deliver(self, (order,)))
        return str(self.request.id)

    task = guarded(holds, holds, holds, holds, idempotency_wait_timeout=100, idempotency_lease=60)
    # When
    for _ in range(4):
        deliver(task, (1,))
    # Then
    assert [it.state for it in waiting] == ["RETRY", "RETRY", "RETRY", "FAILURE"]
    assert isinstance(waiting[-1].result, IdempotencyInProgress)
