"""Which of the messages that wait for a key go to the pool, and when."""

from __future__ import annotations

import time
from collections import deque
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from kombu.asynchronous.timer import Timer

from celery_idempotent import IdempotentTask
from celery_idempotent.core.keys import Owner, record_key
from celery_idempotent.core.message import OWN, WaitState, own_header
from celery_idempotent.core.record import Record, State
from celery_idempotent.settings import environment_of
from celery_idempotent.worker import waiters
from celery_idempotent.worker.listening import Sight
from celery_idempotent.worker.waiters import Waiters
from tests.support.waiting import eventually

NOW_MS = 1_750_000_000_000
OUTCOME = b"\x01\x01" + b'"charged"'
HELD = Record(State.RUNNING, NOW_MS * 1000, NOW_MS + 30_000, is_awaited=True)
LAPSED = Record(State.RUNNING, NOW_MS * 1000, NOW_MS - 1)
FREE = Record(State.RELEASED, NOW_MS * 1000)
DONE = Record(State.SUCCEEDED, NOW_MS * 1000, outcome=OUTCOME)
ENDED = DONE._replace(owner=Owner("first").pack())
FAILED = Record(State.RELEASED, NOW_MS * 1000, outcome=OUTCOME)


class Consumer:
    """What is used of Celery's consumer; it notes what goes to the pool."""

    hub = None

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.timer = Timer()
        self.connection = object()
        self.gone: list[Any] = []

    def apply_eta_task(self, request: Any) -> None:
        self.gone.append(request.id)


class Shop:
    """One worker's messages of one key."""

    def __init__(self, **options: Any) -> None:
        self.app = Celery(f"waiters-{uuid4().hex}", broker="memory://", set_as_current=False)
        self.app.conf.idempotency_store_url = f"memory://{uuid4().hex}"

        @self.app.task(base=IdempotentTask, idempotency_key="{order}", shared=False, **options)
        def charge(order: int) -> None:
            """Do nothing."""

        self.task: Any = self.app.tasks[charge.name]
        self.consumer = Consumer(self.app)
        self.waiters = Waiters(self.consumer)
        self.waiters._listener = SimpleNamespace(  # type: ignore[assignment]
            watch=lambda key, _: self.looked.append(key),
            unwatch=lambda key: None,
            sights=deque(),
        )
        self.looked: list[str] = []
        self.key = self.task._setup().scheme.derive((1,), {}, task_id="", explicit=None)
        self.record = record_key(environment_of(self.app).prefix, self.key)
        self.requests: dict[str, Any] = {}

    def waits(self, *names: str, due_s: float = 0.0, **waits: Any) -> None:
        """Let messages come that were put back."""
        for name in names:
            state = WaitState(**{"count": 1, "since_ms": NOW_MS, "awaited": ("first", 0), **waits})
            request = self.requests[name] = SimpleNamespace(
                id=name,
                task=self.task,
                hostname="here",
                expires=None,
                leads=None,
                _request_dict={OWN: own_header(name, self.key, state), "id": name},
                record_name=lambda: self.record,
            )
            assert self.waiters.hold(request, time.monotonic() + due_s) is not None

    def sees(self, record: Record | None, *, is_told: bool = False) -> None:
        """Let the listener see the key; nothing is done about it yet."""
        sight = Sight(self.record, record, NOW_MS, time.monotonic(), is_told)
        self.waiters._listener.sights.append(sight)

    def seen(self, record: Record | None, *, is_told: bool = False) -> None:
        """Let the listener have seen the key."""
        self.sees(record, is_told=is_told)
        self.waiters._take()

    def go_on(self) -> None:
        """Let Celery's timer do what is due."""
        for _, entry in self.consumer.timer:
            if entry is None:
                return
            entry()

    def due(self, *names: str) -> None:
        """Let Celery's timer come to these messages."""
        for name in names:
            self.waiters._on_due(self.requests[name])

    @property
    def gone(self) -> list[str]:
        """Which have gone to the pool, in their order."""
        return self.consumer.gone


