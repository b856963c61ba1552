"""What a delivery does with what the store says, where another run has the key, or had it first."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid5

import pytest
from celery import Celery, Signature, group
from celery.backends.base import Backend
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded, TaskRevokedError
from kombu.exceptions import OperationalError

from celery_idempotent import (
    MESSAGE_ID,
    RERUN,
    ClaimLost,
    IdempotencyInProgress,
    IdempotentTask,
    State,
    observers,
)
from celery_idempotent.core.keys import Owner
from celery_idempotent.core.message import OWN, WaitState, own_header
from celery_idempotent.core.verdicts import Settle
from celery_idempotent.delivery import guard, outcome, waiting
from celery_idempotent.delivery.attempt import Attempt
from celery_idempotent.delivery.callbacks import _LINKS
from celery_idempotent.delivery.results import encode_failure
from celery_idempotent.errors import OutcomeUnknown, StoreUnavailable
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.testing.deliveries import (
    Delivered,
    Message,
    Results,
    deliver,
    message_of,
    results_of,
)
from celery_idempotent.testing.memory import MovableStore
from tests.delivery.conftest import Body, record_of

LEASE_S = 30


@pytest.fixture
def app() -> Celery:
    app = Celery("guards", broker="memory://", backend="cache+memory://")
    app.conf.update(idempotency_lease=LEASE_S)
    app.task = functools.partial(app.task, shared=False)
    return app


# --- runs that lost their key --------------------------------------------------------------------


def overtaken(
    store: MovableStore, seen: list[Delivered], then: Callable[[Any], Any], **message: Any
) -> Body:
    """Stall for longer than the lease, in which another delivery runs, and go on then."""

    def body(self: Any, order: int) -> Any:
        store.advance(LEASE_S + 1)
        seen.append(deliver(self, (order,), **message))
        return then(self)

    return body


def late(self: Any) -> str:
    return "late"


def fails(self: Any) -> str:
    raise ValueError("late")


def winner(self: Any, order: int) -> str:
    return "winner"


@pytest.mark.parametrize("then", [late, fails])
def test_a_late_end_is_not_the_callers(
    guarded: Callable[..., Any], store: MovableStore, then: Callable[[Any], Any]
) -> None:
    """Whatever a run became after another took over: its caller gets the winner's outcome."""
    # Given
    seen: list[Delivered] = []
    task = guarded(overtaken(store, seen, then), winner)
    # When
    done = deliver(task, (1,), task_id="zombie")
    # Then
    assert [one.get() for one in seen] == ["winner"]
    assert done.get() == "winner"
    assert record_of(store).owner_id == seen[0].message.task_id


@pytest.mark.parametrize("then", [late, fails])
def test_a_run_that_ends_while_the_store_is_away_leaves_an_answer_as_it_is(
    guarded: Callable[..., Any],
    store: MovableStore,
    monkeypatch: pytest.MonkeyPatch,
    then: Callable[[Any], Any],
) -> None:
    """A copy of its message has failed its call meanwhile; only the result backend can tell."""

    # Given
    def fails_first(self: Any, order: int) -> Any:
        raise ValueError("first")

    def goes_on(self: Any) -> Any:
        monkeypatch.setattr(store, "settle", away_for(99, store.settle))
        return then(self)

    seen: list[Delivered] = []
    task = guarded(overtaken(store, seen, goes_on, task_id="zombie"), fails_first)
    # When
    done = deliver(task, (1,), task_id="zombie")
    # Then
    assert [one.state for one in seen] == ["FAILURE"]
    assert done.state == "IGNORED"
    assert [message.task for message in done.published] == [task.name]


def test_a_run_that_lost_its_key_replaces_nothing(
    app: Celery, guarded: Callable[..., Any], store: MovableStore
) -> None:
    """What it would publish has its call's id, and would change the answer of that call."""
    # Given
    app.task(name="other")(print)
    seen: list[Delivered] = []

    def replaces(self: Any) -> Any:
        return self.replace(app.signature("other"))

    task = guarded(overtaken(store, seen, replaces), winner, lambda self, order: replaces(self))
    # When
    done = deliver(task, (1,), task_id="zombie")
    # Then
    assert done.get() == "winner"
    assert done.published == ()
    # And a run that holds its key is replaced
    assert [it.task for it in deliver(task, (2,)).published] == ["other"]


@pytest.mark.parametrize("then", [late, fails])
def test_a_run_that_lost_to_a_failure_stays_answered(
    guarded: Callable[..., Any], store: MovableStore, then: Callable[[Any], Any]
) -> None:
    """Its caller gets that failure, which frees the key: no leftover copy of its message runs."""

    # Given
    def fails_first(self: Any, order: int) -> Any:
        raise ValueError("first")

    seen: list[Delivered] = []
    task = guarded(overtaken(store, seen, then), fails_first, winner)
    done = deliver(task, (1,), task_id="zombie")
    # When
    again = done.message.deliver(redelivered=True)
    # Then
    for one in (done, again):
        with pytest.raises(ValueError, match="first"):
            one.get()


def test_a_run_whose_call_a_copy_has_answered_replaces_nothing(
    app: Celery, guarded: Callable[..., Any], store: MovableStore
) -> None:
    """A copy has told that nobody knows: what replaces the run would give another answer."""
    # Given
    app.task(name="other")(print)
    seen: list[Delivered] = []

    def replaces(self: Any, order: int) -> Any:
        store.advance(LEASE_S + 1)
        seen.append(message.deliver(redelivered=True))
        return self.replace(app.signature("other"))

    task = guarded(replaces, idempotency_on_interrupted="unknown")
    message = message_of(task, (1,), task_id="zombie")
    # When
    done = message.deliver()
    # Then
    assert [one.state for one in seen] == ["FAILURE"]
    assert [message.task for message in done.published] == [task.name]
    with pytest.raises(OutcomeUnknown):
        done.published[0].deliver().get()


@pytest.mark.parametrize("hears", ["by its clock", "too early", "by a renewal", "nothing"])
def test_a_run_whose_call_a_copy_has_answered_stores_no_retry(
    app: Celery,
    guarded: Callable[..., Any],
    store: MovableStore,
    monkeypatch: pytest.MonkeyPatch,
    hears: str,
) -> None:
    """A copy has told that nobody knows: a retry of the run that still lives hides nothing."""
    # Given
    results, states = results_of(app), []
    store_result = results.store_result

    def stored(task_id: str, result: Any, state: str, *args: Any, **more: Any) -> Any:
        states.append(state)
        return store_result(task_id, result, state, *args, **more)

    monkeypatch.setattr(results, "store_result", stored)

    def stalls(self: Any, order: int) -> Any:
        if hears == "nothing":
            raise self.retry(countdown=60)
        store.advance(LEASE_S + 1)
        assert isinstance(deliver(self, (order,)).result, OutcomeUnknown)
        if hears != "by a renewal":
            now = time.monotonic()  # only now: from then on the heartbeat renews
            monkeypatch.setattr(time, "monotonic", lambda: now + LEASE_S + 1)
        if hears == "too early":
            self.idempotency.check()
        copy.append(message.deliver(redelivered=True))
        if hears == "by a renewal":
            self.idempotency.check()
        states.clear()
        raise self.retry(countdown=60)

    copy: list[Delivered] = []
    task = guarded(stalls, idempotency_on_interrupted="unknown")
    message = message_of(task, (1,), task_id="t")
    # When
    done = message.deliver()
    # Then
    assert states == (["RETRY"] if hears == "nothing" else [])
    assert done.state == ("RETRY" if hears == "nothing" else "IGNORED")
    assert [one.state for one in copy] == ([] if hears == "nothing" else ["FAILURE"])
    assert all(isinstance(one.deliver().result, OutcomeUnknown) for one in done.published[1:])


@pytest.mark.parametrize("doubtful", [True, False])
def test_a_retry_that_could_not_be_recorded_hides_no_answer(
    guarded: Callable[..., Any],
    store: MovableStore,
    monkeypatch: pytest.MonkeyPatch,
    doubtful: bool,
) -> None:
    """RETRY may be stored over what its next attempt has answered: a copy comes and repeats it."""

    # Given a run that is retried, and stands still before that is stored
    def retries(self: Any, order: int) -> Any:
        raise self.retry(countdown=0)

    seen: list[Delivered] = []

    def stands_still(*args: Any, **more: Any) -> None:
        if doubtful:
            store.advance(LEASE_S + 1)
            seen.append(deliver(task, (1,), task_id="t", retries=1))
            now = time.monotonic()
            monkeypatch.setattr(time, "monotonic", lambda: now + LEASE_S + 1)
        monkeypatch.setattr(store, "settle", away_for(1, store.settle))
        said(*args, **more)

    said = outcome.say_retry
    monkeypatch.setattr(outcome, "say_retry", stands_still)
    task = guarded(retries, lambda self, order: fails(self))
    # When
    done = deliver(task, (1,), task_id="t")
    # Then
    again = [message for message in done.published if not message.retries]
    assert done.state == ("IGNORED" if doubtful else "RETRY")
    assert len(again) == doubtful
    assert [message.deliver().state for message in again] == [one.state for one in seen]


