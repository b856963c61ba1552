"""A body may take its steps in several threads, with the handle that it read itself."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from celery import Celery

from celery_idempotent import ConfigurationError, IdempotentTask
from celery_idempotent.core.keys import record_key
from celery_idempotent.core.record import Record, State
from celery_idempotent.core.step import Step
from celery_idempotent.core.verdicts import Recorded
from celery_idempotent.run import run as run_module
from celery_idempotent.run.claimant import Claimant, Terms
from celery_idempotent.run.run import Run
from celery_idempotent.run.steps import Steps
from celery_idempotent.settings import environment_of
from celery_idempotent.testing.deliveries import deliver
from celery_idempotent.testing.memory import memory_store

#: How long a thread waits for another one that a lock is to keep out, in seconds.
KEPT_OUT_S = 0.2
#: The same for one that is to come, however busy the machine is.
COMES_S = 60


@pytest.fixture
def store():
    with memory_store() as store:
        yield store


@pytest.fixture
def app(store):
    return Celery("threads", broker="memory://", backend="cache+memory://")


def at_once(*calls):
    """Make calls in a thread each; return what they returned or raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(call) for call in calls]
    return [future.exception() or future.result() for future in futures]


class Meeting:
    """Where two threads meet, unless a lock keeps one of them out."""

    def __init__(self, patience_s=KEPT_OUT_S):
        self._barrier = threading.Barrier(2)
        self._patience_s = patience_s
        self.happened = False

    def wait(self):
        try:
            self._barrier.wait(self._patience_s)
        except threading.BrokenBarrierError:
            return
        self.happened = True


def steps_of(store, task, *args):
    key = record_key(environment_of(task.app).prefix, task._call_key(args, {}, ...))
    return {name: Step.unpack(packed) for name, packed in store.steps(key).items()}


def test_steps_from_several_threads_are_recorded_each(app, store):
    # Given
    done = []

    @app.task(base=IdempotentTask, bind=True, name="fan-out")
    def task(self, number):
        run = self.idempotency
        with ThreadPoolExecutor(8) as pool:
            parts = range(40)
            results = list(pool.map(lambda n: run.step(f"part-{n}", work, n), parts))
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return results

    def work(number):
        done.append(number)
        return number * 2

    # When
    first = deliver(task, (1,))
    recorded = steps_of(store, task, 1)
    second = first.published[0].deliver()
    # Then
    assert second.get() == [number * 2 for number in range(40)]
    assert sorted(done) == list(range(40))
    assert sorted(step.order for step in recorded.values()) == list(range(40))


def test_two_threads_that_ask_for_the_same_step_do_it_once(app):
    """The second one gets the error that it would get after the first."""
    # Given
    done, meeting = [], Meeting()

    class Name(str):
        def __hash__(self):
            meeting.wait()
            return super().__hash__()

    @app.task(base=IdempotentTask, bind=True, name="same-step")
    def task(self, number):
        run = self.idempotency
        answers = at_once(*[lambda: run.step(Name("charge"), lambda: done.append(1))] * 2)
        return sorted(type(answer).__name__ for answer in answers)

    # When
    ended = deliver(task, (1,))
    # Then
    assert ended.get() == ["NoneType", "ValueError"]
    assert done == [1]


def test_a_step_keeps_the_order_that_it_got_while_another_thread_is_recorded(app, store):
    # Given
    packing, other = threading.Event(), threading.Event()

    class Slow:
        def __json__(self):
            packing.set()
            assert other.wait(COMES_S)
            return "slow"

    @app.task(base=IdempotentTask, bind=True, name="orders")
    def task(self, number):
        run = self.idempotency

        def quick():
            assert packing.wait(COMES_S)
            run.step("quick", lambda: "quick")
            other.set()

        at_once(lambda: run.step("slow", Slow), quick)
        raise self.retry(countdown=0)

    # When
    deliver(task, (1,))
    # Then
    assert {name: step.order for name, step in steps_of(store, task, 1).items()} == {
        "slow": 0,
        "quick": 1,
    }


def held_run(store):
    terms = Terms(
        store,
        lease_s=60,
        ttl_s=60,
        horizon_s=60,
        max_interruptions=3,
        max_compensations=3,
        in_turn=False,
        latest=False,
        reserves=False,
    )
    claimant = Claimant(terms, "idem:{n:k}", b"owner", 0, b"", False, "")
    return Run(claimant, Record(State.RUNNING, 1), lambda lease: None, 0.0)


def test_threads_take_turns_in_the_bodys_transaction(store):
    # Given
    run, meeting = held_run(store), Meeting()

    def step(*args):
        meeting.wait()
        return Recorded(1)

    run._transaction = SimpleNamespace(is_open=True, step=step)
    codec = SimpleNamespace(pack=lambda result: b"")
    steps = Steps(run, codec)
    # When
    answers = at_once(
        lambda: steps.do("one", str, (), {}),
        lambda: steps.do("two", str, (), {}),
    )
    # Then
    assert answers == ["", ""]
    assert not meeting.happened


def test_threads_have_the_bodys_transaction_in_common(store, monkeypatch):
    # Given
    run, meeting = held_run(store), Meeting(COMES_S)

    class Late:
        def __init__(self, *args, **kwargs):
            meeting.wait()

    monkeypatch.setattr(run_module, "BodyTransaction", Late)
    # When
    one, two = at_once(lambda: run.transaction, lambda: run.transaction)
    # Then
    assert meeting.happened
    assert one is two is run.transaction


# --- without the handle --------------------------------------------------------------------------


def test_a_thread_that_asks_the_task_itself_is_told_what_to_do(app):
    """It would get a context that records nothing."""
    # Given
    done = []

    @app.task(base=IdempotentTask, bind=True, name="no-handle")
    def task(self, number):
        (answer,) = at_once(lambda: self.idempotency.step("part", done.append, 1))
        raise answer

    # When
    ended = deliver(task, (1,))
    # Then
    assert isinstance(ended.result, ConfigurationError)
    assert "run = self.idempotency" in str(ended.result)
    assert done == []


def test_in_a_direct_call_a_thread_just_does_its_steps(app):
    # Given
    @app.task(base=IdempotentTask, bind=True, name="direct")
    def task(self, number):
        return at_once(lambda: self.idempotency.step("part", str, number))

    # Then
    assert task(1) == ["1"]


def test_once_the_body_is_over_its_task_can_be_asked_again(app):
    # Given
    @app.task(base=IdempotentTask, bind=True, name="over")
    def task(self, number):
        return self.idempotency.step("part", str, number)

    # When
    assert deliver(task, (1,)).get() == "1"
    # Then
    assert task.run(1) == "1"


def test_another_tasks_body_may_call_this_one_while_it_is_under_way(app):
    """In a worker with a pool of threads that is no part of the run: it is a direct call."""
    # Given
    begun, called = threading.Event(), threading.Event()

    @app.task(base=IdempotentTask, bind=True, name="inner")
    def inner(self, number):
        if number == 1:
            begun.set()
            assert called.wait(COMES_S)
        return self.idempotency.step("part", str, number)

    @app.task(name="outer")
    def outer():
        assert begun.wait(COMES_S)
        try:
            return inner.run(2)
        finally:
            called.set()

    # When
    one, two = at_once(lambda: inner.apply((1,)).get(), lambda: outer.apply().get())
    # Then
    assert [one, two] == ["1", "2"]