@pytest.fixture(autouse=True)
def a_busy_machine_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen a moment ago counts for longer than a test takes."""
    for name in ("_KNOWN_S", "_FIRST_SIGHT_S"):
        monkeypatch.setattr(waiters, name, 600.0)


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.mark.parametrize(
    ("broker", "has_event_loop"),
    [("redis", True), ("amqp", True), ("memory", False), ("filesystem", False)],
)
def test_with_these_brokers_no_timer_has_to_be_waited_for(
    broker: str, has_event_loop: bool
) -> None:
    """Where the transport has an event loop, a pipe wakes it; elsewhere Celery's timer looks."""
    app = Celery(f"loop-{broker}", broker=f"{broker}://", set_as_current=False)

    with app.connection_for_read() as connection:
        assert connection.transport.implements.asynchronous is has_event_loop
    assert app.conf.worker_timer_precision == 1.0


def test_all_go_when_the_outcome_is_there(shop: Shop) -> None:
    """They are answered with it: that is quick."""
    # Given
    shop.waits("a", "b", "c", due_s=60)
    shop.seen(HELD)
    assert shop.gone == []
    # When
    shop.seen(DONE)
    # Then
    assert shop.gone == ["a", "b", "c"]
    assert shop.waiters.everyone() == []


def test_many_go_a_part_at_a_time(shop: Shop) -> None:
    """The pool's processes are given the first of them only when the worker's loop goes on."""
    # Given
    names = [f"{number}" for number in range(250)]
    shop.waits(*names, due_s=60)
    # When
    shop.seen(DONE)
    # Then
    assert shop.gone == names[:100]
    assert len(shop.waiters.everyone()) == 150
    # When
    shop.go_on()
    # Then
    assert shop.gone == names
    assert shop.waiters.everyone() == []


def test_what_was_seen_later_counts_later(shop: Shop) -> None:
    """Those that come while many are let in wait for the next run."""
    # Given
    shop.waits(*(f"{number}" for number in range(150)), due_s=60)
    shop.waits("displaced", due_s=60, displaced=True)
    shop.sees(DONE)
    # When
    shop.seen(HELD)
    shop.go_on()
    shop.waits("later", awaited=("second", 0))
    shop.due("later")
    # Then
    assert len(shop.gone) == 150
    assert [it.request.id for it in shop.waiters.everyone()] == ["displaced", "later"]


def test_a_message_that_comes_after_the_end_goes_at_once(shop: Shop) -> None:
    """It was put back during the run, and stood in the queue when others were let in."""
    # Given
    shop.waits("a", due_s=60)
    shop.seen(ENDED)
    shop.looked.clear()
    # When
    shop.waits("b", due_s=60)
    shop.go_on()
    # Then
    assert shop.gone == ["a", "b"]
    assert shop.looked == []


@pytest.mark.parametrize(
    "waits",
    [
        {"awaited": ("second", 0)},
        {"awaited": ("first", 1)},
        {"count": 2},
        {"displaced": True},
        {"redelivery": True},
        {"awaited": None},
    ],
    ids=["another run", "what replaced it", "put back twice", "displaced", "a copy", "unknown"],
)
def test_the_end_of_a_run_lets_nobody_in_who_waits_for_another(
    shop: Shop, waits: dict[str, Any]
) -> None:
    """It would find the key busy, and could come again and again."""
    # Given
    shop.waits("a", due_s=60)
    shop.seen(ENDED)
    shop.looked.clear()
    # When
    shop.waits("b", due_s=60, **waits)
    shop.go_on()
    # Then
    assert shop.gone == ["a"]
    assert shop.looked == [shop.record]


def test_the_end_of_a_run_is_known_until_the_key_is_held_again(shop: Shop) -> None:
    """What was seen last counts."""
    # Given
    shop.waits("a", due_s=60)
    shop.waits("next", due_s=60, redelivery=True)
    shop.seen(ENDED)
    # When
    shop.seen(HELD)
    shop.waits("b", due_s=60)
    shop.go_on()
    # Then
    assert shop.gone == ["a"]