@pytest.mark.parametrize("then", [late, fails])
@pytest.mark.parametrize("away", [StoreUnavailable, SoftTimeLimitExceeded])
def test_a_run_that_knows_that_it_lost_its_key_answers_nobody(
    guarded: Callable[..., Any],
    store: MovableStore,
    monkeypatch: pytest.MonkeyPatch,
    then: Callable[[Any], Any],
    away: type[Exception],
) -> None:
    """A renewal told it; the store can't tell it at the end, and the call is still to be run."""

    # Given a run that was taken over by one that is retried, and has heard of it
    def stands_still(self: Any, order: int) -> Any:
        store.advance(LEASE_S + 1)
        seen.append(deliver(self, (order,), task_id="t"))
        with pytest.raises(ClaimLost):
            self.idempotency.check()
        monkeypatch.setattr(store, "settle", away_for(1, store.settle, away))
        return then(self)

    def retries(self: Any, order: int) -> Any:
        raise self.retry(countdown=0)

    seen: list[Delivered] = []
    task = guarded(stands_still, retries, winner)
    # When it ends while the store is away
    done = deliver(task, (1,), task_id="t")
    # Then
    assert done.state == "IGNORED"
    (copy,) = done.published
    ((retry,),) = [one.published for one in seen]
    assert [message.deliver().get() for message in (retry, copy)] == ["winner", "winner"]


@pytest.mark.parametrize("then", [late, fails])
def test_a_run_that_knows_that_it_lost_its_key_leaves_an_answer_as_it_is(
    app: Celery,
    guarded: Callable[..., Any],
    store: MovableStore,
    monkeypatch: pytest.MonkeyPatch,
    then: Callable[[Any], Any],
) -> None:
    """A copy shared the failure of who took over; the store is away, and can't tell that."""

    # Given
    def first(self: Any, order: int) -> Any:
        raise ValueError("first")

    def stands_still(self: Any, order: int) -> Any:
        store.advance(LEASE_S + 1)
        deliver(self, (order,))
        copy.append(message.deliver(redelivered=True))
        with pytest.raises(ClaimLost):
            self.idempotency.check()
        monkeypatch.setattr(store, "settle", away_for(1, store.settle))
        return then(self)

    copy: list[Delivered] = []
    task = guarded(stands_still, first, idempotency_store_failures=True)
    message = message_of(task, (1,), task_id="t", link_error=app.signature("failed"))
    # When
    done = message.deliver()
    # Then
    assert [one.state for one in copy] == ["FAILURE"]
    assert done.state == "IGNORED"
    assert results_of(app).get_state("t") == "FAILURE"


def test_a_run_that_can_not_tell_what_happened_leaves_an_answer_as_it_is(
    guarded: Callable[..., Any], store: MovableStore
) -> None:
    """A copy has told that nobody knows, in its own words: they stay."""

    # Given
    def stalls(order: int, amount: int = 0) -> Any:
        store.advance(LEASE_S + 1)
        copy.append(message.deliver(redelivered=True))
        raise RuntimeError("it can't be asked")

    def dies(self: Any, order: int) -> Any:
        raise SystemExit

    copy: list[Delivered] = []
    task = guarded(dies, idempotency_reconcile=stalls, idempotency_max_interruptions=1)
    message = message_of(task, (1,), task_id="t")
    with pytest.raises(SystemExit):
        message.deliver()
    # When
    done = message.deliver(redelivered=True)
    # Then
    assert isinstance(copy[0].result, OutcomeUnknown)
    assert done.state == "IGNORED"
    (left,) = done.published
    assert str(left.deliver().result) == str(copy[0].result)


@pytest.mark.parametrize("undone", [True, False])
def test_a_run_that_undoes_its_steps_leaves_an_answer_as_it_is(
    app: Celery,
    guarded: Callable[..., Any],
    store: MovableStore,
    monkeypatch: pytest.MonkeyPatch,
    undone: bool,
) -> None:
    """A copy has told that nobody knows: how the run failed, and what it undid, is not told."""
    # Given
    done_with = [] if undone else [1]

    @app.task(name="refund")
    def refund(charge: str) -> None:
        if done_with:
            raise ValueError(done_with.pop())

    def stalls(self: Any, order: int) -> Any:
        self.idempotency.step("charge", str, compensate=refund.s())
        store.advance(LEASE_S + 1)
        copy.append(message.deliver(redelivered=True))
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + LEASE_S + 1)
        raise ValueError("late")

    copy: list[Delivered] = []
    task = guarded(stalls, idempotency_on_interrupted="unknown")
    message = message_of(task, (1,), task_id="t")
    # When
    done = message.deliver()
    # Then
    assert isinstance(copy[0].result, OutcomeUnknown)
    assert results_of(app).get_state("t") == "FAILURE"
    if not undone:
        # When the message that was put back goes on with it
        assert done.state == "IGNORED"
        (left,) = done.published
        done = left.deliver()
    # Then
    assert done.state == "IGNORED"
    (left,) = done.published
    assert isinstance(left.deliver().result, OutcomeUnknown)


