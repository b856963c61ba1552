"""A result backend that does not take an answer: the message comes again, and tells it."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, states
from kombu.exceptions import OperationalError

from celery_idempotent import StoreUnavailable
from celery_idempotent.delivery import untold
from celery_idempotent.delivery.callbacks import AFTER_TRACE
from celery_idempotent.delivery.untold import _TRIES
from celery_idempotent.testing.deliveries import (
    Delivered,
    Message,
    Results,
    deliver,
    message_of,
    results_of,
)
from celery_idempotent.testing.memory import MovableStore

MakeTask = Callable[..., Any]

#: What Celery says where it gives up.
pytestmark = pytest.mark.filterwarnings("ignore:Exception raised outside body")


@pytest.fixture
def app() -> Celery:
    app = Celery("untold", broker="memory://", backend="cache+memory://")
    app.task = functools.partial(app.task, shared=False)
    return app


class Refusing:
    """A result backend that refuses some states, and may answer no delivery's question."""

    def __init__(self, results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refuses: tuple[str, ...] = ()
        self.answers = True
        self._store, self._get = results._store_result, results.get
        monkeypatch.setattr(results, "_store_result", self._store_or_refuse)
        monkeypatch.setattr(results, "get", self._get_or_fail)

    def _store_or_refuse(self, task_id: str, result: Any, state: str, *args: Any, **kw: Any) -> Any:
        if state in self.refuses:
            raise ConnectionError(f"{state} is not taken")
        return self._store(task_id, result, state, *args, **kw)

    def _get_or_fail(self, key: Any) -> Any:
        if not self.answers and AFTER_TRACE.get() is not None:
            raise ConnectionError("away")
        return self._get(key)

    def go_away(self) -> None:
        self.refuses, self.answers = tuple(states.ALL_STATES), False

    def come_back(self) -> None:
        self.refuses, self.answers = (), True


@pytest.fixture
def backend(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Refusing:
    return Refusing(results_of(app), monkeypatch)


def pays(self: Any, order: int) -> str:
    return f"receipt {order}"


def declines(self: Any, order: int) -> str:
    raise ValueError("declined")


def put_back(delivered: Delivered) -> Message:
    """The message, as it was published again."""
    assert delivered.state == "IGNORED"
    (again,) = [it for it in delivered.published if it.task_id == delivered.message.task_id]
    return again


@pytest.mark.parametrize("answers", [False, True], ids=["away", "away for a moment"])
@pytest.mark.parametrize("body", [pays, declines])
def test_an_answer_that_is_not_taken_is_told_by_the_next_delivery(
    app: Celery, guarded: MakeTask, backend: Refusing, body: Any, answers: bool
) -> None:
    """Its body runs once, and the caller gets its outcome: no failure is stored in its place."""
    # Given
    task = guarded(body)
    backend.go_away()
    backend.answers = answers
    # When
    again = put_back(deliver(task, (1,)))
    again = put_back(again.deliver())
    backend.come_back()
    told = again.deliver()
    # Then
    assert told.state == ("SUCCESS" if body is pays else "FAILURE")
    assert repr(told.result) == ("'receipt 1'" if body is pays else "ValueError('declined')")
    assert results_of(app).get_state(told.message.task_id) == told.state
    # And each duplicate of a success gets the same
    assert body is declines or deliver(task, (1,)).get() == "receipt 1"


@pytest.mark.parametrize("is_copy", [False, True], ids=["put back", "a copy"])
@pytest.mark.parametrize("body", [pays, declines])
def test_what_hangs_on_the_call_is_sent_once(
    app: Celery, guarded: MakeTask, backend: Refusing, body: Any, is_copy: bool
) -> None:
    """Links go out before the result is stored, and errbacks after the failure."""
    # Given
    task = guarded(body)
    hanging = {"link": app.signature("tail"), "link_error": app.signature("errback")}
    backend.go_away()
    # When
    first = deliver(task, (1,), **hanging)
    backend.come_back()
    second = first.again() if is_copy else put_back(first).deliver()
    # Then
    sent = [it.task for it in (*first.published, *second.published) if it.task != task.name]
    assert sent == ["tail" if body is pays else "errback"]
    # And nothing is sent with a copy of the message as it came
    assert first.again().published == ()


def test_a_part_of_a_chord_is_counted_with_its_answer(
    app: Celery, guarded: MakeTask, backend: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the next delivery, which stores the answer, counts it, too."""
    # Given
    counted: list[Any] = []
    monkeypatch.setattr(
        results_of(app), "on_chord_part_return", lambda _, state, *__: counted.append(state)
    )
    task = guarded(pays)
    backend.go_away()
    # When
    first = deliver(task, (1,), chord=app.signature("body"), group_id="g")
    backend.come_back()
    told = put_back(first).deliver()
    # Then
    assert (told.state, counted) == ("SUCCESS", ["SUCCESS"])


@pytest.mark.parametrize("body", [pays, declines])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("is_part", [True, False])
def test_a_part_of_a_chord_is_counted_to_its_end(
    app: Celery,
    guarded: MakeTask,
    backend: Refusing,
    monkeypatch: pytest.MonkeyPatch,
    body: Any,
    number: signal.Signals,
    is_part: bool,
) -> None:
    """A pool cuts its processes off by signals: the chord's body would never be published."""
    # Given
    told: list[str] = []
    store = results_of(app)._store_result

    def cut_off(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(number)
        told.append("told")
        return store(*args, **kwargs)

    def ends(*_: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(untold, "current_process", lambda: SimpleNamespace(daemon=True))
    monkeypatch.setattr(results_of(app), "_store_result", cut_off)
    monkeypatch.setattr(results_of(app), "on_chord_part_return", lambda *_: told.append("counted"))
    before = signal.signal(number, ends)
    part = {"chord": app.signature("body"), "group_id": "g"} if is_part else {}
    # When
    try:
        deliver(guarded(body), (1,), **part)
        is_cut_off = False
    except SystemExit:
        is_cut_off = True
    finally:
        # Then
        assert signal.signal(number, before) is ends
    assert told == (["told", "counted"] if is_part else [])
    # A soft time limit comes too late
    assert is_cut_off is not (is_part and number == signal.SIGUSR1)


def test_a_result_that_is_refused_for_good_fails_the_call(
    app: Celery, guarded: MakeTask, backend: Refusing
) -> None:
    """As in plain Celery, once it was tried a few times: it may be too large for that backend."""
    # Given
    task = guarded(pays)
    backend.refuses = ("SUCCESS",)
    # When
    delivered, times = deliver(task, (1,)), 1
    while delivered.state == "IGNORED":
        delivered, times = put_back(delivered).deliver(), times + 1
    # Then
    assert delivered.published == ()
    assert results_of(app).get_state(delivered.message.task_id) == "FAILURE"
    assert times == _TRIES + 1


def test_a_duplicate_that_has_waited_long_tries_once_more(
    guarded: MakeTask, backend: Refusing
) -> None:
    """Its waits for the run are no refusals."""
    # Given
    waits: list[Delivered] = []

    def pays_slowly(self: Any, order: int) -> str:
        waits.append(deliver(self, (order,)))
        while len(waits) <= _TRIES:
            (again,) = waits[-1].published
            waits.append(again.deliver())
        return pays(self, order)

    assert deliver(guarded(pays_slowly), (1,)).get() == "receipt 1"
    assert {it.state for it in waits} == {"RETRY"}
    (duplicate,) = waits[-1].published
    # When
    backend.refuses = ("SUCCESS",)
    again = put_back(duplicate.deliver())
    backend.come_back()
    # Then
    assert again.deliver().get() == "receipt 1"


def test_an_errback_that_can_not_be_sent_is_sent_later(
    app: Celery, guarded: MakeTask, backend: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure is stored by then; Celery would not send it again."""
    # Given
    task, results = guarded(declines), results_of(app)
    call = results._call_task_errbacks

    def is_away(*_: Any) -> None:
        monkeypatch.setattr(results, "_call_task_errbacks", call)
        raise OperationalError("away")

    monkeypatch.setattr(results, "_call_task_errbacks", is_away)
    # When
    first = deliver(task, (1,), link_error=app.signature("errback"))
    second = put_back(first).deliver()
    # Then
    assert [it.task for it in second.published] == ["errback"]
    assert str(second.result) == "declined"


@pytest.mark.parametrize("options", [{"acks_late": False}, {"idempotency_mode": "shadow"}])
def test_where_no_other_delivery_could_tell_it_celery_goes_on(
    guarded: MakeTask, backend: Refusing, options: dict[str, Any]
) -> None:
    """The message is gone already, or would run the body again."""
    # Given
    task = guarded(pays, **options)
    backend.go_away()
    # When
    with suppress(ConnectionError):
        delivered = deliver(task, (1,))
        # Then
        assert delivered.state != "IGNORED"
        assert delivered.published == ()


def test_a_body_that_ran_without_a_claim_is_not_run_again_for_its_answer(
    guarded: MakeTask, backend: Refusing, store: MovableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``idempotency_on_store_error = "run"``: nobody keeps its outcome."""
    # Given
    runs: list[int] = []

    def body(self: Any, order: int) -> None:
        runs.append(order)

    def away(*_: Any) -> None:
        raise StoreUnavailable("away")

    task = guarded(body, body, idempotency_on_store_error="run")
    monkeypatch.setattr(store, "claim", away)
    backend.go_away()
    # When
    with suppress(ConnectionError):
        assert deliver(task, (1,)).published == ()
    # Then
    assert runs == [1]


def test_a_body_begins_though_that_is_not_stored(guarded: MakeTask, backend: Refusing) -> None:
    """``task_track_started``: that a backend is away is no reason to fail a call."""
    # Given
    task = guarded(pays, track_started=True)
    backend.refuses = ("STARTED",)
    # When
    delivered = deliver(task, (1,))
    # Then
    assert delivered.get() == "receipt 1"


def test_a_chord_that_is_none_is_told_once(
    app: Celery, guarded: MakeTask, backend: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever counts its part fails each time: the message would come again for nothing."""

    # Given
    def count(*_: Any) -> None:
        raise AttributeError("'str' object has no attribute 'tasks'")

    monkeypatch.setattr(results_of(app), "on_chord_part_return", count)
    published: list[Message] = []
    call = message_of(guarded(pays), (1,), chord=app.signature("shop.body"), group_id="group")
    # When
    with pytest.raises(AttributeError):
        call.deliver_into(published, redelivered=False)
    # Then
    assert not published