def test_the_end_of_a_run_is_known_for_a_moment(shop: Shop) -> None:
    """After that the key is looked at again."""
    # Given
    shop.waits("a", due_s=60)
    shop.seen(ENDED)
    shop.looked.clear()
    # When
    shop.waiters._answers[shop.record] = ENDED.owner, time.monotonic()
    shop.waits("b", due_s=60)
    shop.go_on()
    # Then
    assert shop.gone == ["a"]
    assert shop.looked == [shop.record]


def test_nothing_is_kept_of_runs_that_ended_before(shop: Shop) -> None:
    """However many keys there are."""
    # Given
    shop.waiters._answers["another"] = ENDED.owner, time.monotonic()
    shop.waits("a", due_s=60)
    # When
    shop.seen(ENDED)
    # Then
    assert list(shop.waiters._answers) == [shop.record]


def test_the_end_of_a_run_lets_nobody_in_where_each_runs_in_its_turn() -> None:
    """An outcome answers nobody there."""
    # Given
    shop = Shop(idempotency_ttl=0, idempotency_after_wait="run")
    shop.waits("a", due_s=60)
    shop.seen(ENDED)
    # When
    shop.waits("b", due_s=60)
    shop.go_on()
    # Then
    assert shop.gone == ["a"]


def test_a_failure_answers_all(shop: Shop) -> None:
    """Those who waited for the run share it."""
    shop.waits("a", "b", due_s=60)
    shop.seen(FAILED)
    assert shop.gone == ["a", "b"]


def test_one_goes_first_where_the_key_is_free(shop: Shop) -> None:
    """The others would find it busy. When it is over, the key is looked at again."""
    # Given
    shop.waits("a", "b", "c", due_s=60)
    # When
    shop.seen(FREE)
    shop.seen(FREE)
    # Then
    assert shop.gone == ["a"]
    # When
    shop.looked.clear()
    request = shop.requests["a"]
    request.leads(request)
    # Then
    assert shop.looked == [shop.record]
    shop.seen(FREE)
    assert shop.gone == ["a", "b"]


def test_one_goes_after_another_where_each_runs_in_its_turn() -> None:
    """With a mutex an outcome answers nobody else."""
    # Given
    shop = Shop(idempotency_ttl=0, idempotency_after_wait="run")
    shop.waits("a", "b", due_s=60)
    # Then
    shop.seen(FAILED)
    assert shop.gone == ["a"]


def test_a_displaced_call_goes_when_it_is_told_or_due() -> None:
    """The run that answers it may not have begun, though the key is free: it would come in vain."""
    # Given
    shop = Shop(idempotency_ttl=0, idempotency_after_wait="last")
    shop.waits("next")
    shop.waits("displaced", "told later", due_s=60, displaced=True)
    shop.waits("due", displaced=True)
    # When
    shop.seen(FAILED)
    # Then
    assert shop.gone == ["next", "due"]
    # When
    shop.seen(HELD)
    shop.seen(FAILED, is_told=True)
    # Then
    assert shop.gone == ["next", "due", "displaced", "told later"]


def test_a_message_is_held_past_its_pause_while_somebody_holds_the_key(shop: Shop) -> None:
    """It went to the pool for nothing otherwise."""
    # Given
    shop.waits("a", "b")
    shop.seen(HELD)
    # When
    shop.due("a", "b")
    # Then
    assert shop.gone == []
    shop.seen(DONE)
    assert shop.gone == ["a", "b"]


def test_a_message_is_held_until_its_key_was_seen(shop: Shop) -> None:
    """The first look may take a moment."""
    shop.waits("a")
    shop.due("a")
    assert shop.gone == []


def test_one_goes_when_it_is_due_and_the_lease_is_over(shop: Shop) -> None:
    """Nobody goes before: a lease that is over may be renewed after an outage."""
    # Given
    shop.waits("a", "b", due_s=60)
    shop.seen(LAPSED)
    assert shop.gone == []
    # When
    shop.due("a", "b")
    # Then
    assert shop.gone == ["a"]