def test_a_compensation_says_that_it_goes_on_before_another_can_end_it(
    app: Celery, guarded: Callable[..., Any], store: MovableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on a copy can go on with it, and answer the call: RETRY would hide that."""
    # Given a run that stands still between its end and what it does next
    problems = [ValueError("no refund")]

    @app.task(name="refund")
    def refund(charge: str) -> None:
        if problems:
            raise problems.pop()

    def declines(self: Any, order: int) -> Any:
        self.idempotency.step("charge", str, compensate=refund.s())
        monkeypatch.setattr(store, "settle", settle)
        raise ValueError("declined")

    def settle(*args: Any) -> Any:
        answer = real(*args)
        if not problems and not said:
            said.append(results_of(app).get_state("t"))
            copy.append(message.deliver(redelivered=True))
        return answer

    real, said, copy = store.settle, [], []
    message = message_of(guarded(declines), (1,), task_id="t")
    # When
    done = message.deliver()
    # Then
    assert said == ["RETRY"]
    assert [str(one.result) for one in copy] == ["declined"]
    assert done.state == "RETRY"
    assert results_of(app).get_state("t") == "FAILURE"
    (left,) = done.published
    assert str(left.deliver().result) == "declined"


@pytest.mark.parametrize("then", [late, fails])
def test_a_run_that_lost_its_key_stays_answered_after_the_winners_window(
    guarded: Callable[..., Any], store: MovableStore, then: Callable[[Any], Any]
) -> None:
    """The record that answered its caller is over sooner than its leftover copies have come."""
    # Given
    seen: list[Delivered] = []
    task = guarded(overtaken(store, seen, then), winner, winner, idempotency_ttl=1)
    done = deliver(task, (1,), task_id="zombie")
    # When
    store.advance(2)
    again = done.message.deliver()
    # Then
    assert (done.get(), again.get()) == ("winner", "winner")
    assert next(store.scan("*"), None) is None


def ignores(self: Any) -> str:
    raise Ignore


@pytest.mark.parametrize(
    ("then", "state"), [(late, "SUCCESS"), (fails, "FAILURE"), (ignores, "IGNORED")]
)
@pytest.mark.parametrize("redelivered", [True, False])
def test_a_run_that_lost_to_one_without_an_outcome_stays_answered(
    guarded: Callable[..., Any],
    store: MovableStore,
    then: Callable[[Any], Any],
    state: str,
    redelivered: bool,
) -> None:
    """Its caller gets what it made, which no record keeps: no leftover copy of its message runs."""

    # Given
    def ignored(self: Any, order: int) -> Any:
        raise Ignore

    seen: list[Delivered] = []
    task = guarded(overtaken(store, seen, then), ignored, winner)
    done = deliver(task, (1,), task_id="zombie")
    # When
    again = done.message.deliver(redelivered=redelivered)
    # Then
    assert done.state == again.state == state
    assert state == "IGNORED" or str(done.result) == str(again.result) == "late"


@pytest.mark.parametrize(
    ("then", "state"), [(late, "SUCCESS"), (fails, "FAILURE"), (ignores, "IGNORED")]
)
def test_a_run_whose_key_was_forgotten_stays_answered(
    app: Celery, guarded: Callable[..., Any], then: Callable[[Any], Any], state: str
) -> None:
    """It was answered after that: no leftover copy runs, until the key is forgotten again."""
    # Given
    app.task(name="tail")(print)

    def forgotten(self: Any, order: int) -> Any:
        assert self.forget(order)
        return then(self)

    task = guarded(forgotten, winner)
    message = message_of(task, (1,), task_id="t", link=app.signature("tail"))
    # When
    done, again = message.deliver(), message.deliver(redelivered=True)
    # Then
    assert done.state == again.state == state
    assert len(done.published) == (then is late)
    assert not again.published
    # When
    assert task.forget(1)
    # Then
    assert message.deliver(redelivered=True).state == "SUCCESS"


@pytest.mark.parametrize("then", [late, fails])
def test_a_run_leaves_a_message_to_the_copy_that_took_over(
    guarded: Callable[..., Any], store: MovableStore, then: Callable[[Any], Any]
) -> None:
    """On Redis its acknowledgement takes the copy's message along: another has to be there."""
    # Given
    seen: list[Delivered] = []
    task = guarded(overtaken(store, seen, then, task_id="t"), winner)
    # When
    done = deliver(task, (1,), task_id="t")
    # Then
    assert done.state == "IGNORED"
    (left,) = done.published
    assert left.task_id == "t"
    assert left.deliver().get() == "winner"


def test_a_run_can_ask_whether_it_has_its_key(
    guarded: Callable[..., Any], store: MovableStore
) -> None:
    """Just before the effect: it has, and once it was taken over it has not."""
    # Given
    seen: list[Delivered] = []

    def asks(self: Any) -> str:
        with pytest.raises(ClaimLost):
            self.idempotency.check()
        return "told"

    def asks_in_time(self: Any, order: int) -> str:
        self.idempotency.check()
        return "winner"

    task = guarded(overtaken(store, seen, asks), asks_in_time)
    # Then
    assert deliver(task, (1,)).get() == "winner"


# --- deliveries that meet a run ------------------------------------------------------------------


def meets(seen: list[Delivered], **message: Any) -> Body:
    """Run while another message of the same call is delivered."""

    def body(self: Any, order: int) -> str:
        seen.append(deliver(self, (order,), **message))
        return "done"

    return body


def test_a_copy_of_a_running_message_is_put_back(guarded: Callable[..., Any]) -> None:
    """It touches nobody's state, and gets the outcome when it comes again."""
    # Given
    seen: list[Delivered] = []
    task = guarded(meets(seen, task_id="t"))
    # When
    deliver(task, (1,), task_id="t")
    # Then
    (copy,) = seen
    assert copy.state == "IGNORED"
    (left,) = copy.published
    assert left.task_id == "t"
    assert left.deliver().get() == "done"


@pytest.mark.parametrize("policy", ["raise", "drop"])
@pytest.mark.parametrize(
    ("message", "waits"),
    [({}, False), ({"retries": 1}, True), ({"link": True}, "drop")],
    ids=["a first delivery", "a retry", "one with a link"],
)
def test_who_does_not_wait(
    app: Celery, guarded: Callable[..., Any], policy: str, message: dict[str, Any], waits: object
) -> None:
    """Only a first delivery is refused or dropped, and none is dropped that somebody awaits."""
    # Given
    app.task(name="tail")(print)
    seen: list[Delivered] = []
    if message.get("link"):
        message = {"link": app.signature("tail")}
    task = guarded(meets(seen, **message), idempotency_on_running=policy)
    # When
    deliver(task, (1,))
    # Then
    (duplicate,) = seen
    if waits is True or waits == policy:
        assert duplicate.state == "RETRY"
        assert len(duplicate.published) == 1
    elif policy == "raise":
        with pytest.raises(IdempotencyInProgress):
            duplicate.get()
    else:
        assert (duplicate.state, duplicate.published) == ("REVOKED", ())
        first = task.idempotency_record(1).owner_id
        with pytest.raises(
            TaskRevokedError, match=rf"dropped: .*order:1 is being run by task {first}"
        ):
            duplicate.get()


@pytest.mark.parametrize(
    "options",
    [{"on_running": "drop"}, {"on_running": "raise"}, {"wait_timeout": 0}],
    ids=["drop", "raise", "no patience"],
)
@pytest.mark.parametrize("window", [0, 60])
def test_what_replaces_a_call_waits_for_its_end(
    app: Celery, guarded: Callable[..., Any], options: dict[str, Any], window: int
) -> None:
    """It comes while that body is still in a ``finally``, also when it has waited before."""
    # Given
    published: list[Message] = []
    seen: list[Delivered] = []

    def replaces(self: Any, order: int) -> Any:
        try:
            raise self.replace(self.s(order))
        finally:
            seen.append(published[-1].deliver())
            seen.append(seen[0].published[-1].deliver())

    options = {f"idempotency_{name}": value for name, value in options.items()}
    task = guarded(replaces, winner, idempotency_ttl=window, **options)
    # When
    message_of(task, (1,), task_id="t").deliver_into(published, redelivered=False)
    # Then
    assert [it.state for it in seen] == ["RETRY", "RETRY"]
    assert seen[1].published[-1].deliver().get() == "winner"
    assert results_of(app).get_state("t") == "SUCCESS"


def test_what_replaces_a_call_waits_for_no_other_one_without_end(
    guarded: Callable[..., Any],
) -> None:
    """Once it has found the run of another task id, ``idempotency_wait_timeout`` counts."""
    # Given
    published: list[Message] = []
    seen: list[Delivered] = []

    def replaces(self: Any, order: int) -> Any:
        raise self.replace(self.s(order))

    def holds(self: Any, order: int) -> str:
        seen.append(published[-1].deliver())
        seen.append(seen[0].published[-1].deliver())
        return "another's"

    task = guarded(replaces, holds, idempotency_wait_timeout=0)
    message_of(task, (1,), task_id="t").deliver_into(published, redelivered=False)
    # When
    deliver(task, (1,), task_id="another")
    # Then
    assert [it.state for it in seen] == ["RETRY", "FAILURE"]
    assert isinstance(seen[1].result, IdempotencyInProgress)


@pytest.mark.parametrize("away", [False, True], ids=["busy", "the store is away"])
def test_a_dropped_call_stays_revoked_though_its_copy_waits(
    app: Celery,
    guarded: Callable[..., Any],
    store: MovableStore,
    monkeypatch: pytest.MonkeyPatch,
    away: bool,
) -> None:
    """No RETRY is stored over it, for no slip keeps what the next delivery could store again."""
    # Given a copy that finds that it has to wait, and the message itself, which is dropped then
    seen: list[Delivered] = []
    claim, is_answered = store.claim, guard.is_answered

    def is_away(*_: Any) -> Any:
        raise StoreUnavailable("away")

    def before_it_is_dropped(answer: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*args: Any) -> Any:
            answered = answer(*args)
            monkeypatch.setattr(store, "claim", claim)
            monkeypatch.setattr(guard, "is_answered", is_answered)
            seen.append(message.deliver())
            return answered

        return ask

    def holds(self: Any, order: int) -> str:
        if away:
            monkeypatch.setattr(store, "claim", is_away)
            monkeypatch.setattr(guard, "is_answered", before_it_is_dropped(is_answered))
        else:
            monkeypatch.setattr(store, "claim", before_it_is_dropped(claim))
        seen.append(message.deliver(redelivered=not away))
        return "held"

    task = guarded(holds, idempotency_on_running="drop")
    message = message_of(task, (1,))
    # When
    deliver(task, (1,))
    # Then
    dropped, waits = seen
    assert dropped.state == "REVOKED"
    assert results_of(app).get_state(message.task_id) == "REVOKED"
    (again,) = waits.published
    assert again.deliver().state == "REVOKED"


def test_a_refused_call_stays_failed_though_its_copy_waits(
    app: Celery, guarded: Callable[..., Any], store: MovableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No RETRY is stored over the refusal, though the copy decided to wait before it."""
    # Given a copy that finds that it has to wait, and the message itself, which is refused then
    seen: list[Delivered] = []
    claim = store.claim

    def is_refused_then(*args: Any) -> Any:
        busy = claim(*args)
        monkeypatch.setattr(store, "claim", claim)
        seen.append(message.deliver())
        return busy

    def holds(self: Any, order: int) -> str:
        monkeypatch.setattr(store, "claim", is_refused_then)
        seen.append(message.deliver(redelivered=True))
        return "held"

    task = guarded(holds, idempotency_on_running="raise")
    message = message_of(task, (1,))
    # When
    deliver(task, (1,))
    # Then
    refused, waits = seen
    assert isinstance(refused.result, IdempotencyInProgress)
    assert results_of(app).get_state(message.task_id) == "FAILURE"
    (again,) = waits.published
    assert again.deliver().state == "FAILURE"


def test_a_call_whose_end_can_not_be_stored_is_not_dropped(
    guarded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result backend is away: it waits, so that its caller is told something."""

    # Given
    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(Backend, "mark_as_revoked", away)
    seen: list[Delivered] = []
    task = guarded(meets(seen), idempotency_on_running="drop")
    # When
    deliver(task, (1,))
    # Then
    assert seen[0].state == "RETRY"
    assert seen[0].published[0].deliver().state == "SUCCESS"


def test_expected_errors_are_one_line_in_the_log(
    app: Celery, guarded: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """What another call does is no fault of the task: no traceback, whatever else it throws."""
    # Given
    seen: list[Delivered] = []
    task = guarded(meets(seen), idempotency_on_running="raise", throws=(LookupError,))
    caplog.set_level("INFO", "celery.app.trace")

    @app.task(base=IdempotentTask)
    def pay(amount: int) -> int:
        return amount

    # When
    deliver(task, (1,))
    deliver(pay, (1,), idempotency_key="k")
    deliver(pay, (2,), idempotency_key="k")
    # Then
    told = [it for it in caplog.records if "raised expected" in it.getMessage()]
    assert len(told) == 2
    assert not any(it.exc_info for it in told)
    assert LookupError in task.throws


def test_a_message_that_has_waited_goes_on_waiting(guarded: Callable[..., Any]) -> None:
    """It was no first delivery when it came again."""
    # Given
    seen: list[Delivered] = []

    def body(self: Any, order: int) -> str:
        first = deliver(self, (order,), retries=1)
        (again,) = first.published
        assert again.retries == 1
        seen.append(again.deliver())
        return "done"

    task = guarded(body, idempotency_on_running="raise")
    # When
    deliver(task, (1,))
    # Then
    assert [one.state for one in seen] == ["RETRY"]


@pytest.mark.parametrize("how", ["waits", "retries"])
def test_a_caller_that_wants_a_result_is_given_it_by_the_next_message(
    guarded: Callable[..., Any], how: str
) -> None:
    """Of a task that ignores results: Celery before 5.7 made that the next message's choice."""
    # Given
    seen: list[Delivered] = []

    def body(self: Any, order: int) -> None:
        if how == "waits":
            seen.append(deliver(self, (order,), ignore_result=False))
        else:
            raise self.retry(countdown=1)

    # When
    first = deliver(guarded(body, ignore_result=True), (1,), ignore_result=False)
    # Then
    (again,) = (seen[-1] if seen else first).published
    assert again.options["ignore_result"] is False


@pytest.mark.parametrize("answered", [False, True])
def test_what_waits_says_so_before_it_may_be_answered(
    app: Celery, guarded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    """RETRY is stored before the message is put back: stored later, it could hide an answer."""
    # Given a worker that takes the message as soon as it is put back
    results, publish = results_of(app), waiting._publish

    def published(task: Any, signature: Any, body: Any) -> None:
        publish(task, signature, body)
        if answered:
            results.mark_as_failure(signature.id, ValueError("declined"))

    monkeypatch.setattr(waiting, "_publish", published)
    seen: list[Delivered] = []
    task = guarded(meets(seen, task_id="duplicate"))
    # When
    deliver(task, (1,))
    # Then
    assert [one.state for one in seen] == ["RETRY"]
    assert results.get_state("duplicate") == ("FAILURE" if answered else "RETRY")


def declines(self: Any, order: int) -> str:
    raise ValueError("declined")


def leaves(self: Any, order: int) -> str:
    raise Ignore


@pytest.mark.parametrize(
    ("body", "answer"), [(winner, ["SUCCESS"]), (declines, ["FAILURE"]), (leaves, [])]
)
def test_no_other_state_is_stored_once_a_call_is_answered(
    app: Celery,
    guarded: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    body: Body,
    answer: list[str],
) -> None:
    """No STARTED, no RETRY: whichever result backend it is, there is nothing it could overwrite."""
    # Given
    results, states = results_of(app), []
    store_result = results.store_result

    def stored(task_id: str, result: Any, state: str, *args: Any, **more: Any) -> Any:
        if task_id == "t":
            states.append(state)
        return store_result(task_id, result, state, *args, **more)

    monkeypatch.setattr(results, "store_result", stored)
    copies: list[Delivered] = []

    def met(self: Any, order: int) -> str:
        copies.append(message.deliver(redelivered=True))
        return body(self, order)

    task = guarded(met, winner, track_started=True)
    message = message_of(task, (1,), task_id="t")
    # When a copy comes during the run, one after it, and one when another has the key
    message.deliver()
    copies.append(message.deliver(redelivered=True))
    deliver(task, (1,))
    copies.append(message.deliver(redelivered=True))
    copies.append(copies[0].published[0].deliver())
    # Then
    assert states[: 1 + len(answer)] == ["STARTED", *answer]
    assert set(states[1:]) == set(answer)


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize(
    ("policy", "state"), [("retry", "RETRY"), ("raise", "FAILURE"), ("run", "SUCCESS")]
)
def test_in_an_outage_nothing_is_stored_over_an_answer(
    app: Celery,
    guarded: Callable[..., Any],
    store: MovableStore,
    monkeypatch: Any,
    policy: str,
    state: str,
    answered: bool,
) -> None:
    """The store can't say that the call was answered, but the result backend can."""
    # Given
    results = results_of(app)
    if answered:
        results.mark_as_failure("late", ValueError("declined"))

    def away(*_: Any) -> None:
        raise StoreUnavailable("away")

    task = guarded(winner, idempotency_on_store_error=policy)
    monkeypatch.setattr(store, "claim", away)
    # When a copy comes that its broker doesn't call one
    late_copy = deliver(task, (1,), task_id="late")
    # Then it waits
    assert late_copy.state == ("IGNORED" if answered else state)
    assert len(late_copy.published) == (answered or policy == "retry")
    assert results.get_state("late") == ("FAILURE" if answered else state)


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("stalled", [False, True])
def test_who_stood_still_stores_no_retry_over_an_answer(
    app: Celery,
    guarded: Callable[..., Any],
    store: MovableStore,
    monkeypatch: pytest.MonkeyPatch,
    answered: bool,
    stalled: bool,
) -> None:
    """Another run had the key; a copy has run since, and left an answer that nobody repeats."""
    # Given a delivery that stands still after the store's answer
    results, real, now = results_of(app), store.claim, time.perf_counter()

    def stands_still(*args: Any) -> Any:
        busy = real(*args)
        if answered:
            results.mark_as_failure("late", ValueError("rejected"))
        if stalled:
            monkeypatch.setattr(time, "perf_counter", lambda: now + LEASE_S)
        return busy

    def holds(self: Any, order: int) -> str:
        monkeypatch.setattr(store, "claim", stands_still)
        seen.append(deliver(self, (order,), task_id="late"))
        return "held"

    seen: list[Delivered] = []
    # When
    deliver(guarded(holds), (1,), task_id="first")
    # Then it waits; without a stall nobody asks the result backend
    (late_copy,) = seen
    assert len(late_copy.published) == 1
    assert late_copy.state == ("IGNORED" if answered and stalled else "RETRY")
    if stalled:
        assert results.get_state("late") == ("FAILURE" if answered else "RETRY")


@pytest.mark.parametrize("waited", [False, True])
def test_a_copy_that_answers_while_retry_is_stored_keeps_that_answer(
    app: Celery,
    guarded: Callable[..., Any],
    store: MovableStore,
    monkeypatch: pytest.MonkeyPatch,
    waited: bool,
) -> None:
    """Two copies of a message come within milliseconds: what one has answered, the other finds.

    One that has waited before stores RETRY no more.
    """
    # Given a run that has the key, and a message that waits for it
    results, real = results_of(app), Backend.mark_as_retry
    seen: list[Delivered] = []

    def holds(self: Any, order: int) -> Any:
        message = message_of(self, (order,), task_id="late")
        if waited:
            (message,) = message.deliver().published

        def fails_meanwhile(*args: Any, **kwargs: Any) -> Any:
            monkeypatch.undo()
            over(store)
            seen.append(message.deliver())
            return real(results, *args, **kwargs)

        monkeypatch.setattr(results, "mark_as_retry", fails_meanwhile)
        seen.append(message.deliver())
        monkeypatch.undo()
        return "late"

    # When a copy of it is answered with that run's failure, at that moment
    deliver(guarded(holds, idempotency_store_failures=True), (1,), task_id="first")
    # Then
    assert [one.state for one in seen] == (["RETRY"] if waited else ["FAILURE", "FAILURE"])
    assert results.get_state("late") == ("RETRY" if waited else "FAILURE")
    assert [message for one in seen[1:] for message in one.published] == []


def over(store: MovableStore) -> None:
    """End the run that has the only key, by a failure that is kept."""
    (key,) = store.scan("*")
    record = record_of(store)
    failure = encode_failure(Results(Celery()), ValueError("declined"), 1000)
    done = record._replace(state=State.FAILED, outcome=failure, nonce=b"", process=b"")
    store.settle(key, Settle(done, 0, 60_000))


def test_a_wait_is_asked_for_twice_and_only_the_first_time(
    guarded: Callable[..., Any], store: MovableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second look is for what a copy has answered while RETRY was stored."""
    # Given
    asked: list[int] = []

    def holds(self: Any, order: int) -> str:
        real = store.claim
        monkeypatch.setattr(store, "claim", lambda *args: [asked.append(1), real(*args)][1])
        (again,) = deliver(self, (order,), task_id="late").published
        asked.append(0)
        again.deliver()
        monkeypatch.undo()
        return "held"

    # When
    deliver(guarded(holds), (1,), task_id="first")
    # Then
    assert asked == [1, 1, 0, 1]


@pytest.mark.parametrize("policy", ["raise", "drop", "unknown"])
def test_who_stood_still_tells_no_error_that_it_made(
    guarded: Callable[..., Any],
    store: MovableStore,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
) -> None:
    """Its lease on telling it may be over, and a copy may run: it looks again."""
    # Given a delivery that stands still after the store's answer
    real, now = store.claim, time.perf_counter()

    def stands_still(*args: Any) -> Any:
        verdict = real(*args)
        monkeypatch.setattr(time, "perf_counter", lambda: now + LEASE_S)
        return verdict

    def holds(self: Any, order: int) -> str:
        if policy == "unknown":
            store.advance(LEASE_S + 1)
        monkeypatch.setattr(store, "claim", stands_still)
        seen.append(deliver(self, (order,)))
        return "held"

    seen: list[Delivered] = []
    name = "idempotency_on_interrupted" if policy == "unknown" else "idempotency_on_running"
    # When
    deliver(guarded(holds, **{name: policy}), (1,))
    # Then
    (late_copy,) = seen
    assert late_copy.state == "IGNORED"
    assert len(late_copy.published) == 1


def test_a_result_backend_that_is_away_keeps_nobody_from_waiting(
    app: Celery, guarded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it waits can't be stored; its message is put back all the same."""

    # Given
    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(results_of(app), "mark_as_retry", away)
    seen: list[Delivered] = []
    task = guarded(meets(seen))
    # When
    deliver(task, (1,))
    # Then
    (waits,) = seen
    assert waits.state == "RETRY"
    assert len(waits.published) == 1


def test_without_the_store_a_body_is_not_run(
    guarded: Callable[..., Any], store: MovableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits: the message is put back, and runs when the store is there again."""

    # Given
    def away(*_: Any) -> None:
        raise StoreUnavailable("away")

    task = guarded(winner)
    with monkeypatch.context() as patch:
        patch.setattr(store, "claim", away)
        # When
        waiting = deliver(task, (1,))
    # Then
    assert waiting.state == "RETRY"
    (again,) = waiting.published
    assert again.deliver().get() == "winner"


def test_an_outage_is_one_log_line_a_second(
    guarded: Callable[..., Any],
    store: MovableStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However many deliveries it meets; the next line says how many were left out."""

    # Given
    def away(*_: Any) -> None:
        raise StoreUnavailable("away")

    now = [0.0]
    for module, name in ((guard, "outage_lines"), (observers, "_store_away")):
        monkeypatch.setattr(module, name, observers.OncePerSecond(lambda: now[0]))
    monkeypatch.setattr(guard, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(store, "claim", away)
    task = guarded(winner)
    # When
    with caplog.at_level(logging.INFO, "celery_idempotent"):
        for second in range(3):
            now[0] = float(second)
            for number in range(20):
                assert deliver(task, (number,)).state == "RETRY"
    # Then
    lines = [it.getMessage() for it in caplog.records if "store away" in it.getMessage()]
    waits = [it.getMessage() for it in caplog.records if "waits, its body" in it.getMessage()]
    assert len(lines) == len(waits) == 3
    assert "more like this" not in waits[0] + lines[0]
    assert all("(and 19 more like this before it)" in text for text in (*waits[1:], *lines[1:]))


# --- callbacks -----------------------------------------------------------------------------------


def test_callbacks_are_sent_by_one_delivery(
    app: Celery,
    guarded: Callable[..., Any],
    store: MovableStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy that comes before they are noted waits; one that comes after sends nothing."""
    # Given
    app.task(name="tail")(print)
    link = app.signature("tail")
    between: list[Delivered] = []
    note = store.note

    def noted(*args: Any) -> None:
        monkeypatch.setattr(store, "note", note)
        between.append(deliver(task, (1,), task_id="t", link=link))
        note(*args)

    task = guarded(winner)
    monkeypatch.setattr(store, "note", noted)
    # When
    first = deliver(task, (1,), task_id="t", link=link)
    after = deliver(task, (1,), task_id="t", link=link)
    # Then
    assert [message.task for message in first.published] == ["tail"]
    (copy,) = between
    assert copy.state == "IGNORED"
    assert [message.task for message in copy.published] == [task.name]
    assert (after.get(), after.published) == ("winner", ())


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_task_id_that_is_published_again_sends_a_link_with_another_id(
    app: Celery, guarded: Callable[..., Any], forgotten: bool
) -> None:
    """Where a link's own key is ``MESSAGE_ID``, it would count as a copy of the first one."""
    # Given
    mailed: list[str] = []

    @app.task(base=IdempotentTask, idempotency_key=MESSAGE_ID)
    def mail(result: str, to: str) -> None:
        mailed.append(to)

    task = guarded(winner, winner)
    first = deliver(task, (1,), task_id="t", link=mail.s("first"))
    if forgotten:
        task.forget(1)
    # When
    second = deliver(task, (1,), task_id="t", link=mail.s("second"))
    for message in (*first.published, *second.published):
        message.deliver()
    # Then
    assert mailed == ["first", "second"]


def test_a_task_id_that_is_published_again_in_the_back_off_is_answered(
    app: Celery, guarded: Callable[..., Any]
) -> None:
    """It waits for the last attempt, and sends its own link; an old copy is ignored at once."""
    # Given
    app.task(name="tail")(print)
    seen: list[Delivered] = []

    def retries(self: Any, order: int) -> Any:
        raise self.retry(countdown=5)

    def ends(self: Any, order: int) -> str:
        seen.append(seen[0].published[-1].deliver())
        return "done"

    task = guarded(retries, ends)
    first = deliver(task, (1,), task_id="t", link=app.signature("tail", ("first",)))
    # When
    seen.append(deliver(task, (1,), task_id="t", link=app.signature("tail", ("second",))))
    old = first.again()
    retry = first.published[-1].deliver()
    # Then
    assert [it.state for it in (*seen, old)] == ["IGNORED"] * 3
    assert old.published == ()
    answered = seen[1].published[-1].deliver()
    assert answered.get() == retry.get() == "done"
    assert [it.args for it in (*retry.published, *answered.published)] == [
        ("done", "first"),
        ("done", "second"),
    ]


def test_who_is_published_again_does_not_wait_for_an_attempt_that_is_overdue(
    guarded: Callable[..., Any], store: MovableStore
) -> None:
    """The retry's message is lost: it would be waited for until the end of the window."""

    # Given
    def retries(self: Any, order: int) -> Any:
        raise self.retry(countdown=5)

    task = guarded(retries)
    deliver(task, (1,), task_id="t")
    # Then
    waiting = deliver(task, (1,), task_id="t")
    assert len(waiting.published) == 1
    # When
    store.advance(5.0 + 2 * LEASE_S)
    late = waiting.published[-1].deliver()
    # Then
    assert (late.state, late.published) == ("IGNORED", ())


@pytest.mark.parametrize("held", [False, True], ids=["free", "another has the key"])
def test_a_copy_of_a_call_without_an_outcome_waits_for_nothing(
    guarded: Callable[..., Any], held: bool
) -> None:
    """No broker marks what its producer has sent twice; the call has ended."""

    # Given
    def ignores(self: Any, order: int) -> None:
        raise Ignore

    seen: list[Delivered] = []

    def meets_copy(self: Any, order: int) -> str:
        seen.append(message.deliver())
        return "another's"

    task = guarded(ignores, meets_copy)
    message = message_of(task, (1,), task_id="t")
    message.deliver()
    # When
    if held:
        deliver(task, (1,))
    else:
        seen.append(message.deliver())
    # Then
    (copy,) = seen
    assert (copy.state, copy.published) == ("IGNORED", ())


def test_who_can_not_tell_whether_it_is_a_copy_waits(
    guarded: Callable[..., Any], store: MovableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is away at that moment."""

    # Given
    def retries(self: Any, order: int) -> Any:
        raise self.retry(countdown=5)

    def away(*_: Any) -> None:
        raise StoreUnavailable("away")

    message = message_of(guarded(retries), (1,), task_id="t")
    message.deliver()
    monkeypatch.setattr(store, "get", away)
    # Then
    assert len(message.deliver().published) == 1


def test_what_only_compensates_does_not_wait_for_an_attempt(
    guarded: Callable[..., Any], store: MovableStore
) -> None:
    """It would wait for as long as the outcome is kept: there is nothing to compensate."""

    # Given
    def retries(self: Any, order: int) -> Any:
        raise self.retry(countdown=5)

    task = guarded(retries)
    message = message_of(task, (1,), task_id="t")
    message.deliver()
    header = {**message.options["headers"][OWN], "compensate": True}
    again = replace(message, options={**message.options, "headers": {OWN: header}})
    # Then
    assert again.deliver().published == ()


@pytest.mark.parametrize("mode", ["enforce", "shadow", "off"])
@pytest.mark.parametrize(
    "waits", [WaitState(compensates_only=True), WaitState(count=1, to="another worker")]
)
def test_what_is_not_meant_for_this_worker_to_run_is_not_run(
    guarded: Callable[..., Any], mode: str, waits: WaitState
) -> None:
    """Whatever the mode: it was made to undo steps, or it is another worker's copy (Broadcast)."""
    # Given
    task = guarded(winner, idempotency_mode=mode)
    header = own_header("t", task._setup().scheme.derive((1,), {}), waits)
    # When
    message = message_of(task, (1,), task_id="t", headers={OWN: header})
    # Then
    assert message.deliver().state == "IGNORED"


@pytest.mark.parametrize("ours", [True, False])
def test_a_copy_sends_a_link_with_the_same_id(
    app: Celery,
    guarded: Callable[..., Any],
    store: MovableStore,
    monkeypatch: pytest.MonkeyPatch,
    ours: bool,
) -> None:
    """Its process died before it noted that it was sent; a message of another producer, too."""
    # Given
    app.task(name="tail")(print)
    links = group(app.signature("tail"), app.signature("tail"))
    message = message_of(guarded(winner), (1,), task_id="t", link=links)
    if not ours:
        message = replace(message, options={**message.options, "headers": {}})
    with monkeypatch.context() as patch:
        patch.setattr(store, "note", lambda *_: None)
        first = message.deliver()
    store.advance(LEASE_S + 1)
    # When
    copy = message.deliver(redelivered=True)
    # Then
    ids = [it.task_id for it in first.published]
    assert len(set(ids)) == 2
    assert [it.task_id for it in copy.published] == ids
    # An older release sends it again with the same id, too.
    assert (ids == [str(uuid5(_LINKS, f"t/0/tasks/{it}")) for it in range(2)]) is not ours


def test_an_outcome_that_is_recorded_late_leaves_its_callbacks_to_the_next_delivery(
    app: Celery, guarded: Callable[..., Any], store: MovableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Store and broker were away: what could not be sent does not wait for a delivery lease."""
    # Given
    app.task(name="tail")(print)
    link = app.signature("tail")
    task = guarded(winner)

    def store_away(*_: Any) -> None:
        raise StoreUnavailable("away")

    def broker_away(*_: Any, **__: Any) -> None:
        raise OperationalError("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "settle", store_away)
        patch.setattr(Signature, "apply_async", broker_away)
        first = deliver(task, (1,), task_id="t", link=link)
    assert (first.state, first.published) == ("REJECTED", ())
    # When
    assert heartbeat.flush(10)
    copy = first.again()
    # Then
    assert copy.get() == "winner"
    assert [message.task for message in copy.published] == ["tail"]


def test_an_answer_is_stored_again_where_a_late_retry_hid_it(
    app: Celery, guarded: Callable[..., Any], store: MovableStore
) -> None:
    """A run stands still once its retry is out, which runs and fails; then it stores RETRY."""
    # Given
    published: list[Message] = []

    def stands_still(self: Any, order: int) -> Any:
        try:
            raise self.retry(countdown=0)
        finally:
            store.advance(LEASE_S + 1)
            published[-1].deliver()

    task = guarded(stands_still, declines)
    message_of(task, (1,), task_id="t").deliver_into(published, redelivered=False)
    # When the message that it has put back comes
    assert [message.retries for message in published] == [1, 0]
    assert published[-1].deliver().state == "FAILURE"
    # Then
    assert results_of(app).get_state("t") == "FAILURE"


# --- attempts that go on after they have published a retry ----------------------------------------


def asks_and_returns(self: Any) -> str:
    self.retry(throw=False, countdown=1)
    return "attempt 0"


def asks_and_fails(self: Any) -> str:
    self.retry(throw=False, countdown=1)
    raise ValueError("attempt 0")


def asks_and_catches_it(self: Any) -> str:
    try:
        self.retry(countdown=1)
    except Exception:
        return "attempt 0"
    raise AssertionError


@pytest.mark.parametrize("asks", [asks_and_returns, asks_and_fails, asks_and_catches_it])
@pytest.mark.parametrize("window", [0, 60])
def test_a_retry_runs_though_its_attempt_went_on(
    app: Celery, guarded: Callable[..., Any], asks: Callable[[Any], str], window: int
) -> None:
    """Celery runs it, too, but the first result stays."""
    # Given
    app.task(name="tail")(print)
    link = app.signature("tail")
    ran: list[int] = []

    def body(self: Any, order: int) -> str:
        ran.append(self.request.retries)
        return f"attempt {self.request.retries}" if self.request.retries else asks(self)

    plain = app.task(bind=True, name="plain")(body)
    task = guarded(body, body, idempotency_ttl=window)
    answers: dict[str, list[object]] = {}
    links: dict[str, int] = {}
    # When
    for it in (plain, task):
        first = deliver(it, (1,), task_id=it.name, link=link)
        retry = next(message for message in first.published if message.retries)
        second = retry.deliver()
        answers[it.name] = [first.state, second.get(), results_of(app).get_state(it.name)]
        links[it.name] = [m.task for m in (*first.published, *second.published)].count("tail")
    # Then
    assert ran == [0, 1, 0, 1]
    fails = asks is asks_and_fails
    by_itself = ["FAILURE", "attempt 1"] if fails else ["SUCCESS", "attempt 0"]
    assert answers["plain"] == [*by_itself, "SUCCESS"]
    assert answers[task.name] == ["RETRY", "attempt 1", "SUCCESS"]
    assert links[task.name] == 1


@pytest.mark.parametrize("asks", [asks_and_returns, asks_and_fails, asks_and_catches_it])
def test_its_key_is_kept_until_the_retry(
    guarded: Callable[..., Any], store: MovableStore, asks: Callable[[Any], str]
) -> None:
    """A duplicate waits for it, and gets its answer."""
    # Given
    task = guarded(lambda self, order: asks(self), winner)
    first = deliver(task, (1,))
    assert record_of(store).state is State.RETRYING
    # When
    duplicate = deliver(task, (1,))
    assert first.published[-1].deliver().get() == "winner"
    # Then
    assert duplicate.state == "RETRY"
    assert duplicate.published[-1].deliver().get() == "winner"


@pytest.mark.parametrize("asks", [asks_and_returns, asks_and_fails])
@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_in_other_modes_it_is_as_in_celery(
    app: Celery,
    guarded: Callable[..., Any],
    store: MovableStore,
    asks: Callable[[Any], str],
    mode: str,
) -> None:
    """In shadow mode the record says that a retry is to come, so that it is reported as no copy."""
    # Given
    app.conf.idempotency_mode = mode
    task = guarded(lambda self, order: asks(self), winner)
    # When
    first = deliver(task, (1,), task_id="t")
    # Then
    assert first.state == ("SUCCESS" if asks is asks_and_returns else "FAILURE")
    assert mode == "off" or record_of(store).state is State.RETRYING
    assert first.published[-1].deliver().state == "SUCCESS"
    assert mode == "off" or record_of(store).state is State.SUCCEEDED


def test_a_retry_that_was_not_published_answers_nothing(guarded: Callable[..., Any]) -> None:
    """There are no retries left: the body catches the error, and its result is the answer."""

    # Given
    def asks_in_vain(self: Any, order: int) -> str:
        with pytest.raises(self.MaxRetriesExceededError):
            self.retry(max_retries=0)
        return "given up"

    # Then
    assert deliver(guarded(asks_in_vain), (1,)).get() == "given up"


def test_who_leaves_on_purpose_after_a_retry_leaves(
    guarded: Callable[..., Any], store: MovableStore
) -> None:
    """``Ignore`` stores nothing, and the retry runs."""

    # Given
    def asks_and_leaves(self: Any, order: int) -> str:
        self.retry(throw=False, countdown=1)
        raise Ignore

    task = guarded(asks_and_leaves, winner)
    # When
    first = deliver(task, (1,))
    # Then
    assert first.state == "IGNORED"
    assert first.published[-1].deliver().get() == "winner"


def test_who_is_cut_off_after_a_retry_is_cut_off(
    guarded: Callable[..., Any], store: MovableStore
) -> None:
    """A soft time limit where the policy is "unknown"; the retry is the call's next attempt."""

    # Given
    def asks_and_hangs(self: Any, order: int) -> str:
        self.retry(throw=False, countdown=1)
        raise SoftTimeLimitExceeded

    task = guarded(asks_and_hangs, winner, idempotency_on_interrupted="unknown")
    # When
    first = deliver(task, (1,))
    # Then
    assert first.state == "FAILURE"
    assert record_of(store).state is State.RUNNING
    assert first.published[-1].deliver().get() == "winner"


@pytest.mark.parametrize("happened", [None, lambda order, amount: RERUN], ids=["none", "reconcile"])
def test_a_call_that_a_soft_time_limit_has_failed_stays_failed(
    guarded: Callable[..., Any], store: MovableStore, happened: Any
) -> None:
    """Where the policy is "unknown" its run was cut off, for others: its copies get its failure."""

    # Given
    def hangs(self: Any, order: int) -> str:
        raise SoftTimeLimitExceeded

    task = guarded(
        hangs, winner, idempotency_on_interrupted="unknown", idempotency_reconcile=happened
    )
    message = message_of(task, (1,), link_error=task.app.signature("errback"))
    first = message.deliver()
    assert record_of(store).state is State.RUNNING
    # When
    copies = [message.deliver(redelivered=True) for _ in range(2)]
    # Then
    assert [one.state for one in (first, *copies)] == ["FAILURE"] * 3
    assert {type(one.result) for one in (first, *copies)} == {SoftTimeLimitExceeded}
    assert [len(one.published) for one in (first, *copies)] == [1, 0, 0]
    # When another call comes
    other = deliver(task, (1,))
    # Then
    assert other.get() == "winner" if happened else isinstance(other.result, OutcomeUnknown)
    assert isinstance(message.deliver(redelivered=True).result, SoftTimeLimitExceeded)


def test_a_soft_time_limit_after_a_copy_took_over_answers_nothing(
    guarded: Callable[..., Any], store: MovableStore
) -> None:
    """The copy has answered the call: what is told later is no answer, and is kept nowhere."""

    # Given
    def meets_its_limit(self: Any) -> str:
        raise SoftTimeLimitExceeded

    seen: list[Delivered] = []
    task = guarded(
        overtaken(store, seen, meets_its_limit, task_id="limited"),
        winner,
        idempotency_on_interrupted="unknown",
        idempotency_reconcile=lambda order, amount: RERUN,
    )
    # When
    first = deliver(task, (1,), task_id="limited")
    # Then
    assert seen[0].get() == "winner"
    (key,) = store.scan("*")
    slip = store.slip(Owner("limited").slip_key(key))
    assert slip is None or b"SoftTimeLimit" not in slip.outcome
    assert first.message.deliver(redelivered=True).get() == "winner"


# --- what the store could not take at once -------------------------------------------------------


def away_for(
    times: int, real: Callable[..., Any], error: type[Exception] = StoreUnavailable
) -> Callable[..., Any]:
    """Be away so often, then do it."""
    left = [None] * times

    def asked(*args: Any) -> Any:
        if left:
            left.pop()
            raise error("away")
        return real(*args)

    return asked


def test_a_note_is_told_until_the_store_takes_it(
    app: Celery, guarded: Callable[..., Any], store: MovableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callbacks went out while the store was away: a copy that comes later sends none."""
    # Given
    app.task(name="tail")(print)
    link = app.signature("tail")
    task = guarded(winner)
    monkeypatch.setattr(store, "note", away_for(2, store.note))
    first = deliver(task, (1,), task_id="t", link=link)
    assert [message.task for message in first.published] == ["tail"]
    # When
    assert heartbeat.flush(10)
    # Then
    copy = first.again()
    assert (copy.get(), copy.published) == ("winner", ())


def test_an_end_is_told_until_the_store_takes_it(
    guarded: Callable[..., Any], store: MovableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is away at the end, and when it is told again: a duplicate runs nothing."""
    # Given
    task = guarded(winner)
    monkeypatch.setattr(store, "settle", away_for(2, store.settle))
    first = deliver(task, (1,))
    # When
    assert heartbeat.flush(10)
    # Then
    assert first.get() == deliver(task, (1,)).get() == "winner"


# --- whose failure is shared ---------------------------------------------------------------------


def test_who_waits_shares_the_failure_of_the_run_it_found_last(guarded: Callable[..., Any]) -> None:
    """The run it found first is over, and another one has had the key since."""
    # Given a call that found one run, and came again when another one had the key
    seen: list[Delivered] = []

    def meets_and_ends_without_an_outcome(self: Any, order: int) -> Any:
        seen.append(deliver(self, (order,), task_id="waits"))
        raise Ignore

    def meets_it_again_and_fails(self: Any, order: int) -> Any:
        seen.append(seen[0].published[0].deliver())
        raise ValueError("the second")

    task = guarded(meets_and_ends_without_an_outcome, meets_it_again_and_fails)
    deliver(task, (1,), task_id="first")
    deliver(task, (1,), task_id="second")
    assert [one.state for one in seen] == ["RETRY", "RETRY"]
    # When it comes once more
    done = seen[1].published[0].deliver()
    # Then it runs nothing: it gets that run's failure
    assert done.state == "FAILURE"
    assert str(done.result) == "the second"


def test_who_shares_a_failure_sends_its_errback_once(
    guarded: Callable[..., Any], store: MovableStore
) -> None:
    """That it was sent is noted, though no record keeps the failure for it."""
    # Given a call that waited for a run, which failed
    seen: list[Delivered] = []

    def meets_and_fails(self: Any, order: int) -> Any:
        seen.append(deliver(self, (order,), link_error=self.app.signature("errback")))
        raise ValueError("declined")

    deliver(guarded(meets_and_fails), (1,))
    told = seen[0].published[0].deliver()
    assert len(told.published) == 1
    # When a copy of it comes, and nobody is at it any more
    store.advance(2 * LEASE_S)
    copy = told.again()
    # Then
    assert str(copy.result) == str(told.result) == "declined"
    assert not copy.published


# --- answers that stay, whoever has the key since -------------------------------------------------


def declines(self: Any, order: int) -> str:
    raise ValueError("declined")


@pytest.mark.parametrize("why", [Ignore("no"), Reject("no")], ids=["ignored", "rejected"])
def test_a_copy_of_a_call_without_an_outcome_runs_nothing(
    guarded: Callable[..., Any], why: Exception
) -> None:
    """Ignore and Reject are the last word; the key is free for other calls."""

    # Given
    def leaves(self: Any, order: int) -> str:
        raise why

    task = guarded(leaves, winner)
    first = deliver(task, (1,))
    # Then
    assert first.again().state == "IGNORED"
    assert deliver(task, (1,)).get() == "winner"
    assert first.again().state == "IGNORED"


def test_a_message_that_its_body_put_back_runs_again(guarded: Callable[..., Any]) -> None:
    """Reject with requeue is no answer."""

    # Given
    def puts_back(self: Any, order: int) -> str:
        raise Reject("later", requeue=True)

    task = guarded(puts_back, winner)
    # Then
    assert deliver(task, (1,)).again().get() == "winner"


def test_a_failed_call_keeps_its_failure(guarded: Callable[..., Any]) -> None:
    """Another call has run since: the leftover copy is answered as the first was."""
    # Given
    task = guarded(declines, winner)
    first = deliver(task, (1,))
    assert deliver(task, (1,)).get() == "winner"
    # Then
    assert str(first.again().result) == "declined"


def test_a_copy_of_an_earlier_attempt_is_a_copy(guarded: Callable[..., Any]) -> None:
    """A retry is of the same publication: what ends it ends the call."""

    # Given
    def again(self: Any, order: int) -> str:
        raise self.retry(countdown=1)

    def leaves(self: Any, order: int) -> str:
        raise Ignore("no")

    task = guarded(again, leaves, winner)
    first = deliver(task, (1,))
    assert first.published[0].deliver().state == "IGNORED"
    # Then
    assert first.again().state == "IGNORED"
    assert deliver(task, (1,)).get() == "winner"


def test_an_answer_outlives_a_short_window(
    guarded: Callable[..., Any], store: MovableStore
) -> None:
    """Copies come for as long as the broker may deliver, however short the window is."""
    # Given
    task = guarded(winner, declines, idempotency_ttl=60)
    first = deliver(task, (1,))
    # When
    store.advance(61)
    # Then
    assert first.again().get() == "winner"


@pytest.mark.parametrize("window", [60, 3600, 7000])
def test_a_duplicate_keeps_its_answer_when_the_window_ends(
    guarded: Callable[..., Any], store: MovableStore, window: int
) -> None:
    """It is answered in the last moments of the window, and its copy comes after that."""
    # Given
    task = guarded(winner, declines, idempotency_ttl=window)
    deliver(task, (1,))
    store.advance(window - 1)
    duplicate = deliver(task, (1,))
    # When
    store.advance(2)
    # Then
    assert duplicate.again().get() == duplicate.get() == "winner"


@pytest.mark.parametrize(("policy", "state"), [("raise", "FAILURE"), ("drop", "REVOKED")])
def test_a_duplicate_that_did_not_wait_keeps_its_answer(
    guarded: Callable[..., Any], policy: str, state: str
) -> None:
    """The run is done when its copy comes."""
    # Given
    seen: list[Delivered] = []
    task = guarded(meets(seen), idempotency_on_running=policy)
    deliver(task, (1,))
    # Then it is answered again, and has nothing to wait for
    copy = seen[0].again()
    assert copy.state == seen[0].state == state
    assert not copy.published


@pytest.mark.parametrize(
    ("options", "state"),
    [
        pytest.param({"idempotency_on_running": "raise"}, "FAILURE", id="raise"),
        pytest.param({"idempotency_on_running": "drop"}, "REVOKED", id="drop"),
        pytest.param({"idempotency_wait_timeout": 0}, "FAILURE", id="no time to wait"),
        pytest.param({"idempotency_wait_timeout": 1}, "FAILURE", id="has waited"),
    ],
)
def test_a_copy_waits_while_its_call_is_refused(
    guarded: Callable[..., Any], store: MovableStore, options: dict[str, Any], state: str
) -> None:
    """It comes before that is noted, and would run when the key is free: it is refused as well."""
    # Given a call that is refused, and a copy of its message that comes just then
    seen: list[Delivered] = []
    copies: list[Delivered] = []

    def copy_comes(it: observers.Observation) -> None:
        if it.what in ("refused", "dropped"):
            copies.append(seen[-1].published[0].deliver() if seen else message.deliver())

    def meets_and_leaves(self: Any, order: int) -> Any:
        if options.get("idempotency_wait_timeout"):
            seen.append(message.deliver())
            store.advance(1)
            seen.append(seen[0].published[0].deliver())
        else:
            refused.append(message.deliver())
        raise Ignore

    task = guarded(meets_and_leaves, winner, **options)
    message = message_of(task, (1,), link_error=task.app.signature("errback"))
    refused: list[Delivered] = []
    observers.observe(copy_comes)
    # When
    try:
        deliver(task, (1,))
    finally:
        observers.stop_observing(copy_comes)
    first = refused[0] if refused else seen[1]
    # Then
    assert first.state == state
    (copy,) = copies
    (left,) = copy.published
    assert left.deliver().state == state


def test_a_call_with_other_arguments_stays_refused(app: Celery, store: MovableStore) -> None:
    """The window is over when its copy comes."""

    # Given
    @app.task(base=IdempotentTask, idempotency_ttl=60)
    def charge(order: int) -> str:
        return "charged"

    deliver(charge, (1,), idempotency_key="k")
    other = deliver(charge, (2,), idempotency_key="k")
    # When
    store.advance(61)
    # Then
    assert other.again().state == other.state == "FAILURE"


@pytest.mark.parametrize("then", [late, fails])
def test_a_run_whose_copy_has_answered_does_not(
    guarded: Callable[..., Any], store: MovableStore, then: Callable[[Any], Any]
) -> None:
    """Its copy told that nobody knows the outcome: that stays, for the copies and for the run."""
    # Given
    seen: list[Delivered] = []

    def stalls(self: Any, order: int) -> Any:
        store.advance(LEASE_S + 1)
        seen.append(message.deliver(redelivered=True))
        return then(self)

    task = guarded(stalls, winner, idempotency_on_interrupted="unknown")
    message = message_of(task, (1,), task_id="t")
    # When
    done = message.deliver()
    # Then
    assert [one.state for one in seen] == ["FAILURE"]
    assert done.state == "IGNORED"
    (left,) = done.published
    assert isinstance(left.deliver().result, OutcomeUnknown)
    assert isinstance(seen[0].again().result, OutcomeUnknown)


def test_who_was_told_that_the_store_is_away_stays_so(
    guarded: Callable[..., Any], store: MovableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its copy comes when the store is back: the call has failed, and runs nothing."""
    # Given
    task = guarded(winner, idempotency_on_store_error="raise")
    with monkeypatch.context() as patch:
        patch.setattr(store, "claim", away_for(99, store.claim))
        first = deliver(task, (1,))
    assert first.state == "FAILURE"
    # When
    assert heartbeat.flush(10)
    # Then
    assert first.again().state == "FAILURE"


@pytest.mark.parametrize("body", ["returns", "raises", "ignores"])
def test_what_ran_while_the_store_was_away_does_not_run_again(
    guarded: Callable[..., Any],
    store: MovableStore,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
) -> None:
    """Its copy comes when the store is back: the answer stays as it is; another call runs."""

    # Given
    def once(self: Any, order: int) -> str:
        if body == "raises":
            raise ValueError("open")
        if body == "ignores":
            raise Ignore
        return "open"

    task = guarded(once, winner, idempotency_on_store_error="run")
    message = message_of(task, (1,))
    with monkeypatch.context() as patch:
        patch.setattr(store, "claim", away_for(99, store.claim))
        message.deliver()
    # When
    assert heartbeat.flush(10)
    again = message.deliver(redelivered=True)
    # Then
    assert again.state == "IGNORED"
    assert deliver(task, (1,)).get() == "winner"


@pytest.mark.parametrize("body", ["returns", "raises", "retries"])
def test_what_runs_while_the_store_is_away_leaves_an_answer_as_it_is(
    app: Celery,
    guarded: Callable[..., Any],
    store: MovableStore,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
) -> None:
    """A copy has answered the call when the body ends: its end is told nobody, no callback sent."""
    # Given
    results = results_of(app)

    def late(self: Any, order: int) -> str:
        results.mark_as_failure("late", ValueError("declined"))
        if body == "returns":
            return "open"
        if body == "retries":
            raise self.retry(exc=ValueError("open"))
        raise ValueError("open")

    task = guarded(late, idempotency_on_store_error="run")
    with monkeypatch.context() as patch:
        patch.setattr(store, "claim", away_for(99, store.claim))
        # When
        done = deliver(task, (1,), task_id="late")
    # Then
    assert done.state == "IGNORED"
    assert {message.task_id for message in done.published} == {"late"}
    # And what is put back runs nothing, though the store has forgotten that answer
    assert heartbeat.flush(10)
    assert done.published[-1].deliver().state == "IGNORED"
    assert str(results.get_result("late")) == "declined"


def test_a_delivery_that_fails_before_its_body_leaves_the_key(
    guarded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim is undone, its call has failed: a copy runs nothing, other calls do."""

    # Given
    def broken(*_: Any) -> None:
        raise ValueError("before the body")

    task = guarded(winner)
    with monkeypatch.context() as patch:
        patch.setattr(Attempt, "__init__", broken)
        first = deliver(task, (1,))
    # Then
    assert str(first.again().result) == "before the body"
    assert deliver(task, (1,)).get() == "winner"


def test_a_claim_is_not_undone_once_its_body_has_begun(
    guarded: Callable[..., Any], store: MovableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store does not take its failure yet: until it does, the key is held."""
    # Given
    task = guarded(declines, winner)
    with monkeypatch.context() as patch:
        patch.setattr(store, "settle", away_for(99, store.settle))
        deliver(task, (1,))
        # Then
        assert deliver(task, (1,)).state == "RETRY"
    assert heartbeat.flush(10)
    assert deliver(task, (1,)).get() == "winner"


def test_the_callbacks_of_a_duplicate_are_sent_once(
    app: Celery, guarded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker was away at first: its copy sends them, and the next one sends none."""
    # Given
    app.task(name="tail")(print)
    task = guarded(winner)
    deliver(task, (1,))

    def broker_away(*_: Any, **__: Any) -> None:
        raise OperationalError("away")

    with monkeypatch.context() as patch:
        patch.setattr(Signature, "apply_async", broker_away)
        duplicate = deliver(task, (1,), link=app.signature("tail"))
    assert duplicate.state == "REJECTED"
    # When
    copies = [duplicate.again(), duplicate.again()]
    # Then
    assert [copy.get() for copy in copies] == ["winner"] * 2
    assert [len(copy.published) for copy in copies] == [1, 0]


def test_a_duplicate_keeps_its_answer_after_a_short_window(
    guarded: Callable[..., Any], store: MovableStore
) -> None:
    """Its copy comes when the record is gone: nothing runs a second time."""
    # Given
    task = guarded(winner, declines, idempotency_ttl=60)
    deliver(task, (1,))
    duplicate = deliver(task, (1,))
    # When
    store.advance(61)
    # Then
    assert duplicate.again().get() == duplicate.get() == "winner"


@pytest.mark.parametrize("again", ["new", "redelivered", "dead-lettered"])
def test_a_message_of_another_producer_is_judged_by_the_brokers_word(
    guarded: Callable[..., Any], again: str
) -> None:
    """It names no publication: what the broker delivers again is a copy, anything else is not."""

    # Given
    def leaves(self: Any, order: int) -> str:
        raise Ignore("no")

    task = guarded(leaves, winner)
    first = Message(task.app, task.name, (1,), {}, "t")
    assert first.deliver().state == "IGNORED"
    # Then
    if again == "new":
        assert first.deliver().get() == "winner"
    elif again == "redelivered":
        assert first.deliver(redelivered=True).state == "IGNORED"
    else:
        dead = replace(first, options={"headers": {"x-death": [{"count": 1}]}})
        assert dead.deliver(redelivered=True).get() == "winner"


def test_who_meets_an_outage_gives_the_runs_time_to_renew(
    guarded: Callable[..., Any], store: MovableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease ended while the store was away: its run may be alive, and renews it first."""
    # Given
    seen: list[Delivered] = []

    def stalls(self: Any, order: int) -> str:
        store.advance(LEASE_S + 1)
        monkeypatch.setattr(store, "failed_at", time.monotonic())
        seen.append(deliver(self, (order,)))
        return "done"

    # When
    deliver(guarded(stalls, winner), (1,))
    # Then
    assert [one.state for one in seen] == ["RETRY"]


def test_a_note_that_a_soft_time_limit_cuts_off_is_told_again(
    app: Celery, guarded: Callable[..., Any], store: MovableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit fires while the store is told: its copy sends nothing."""
    # Given
    app.task(name="tail")(print)
    task = guarded(winner)
    note, limits = store.note, [SoftTimeLimitExceeded()]

    def cut_off(*args: Any) -> None:
        if limits:
            raise limits.pop()
        note(*args)

    monkeypatch.setattr(store, "note", cut_off)
    # When
    first = deliver(task, (1,), link=app.signature("tail"))
    # Then
    assert [message.task for message in first.published] == ["tail"]
    assert not limits
    copy = first.again()
    assert (copy.get(), copy.published) == ("winner", ())