@pytest.mark.parametrize("how", [{"is_told": True}, {}], ids=["told", "seen when it was due"])
def test_one_goes_when_a_lease_was_ended(shop: Shop, how: dict[str, bool]) -> None:
    """A process died, and the end of its lease as it was known before does not count any more."""
    # Given
    shop.waits("a", "b")
    shop.seen(HELD)
    shop.due("a", "b")
    assert shop.gone == []
    # When
    shop.seen(LAPSED, **how)
    # Then
    assert shop.gone == ["a"]


def test_nobody_waits_longer_than_it_may() -> None:
    """``idempotency_wait_timeout`` counts on the store's clock."""
    # Given
    shop = Shop(idempotency_wait_timeout=10)
    shop.waits("late", since_ms=NOW_MS - 10_000)
    shop.waits("early", since_ms=NOW_MS - 5_000)
    shop.seen(HELD)
    # When
    shop.due("late", "early")
    # Then
    assert shop.gone == ["late"]


def test_a_message_is_not_held_for_longer_than_half_of_the_window() -> None:
    """Else it could miss the outcome."""
    # Given
    shop = Shop(idempotency_ttl=0.2)
    shop.waits("a")
    shop.seen(HELD)
    # Then
    eventually(lambda: shop.due("a") or shop.gone == ["a"], "it goes")


def test_a_copy_waits_for_the_delivery_of_its_answer(shop: Shop) -> None:
    """And it goes early only when it is told to: it may wait for more than the record tells."""
    # Given
    shop.waits("copy", due_s=60, redelivery=True, awaited=None)
    shop.waits("other", due_s=60)
    # When
    shop.seen(DONE._replace(until_ms=NOW_MS + 30_000), is_told=True)
    assert shop.gone == ["other"]
    shop.seen(DONE)
    assert shop.gone == ["other"]
    shop.seen(DONE, is_told=True)
    # Then
    assert shop.gone == ["other", "copy"]


def test_a_call_that_is_revoked_goes_at_once(shop: Shop) -> None:
    """Celery discards it then, and its caller need not wait for the run."""
    shop.waits("a", "b", due_s=60)
    shop.seen(HELD)
    shop.waiters.discard(shop.requests["b"])
    assert shop.gone == ["b"]


def test_a_next_attempt_that_came_too_early_goes_when_it_is_told(shop: Shop) -> None:
    """Its message was there before its record: others wait for it."""
    # Given
    shop.waits("attempt", due_s=60, redelivery=True, awaited=None)
    shop.waits("other", due_s=60)
    shop.seen(HELD)
    # When
    shop.seen(HELD._replace(state=State.RETRYING), is_told=True)
    # Then
    assert shop.gone == ["attempt"]


def test_what_came_over_an_earlier_connection_is_forgotten(shop: Shop) -> None:
    """It can't be acknowledged any more, and comes again."""
    # Given
    shop.waiters.connect()
    shop.waits("a", due_s=60)
    # When
    shop.consumer.connection = object()
    shop.waiters.connect()
    shop.seen(DONE)
    shop.due("a")
    # Then
    assert shop.gone == []


def test_a_message_that_celery_gave_up_goes_nowhere(shop: Shop) -> None:
    """Its connection broke, and its entry in the timer was cancelled."""
    # Given
    shop.waits("a", due_s=60)
    shop.requests["a"]._eta_timer_entry.cancel()
    # Then
    shop.seen(DONE)
    assert shop.gone == []


@pytest.mark.parametrize(
    "waits",
    [{"count": 0}, {"patient_until_ms": 2**53 - 1}, {"to": "elsewhere"}],
    ids=["a countdown of its own", "waits for the store", "for another worker"],
)
def test_what_waits_for_no_key_is_not_held(shop: Shop, waits: dict[str, Any]) -> None:
    """Celery does with it what it always does."""
    state = WaitState(**{"count": 1, "since_ms": NOW_MS, "awaited": ("first", 0), **waits})
    request = SimpleNamespace(
        id="a",
        task=shop.task,
        hostname="here",
        expires=None,
        _request_dict={OWN: own_header("a", shop.key, state), "id": "a"},
        record_name=lambda: shop.record,
    )
    shop.waiters.hold(request, time.monotonic())
    assert shop.waiters.everyone() == []
    assert shop.looked == []
