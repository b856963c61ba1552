"""Steps are done once, and undone in reverse where the body fails for good."""

from datetime import date, datetime, timezone
from decimal import Decimal
from functools import partial
from uuid import UUID, uuid4

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from celery_idempotent import (
    RERUN,
    UNKNOWN,
    ClaimLost,
    ConfigurationError,
    IdempotentTask,
    OutcomeUnknown,
    ResultNotKept,
    State,
    observers,
)
from celery_idempotent.core.keys import record_key
from celery_idempotent.core.message import OWN
from celery_idempotent.core.record import Record
from celery_idempotent.core.step import Step, StepState
from celery_idempotent.core.verdicts import Resolve
from celery_idempotent.delivery.results import Codec
from celery_idempotent.errors import RecordCorrupt, StoreUnavailable
from celery_idempotent.ops import records, settle
from celery_idempotent.settings import environment_of
from celery_idempotent.testing.servers import RedisServer


@pytest.fixture(scope="module")
def server():
    with RedisServer() as running:
        yield running


@pytest.fixture(params=["memory", "redis"])
def app(request, server):
    url = server.url() if request.param == "redis" else f"memory://{uuid4().hex}"
    app = Celery(f"steps-{id(request)}", broker="memory://", backend="cache+memory://")
    app.conf.update(idempotency_store_url=url, idempotency_key_prefix=f"steps{uuid4().hex}")
    # Else every app of this process would get the tasks of every test.
    app.task = partial(app.task, shared=False)
    return app


def key_of(task, *args):
    call_key = task._call_key(args, {}, ...)
    return record_key(environment_of(task.app).prefix, call_key)


class Ledger(list):
    def does(self, what, result=None, error=None):
        def effect(*args, **kwargs):
            self.append((what, *args, *kwargs.items()))
            if error is not None:
                raise error
            return result

        return effect


@pytest.fixture
def ledger():
    return Ledger()


def saga(app, ledger, failures=1, **options):
    """A task of three steps, whose third fails ``failures`` times; all but the first undo."""
    left = [failures]

    @app.task(name=f"{app.main}.refund")
    def refund(*args):
        ledger.append(("refund", *args))

    @app.task(name=f"{app.main}.release")
    def release(*args):
        ledger.append(("release", *args))

    @app.task(base=IdempotentTask, bind=True, name=f"{app.main}.order", **options)
    def order(self, number):
        ask = self.idempotency
        ask.step("look", ledger.does("look"))
        seat = ask.step("reserve", ledger.does("reserve", {"seat": 7}), compensate=release.s())
        ask.step("charge", ledger.does("charge", "ch-1"), number, compensate=refund.s("why"))
        if left[0] > 0:
            left[0] -= 1
            ledger.does("mail", error=ValueError("no mail"))()
        return seat

    return order


def test_a_finished_step_is_not_done_again_by_a_retry(app, ledger):
    """Its result is given back instead."""

    # Given
    @app.task(base=IdempotentTask, bind=True, max_retries=3)
    def task(self, number):
        charge = self.idempotency.step("charge", ledger.does("charge", {"id": "ch-1"}), amount=5)
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return charge

    # When
    result = task.apply((1,)).get()
    # Then
    assert result == {"id": "ch-1"}
    assert ledger == [("charge", ("amount", 5))]


def test_steps_survive_a_failure(app, ledger):
    """The next call goes on after the last one that finished."""

    # Given
    @app.task(base=IdempotentTask, bind=True)
    def task(self, number):
        self.idempotency.step("charge", ledger.does("charge"))
        if len(ledger) < 2:
            ledger.append("crash")
            raise ValueError
        return "done"

    # When
    first, second = task.apply((1,)), task.apply((1,))
    # Then
    assert (first.state, second.result) == ("FAILURE", "done")
    assert ledger == [("charge",), "crash"]


def test_forget_begins_anew(app, ledger):
    """Steps end with their record."""
    # Given
    order = saga(app, ledger, failures=0)
    order.apply((1,)).get()
    # When
    order.forget(1)
    order.apply((1,)).get()
    # Then
    assert ledger.count(("charge", 1)) == 2


def test_a_step_of_a_run_that_lost_its_key_says_so(app, ledger):
    """It raises, and the run stops before its next effect."""

    # Given
    @app.task(base=IdempotentTask, bind=True)
    def task(self, number):
        task.forget(number)
        with pytest.raises(ClaimLost):
            self.idempotency.step("one", ledger.does("one"))
        with pytest.raises(ClaimLost):
            self.idempotency.step("two", ledger.does("two"))
        return "own"

    # When
    result = task.apply((1,)).get()
    # Then
    assert ledger == [("one",)]
    assert result == "own"
    assert environment_of(app).store.steps(key_of(task, 1)) == {}


def test_a_body_that_fails_for_good_is_undone_in_reverse(app, ledger):
    """Each compensation gets its step's result first; the caller gets the failure."""
    # Given
    order = saga(app, ledger)
    # When
    answer = order.apply((1,))
    # Then
    assert isinstance(answer.result, ValueError)
    assert ledger == [
        ("look",),
        ("reserve",),
        ("charge", 1),
        ("mail",),
        ("refund", "ch-1", "why"),
        ("release", {"seat": 7}),
    ]
    assert order.idempotency_record(1).state is State.RELEASED


def test_compensated_steps_are_done_again_by_the_next_call(app, ledger):
    """And those that have no compensation are still done."""
    # Given
    order = saga(app, ledger)
    order.apply((1,))
    ledger.clear()
    # When
    assert order.apply((1,)).get() == {"seat": 7}
    # Then
    assert ledger == [("reserve",), ("charge", 1)]


def test_a_retry_undoes_nothing(app, ledger):
    """Only a failure for good does."""

    # Given
    @app.task(name=f"{app.main}.undo")
    def undo(*args):
        ledger.append(("undo", *args))

    @app.task(base=IdempotentTask, bind=True, max_retries=1, autoretry_for=(ValueError,))
    def task(self, number):
        self.idempotency.step("charge", ledger.does("charge", "ch"), compensate=undo.s())
        raise ValueError(self.request.retries)

    task.default_retry_delay = 0
    # When
    answer = task.apply((1,))
    # Then
    assert answer.state == "FAILURE"
    assert ledger == [("charge",), ("undo", "ch")]


def test_a_stored_failure_is_stored_after_the_compensation(app, ledger):
    """With idempotency_store_failures the key is failed, and a duplicate gets that."""
    # Given
    order = saga(app, ledger, failures=9, idempotency_store_failures=True)
    # When
    first, second = order.apply((1,)), order.apply((1,))
    # Then
    assert isinstance(first.result, ValueError)
    assert isinstance(second.result, ValueError)
    assert ledger.count(("charge", 1)) == 1
    assert order.idempotency_record(1).state is State.FAILED


def test_a_compensation_that_was_cut_off_goes_on_and_never_runs_the_body(app, ledger):
    """What was undone stays so, what was not is undone, and the call fails as the body did."""
    # Given
    order = saga(app, ledger)
    app.tasks[f"{app.main}.release"].run = ledger.does("release!", error=SystemExit())
    with pytest.raises(SystemExit):
        order.apply((1,))
    assert order.idempotency_record(1).state is State.COMPENSATING
    app.tasks[f"{app.main}.release"].run = ledger.does("release")
    ledger.clear()
    # When
    answer = order.apply((1,))
    # Then
    assert isinstance(answer.result, ValueError)
    assert ledger == [("release", {"seat": 7})]
    assert order.idempotency_record(1).state is State.RELEASED


def test_a_compensation_that_never_succeeds_is_left_to_a_person(app, ledger):
    """After idempotency_max_interruptions the outcome is unknown."""
    # Given
    order = saga(app, ledger, failures=9, idempotency_max_interruptions=1)
    app.tasks[f"{app.main}.release"].run = ledger.does("release!", error=OSError("down"))
    # When
    results = [order.apply((1,)).result for _ in range(3)]
    # Then
    assert [type(result) for result in results] == [OSError, OSError, OutcomeUnknown]
    assert "was cut off, or its finished steps could not be undone, and" in str(results[-1])
    assert ledger.count(("charge", 1)) == 1
    assert ledger.count(("refund", "ch-1", "why")) == 1


def cut_off(task, *args):
    """Leave a record as a run leaves it that is cut off in its body."""
    body, task.run = task.run, raising(SystemExit())
    with pytest.raises(SystemExit):
        task.apply(args)
    task.run = body


def raising(error):
    def run(*args, **kwargs):
        raise error

    return run


def test_resolved_as_failed_it_compensates_and_does_nothing_else(app, ledger):
    """A message made for it goes on with the compensation; a second one finds nothing to do."""
    # Given
    order = saga(app, ledger, failures=0, idempotency_on_interrupted="unknown")
    app.tasks[f"{app.main}.release"].run = ledger.does("release")
    store, key = environment_of(app).store, key_of(order, 1)
    body = order.run

    def dies(*args):
        body(*args)
        raise SystemExit

    order.run = dies
    with pytest.raises(SystemExit):
        order.apply((1,))
    order.run = body
    assert isinstance(order.apply((1,)).result, OutcomeUnknown)
    failure = order.apply((2,), throw=False)  # any stored failure will do
    assert failure.get()
    packed = (
        b"\x02\x01" + b'{"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"}'
    )
    ledger.clear()
    # When
    assert store.resolve(key, Resolve(State.FAILED, packed, 60_000, compensate=True))
    answer = order.apply((1,))
    # Then
    assert isinstance(answer.result, ValueError)
    assert ledger == [("refund", "ch-1", "why"), ("release", {"seat": 7})]
    assert not store.resolve(key, Resolve(State.RELEASED, b"", 60_000))


def test_a_step_asked_for_twice_in_one_run_is_an_error(app, ledger):
    """In a loop, the second would silently be skipped."""

    # Given
    @app.task(base=IdempotentTask, bind=True)
    def task(self, number):
        for _ in range(2):
            self.idempotency.step("send", ledger.does("send"))

    # Then
    with pytest.raises(ValueError, match="in a loop"):
        task.apply((1,), throw=True)


@pytest.mark.parametrize("name", ["", None, "x" * 201, 7])
def test_a_step_needs_a_name(app, ledger, name):
    """Of bounded length."""

    # Given
    @app.task(base=IdempotentTask, bind=True)
    def task(self, number):
        self.idempotency.step(name, ledger.does("send"))

    # Then
    with pytest.raises(ValueError, match="step's name"):
        task.apply((1,), throw=True)
    assert not ledger


def test_a_compensation_is_a_signature_of_a_known_task(app, ledger):
    """Any process must be able to run it; the step isn't begun otherwise."""

    # Given
    @app.task(base=IdempotentTask, bind=True)
    def task(self, undo):
        self.idempotency.step("charge", ledger.does("charge"), compensate=undo_of[undo])

    undo_of = {1: print, 2: app.signature("nobody.knows")}
    # Then
    for which in undo_of:
        with pytest.raises(TypeError, match="compensate="):
            task.apply((which,), throw=True)
    assert not ledger


@pytest.mark.parametrize(
    "value",
    [
        UUID(int=7),
        datetime(2026, 12, 1, 9, 30, tzinfo=timezone.utc),
        date(2026, 12, 1),
        Decimal("1.10"),
        b"\xff",
        {"a": [1, {"b": None}]},
        [UUID(int=7)],
    ],
)
def test_a_compensation_gets_the_arguments_that_it_was_given(app, ledger, value):
    """What Celery's JSON keeps is kept, also for another process."""

    # Given
    @app.task
    def undo(*args, **kwargs):
        ledger.append((args, kwargs))

    @app.task(base=IdempotentTask, bind=True)
    def task(self, number):
        self.idempotency.step("charge", str, compensate=undo.si(value, why=value))
        raise ValueError

    # When
    task.apply((1,))
    # Then
    assert ledger == [((value,), {"why": value})]


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        (({1, 2},), {}, "argument 1 of 'undo': .*set"),
        ((1, [object()]), {}, "argument 2 of 'undo': .*object"),
        (({1: "a"},), {}, "argument 1 of 'undo': a key of a dict is 1"),
        ((), {"lines": [{"a": {2: "b"}}]}, "argument 'lines' of 'undo': a key of a dict is 2"),
    ],
)
def test_a_compensation_that_cannot_be_kept_is_named_before_its_step(
    app, ledger, args, kwargs, said
):
    # Given
    @app.task(name="undo")
    def undo(*args, **kwargs):
        pass

    @app.task(base=IdempotentTask, bind=True)
    def task(self, number):
        compensate = undo.si(*args, **kwargs)
        self.idempotency.step("charge", ledger.does("charge"), compensate=compensate)

    # Then
    with pytest.raises(TypeError, match=f"step 'charge': compensate= can't be kept: {said}"):
        task.apply((1,), throw=True)
    assert not ledger


def test_a_step_whose_result_was_not_kept_is_still_not_done_again(app, ledger):
    """The later run gets an error instead of a second effect."""

    # Given
    @app.task(base=IdempotentTask, bind=True, idempotency_max_result_size=10)
    def task(self, number):
        self.idempotency.step("big", ledger.does("big", "x" * 100))
        raise ValueError

    # When
    first, second = task.apply((1,)), task.apply((1,))
    # Then
    assert isinstance(first.result, ValueError)
    assert isinstance(second.result, ResultNotKept)
    assert ledger == [("big",)]


class Opaque:
    """No serializer takes it."""


UNKEPT = {"too large": "x" * 500, "no serializer": Opaque()}


def big_saga(app, ledger, result, dies=False):
    """Pay, book (whose result isn't kept), reserve, then fail; or die there first."""
    dying = [False, dies]
    names = ("refund", "unbook", "free")
    refund, unbook, free = (
        app.task(name=f"{app.main}.{name}")(ledger.does(name)) for name in names
    )

    @app.task(base=IdempotentTask, bind=True, idempotency_max_result_size=400)
    def order(self, number, immutable):
        ask = self.idempotency
        ask.step("pay", ledger.does("pay", "ch-1"), compensate=refund.s())
        undo = unbook.si(number) if immutable else unbook.s()
        ask.step("book", ledger.does("book", result), compensate=undo)
        ask.step("reserve", ledger.does("reserve", 7), compensate=free.s())
        if dying.pop():
            raise SystemExit
        raise ValueError("no mail")

    return order


DONE = [("pay",), ("book",), ("reserve",)]


@pytest.mark.parametrize("result", UNKEPT.values(), ids=UNKEPT)
def test_a_result_that_is_not_kept_stops_no_compensation(app, ledger, result):
    """In the run that has it, its compensation gets it; then the call fails as the body did."""
    # Given
    order = big_saga(app, ledger, result)
    # When
    answer = order.apply((1, False))
    # Then
    assert isinstance(answer.result, ValueError)
    assert ledger == [*DONE, ("free", 7), ("unbook", result), ("refund", "ch-1")]
    assert order.idempotency_record(1, False).state is State.RELEASED


@pytest.mark.parametrize("result", UNKEPT.values(), ids=UNKEPT)
def test_an_immutable_compensation_runs_without_its_steps_result(app, ledger, result):
    """In a later run too, which has no more than what was kept."""
    # Given
    order = big_saga(app, ledger, result, dies=True)
    with pytest.raises(SystemExit):
        order.apply((1, True))
    ledger.clear()
    # When
    answer = order.apply((1, True))
    # Then
    assert isinstance(answer.result, ResultNotKept)
    assert ledger == [("free", 7), ("unbook", 1), ("refund", "ch-1")]
    assert order.idempotency_record(1, True).state is State.RELEASED


@pytest.mark.parametrize("result", UNKEPT.values(), ids=UNKEPT)
def test_what_cannot_be_undone_for_want_of_its_result_is_said(app, ledger, result, caplog):
    """All the rest is undone first; only then is the outcome unknown."""
    # Given
    order = big_saga(app, ledger, result, dies=True)
    with pytest.raises(SystemExit):
        order.apply((1, False))
    ledger.clear()
    # When
    answer = order.apply((1, False))
    # Then
    assert isinstance(answer.result, OutcomeUnknown)
    assert "not undone: 'book'" in str(answer.result)
    assert "not undone: 'book'" in caplog.text
    assert "idempotency resolve --failed`: docs/unknown-outcomes.rst" in caplog.text
    assert ledger == [("free", 7), ("refund", "ch-1")]
    assert order.idempotency_record(1, False).state is State.UNKNOWN
    # When a person has undone it, and says so
    environment, name = environment_of(app), key_of(order, 1, False)
    view = records.show(environment.store, environment.prefix, name).view
    published = settle.resolve(app, environment, view, State.FAILED, "unbooked by hand", "test")
    # Then nothing is left to undo
    assert published is None
    assert order.idempotency_record(1, False).state is State.RELEASED
    assert len(ledger) == 2


def test_a_soft_time_limit_after_a_step_does_not_lose_it(app, ledger, monkeypatch):
    """It comes while the result is packed, the effect made: the step is undone like the others."""
    # Given
    undo = app.task(name=f"{app.main}.undo")(ledger.does("undo"))
    limits = [SoftTimeLimitExceeded(10)]
    pack = Codec.pack

    def cut(*args):
        if limits:
            raise limits.pop()
        return pack(*args)

    monkeypatch.setattr(Codec, "pack", cut)

    @app.task(base=IdempotentTask, bind=True)
    def order(self, number):
        self.idempotency.step("pay", ledger.does("pay", "ch-1"), compensate=undo.s())

    # When
    answer = order.apply((1,))
    # Then
    assert isinstance(answer.result, SoftTimeLimitExceeded)
    assert ledger == [("pay",), ("undo", "ch-1")]


def test_without_a_claim_a_step_is_just_done(app, ledger):
    """In a direct call nothing is recorded."""

    # Given
    @app.task(base=IdempotentTask, bind=True)
    def task(self, number):
        return self.idempotency.step("charge", ledger.does("charge", 5))

    # Then
    assert task(1) == 5
    assert task(1) == 5
    assert len(ledger) == 2


@pytest.mark.parametrize(
    ("answer", "result", "runs"),
    [("it happened", "it happened", 0), (RERUN, "ran", 1)],
)
@pytest.mark.parametrize("policy", ["rerun", "unknown"])
def test_reconcile_is_asked_first_after_an_interruption(app, ledger, policy, answer, result, runs):
    """Under either policy: what it returns is recorded, or the body runs."""

    # Given
    def happened(number):
        ledger.append(("asked", number))
        return answer

    @app.task(
        base=IdempotentTask, idempotency_reconcile=happened, idempotency_on_interrupted=policy
    )
    def task(number):
        ledger.append("ran")
        return "ran"

    cut_off(task, 1)
    # When
    first, second = task.apply((1,)).get(), task.apply((1,)).get()
    # Then
    assert first == second == result
    assert ledger.count(("asked", 1)) == 1
    assert ledger.count("ran") == runs


@pytest.mark.parametrize("wrong", [lambda: 1, lambda number: 1, lambda self, number: 1])
def test_a_reconcile_that_does_not_take_the_arguments_is_refused(app, wrong):
    """When the task is bound: after a crash is the wrong time to learn of it."""

    # Given
    @app.task(base=IdempotentTask, name="task", idempotency_reconcile=wrong)
    def task(number, amount=0):
        """Do nothing."""

    # When
    with pytest.raises(ConfigurationError) as caught:
        task.delay(1)
    # Then
    assert str(caught.value) == (
        "task 'task': idempotency_reconcile: the callable must take the task's arguments, "
        "(number, amount), or (*args, **kwargs)"
    )


@pytest.mark.parametrize(
    "right",
    [
        lambda amount, number: (number, amount),
        lambda self, number, amount: (number, amount),
        lambda one, other: (one, other),
        lambda *args: args,
        lambda number, **rest: (number, rest["amount"]),
    ],
)
@pytest.mark.parametrize(("args", "kwargs"), [((1,), {}), ((), {"number": 1, "amount": 0})])
def test_a_reconcile_is_called_as_a_key_function_is(app, right, args, kwargs):
    """With the defaults filled in, by name where the names are the task's."""

    # Given
    @app.task(base=IdempotentTask, idempotency_reconcile=right)
    def task(number, amount=0):
        return "ran"

    cut_off(task, 1)
    # Then
    assert task.apply(args, kwargs).get() == (1, 0)


@pytest.mark.parametrize("number", [1, "an order, " * 18])
def test_a_record_that_says_where_it_was_traced_is_resolved_as_failed(
    app, ledger, monkeypatch, number
):
    """The message that undoes its steps has its key and label, and nothing of the trace."""
    # Given
    monkeypatch.setattr(observers, "span_name", lambda: f"{1:032x}-{2:016x}")
    how = {"idempotency_on_interrupted": "unknown", "idempotency_key": ("number",)}
    order = saga(app, ledger, failures=0, **how)
    body, order.run = order.run, lambda *args: (body(*args), cut())

    def cut():
        raise SystemExit

    with pytest.raises(SystemExit):
        order.apply((number,))
    assert isinstance(order.apply((number,)).result, OutcomeUnknown)
    ledger.clear()
    sent = {}
    monkeypatch.setattr(app, "send_task", lambda task, **fields: sent.update(fields))
    environment, name = environment_of(app), key_of(order, number)
    view = records.show(environment.store, environment.prefix, name).view
    # When
    settle.resolve(app, environment, view, State.FAILED, "refunded", "test")
    answer = order.apply((), task_id=sent["task_id"], headers=sent["headers"])
    # Then
    assert str(answer.result) == "resolved as failed: refunded"
    assert ledger == [("refund", "ch-1", "why"), ("release", {"seat": 7})]
    assert sent["headers"][OWN].get("label", "") == order._call_key((number,), {}, ...).label


@pytest.mark.parametrize("answer", [UNKNOWN, LookupError("gateway")])
def test_what_reconcile_cannot_tell_is_unknown(app, ledger, answer):
    """Its own error, too: a person settles it, and nothing runs until then."""

    # Given
    def happened(self, number):
        assert self.name.endswith("task")
        if isinstance(answer, Exception):
            raise answer
        return answer

    @app.task(base=IdempotentTask, idempotency_reconcile=happened)
    def task(number):
        ledger.append("ran")

    cut_off(task, 1)
    # When
    results = [task.apply((1,)).result for _ in range(2)]
    # Then
    assert [type(result) for result in results] == [OutcomeUnknown, OutcomeUnknown]
    assert task.idempotency_record(1).state is State.UNKNOWN
    assert not ledger


def hidden(function):
    """An async function that nobody can tell from a plain one before it is called."""
    return lambda *args: function(*args)


async def never(*args):
    """Nobody awaits it."""
    raise AssertionError


def test_an_async_reconcile_that_nobody_runs_cannot_tell(app, ledger):
    """Its coroutine is no result, and no reason to run the body again."""

    # Given
    @app.task(base=IdempotentTask, idempotency_reconcile=hidden(never))
    def task(number):
        ledger.append("ran")

    cut_off(task, 1)
    # When
    with pytest.raises(OutcomeUnknown, match="async"):
        task.apply((1,), throw=True)
    # Then
    assert not ledger


def test_an_async_step_is_refused(app, ledger):
    """It has not run, and would be recorded as done."""

    # Given
    @app.task(base=IdempotentTask, bind=True)
    def task(self, number):
        self.idempotency.step("charge", never)

    # When
    with pytest.raises(ConfigurationError, match="step 'charge' returned an awaitable"):
        task.apply((1,), throw=True)
    # Then
    assert task.idempotency_record(1).state is State.RELEASED
    assert not environment_of(app).store.steps(key_of(task, 1))


def test_an_async_compensation_is_refused_before_its_step(app, ledger):
    """It would be called when all is lost, and undo nothing."""
    # Given
    app.task(never, name=f"{app.main}.undo")
    undo = app.signature(f"{app.main}.undo")

    @app.task(base=IdempotentTask, bind=True)
    def task(self, number):
        self.idempotency.step("charge", ledger.does("charge"), compensate=undo)

    # When
    with pytest.raises(TypeError, match="whose body is async"):
        task.apply((1,), throw=True)
    # Then
    assert not ledger


def test_reconcile_is_not_asked_where_nothing_was_cut_off(app, ledger):
    """It costs an undisturbed task nothing."""

    # Given
    @app.task(base=IdempotentTask, idempotency_reconcile=ledger.does("asked"))
    def task(number):
        return "ran"

    # Then
    assert task.apply((1,)).get() == "ran"
    assert not ledger


def test_a_step_that_cannot_be_read_stops_the_run_before_its_body(app, ledger, monkeypatch):
    """What it stands for may have happened: nothing is done that could repeat it."""

    # Given
    @app.task(base=IdempotentTask, bind=True)
    def task(self, number):
        ledger.append("began")
        self.idempotency.step("charge", ledger.does("charge"))
        raise ValueError("no mail")

    task.apply((1,))
    assert ledger == ["began", ("charge",)]
    store = environment_of(app).store
    claim = store.claim

    def spoiled(*args):
        verdict = claim(*args)
        return verdict._replace(steps=dict.fromkeys(verdict.steps, b"spoiled"))

    monkeypatch.setattr(store, "claim", spoiled)
    # When
    result = task.apply((1,)).result
    # Then
    assert type(result) is RecordCorrupt
    assert ledger == ["began", ("charge",)]


def test_a_packed_step_is_read_as_it_was_written():
    """And nothing else is read as a step."""
    step = Step(StepState.DONE, 3, b"outcome", b"{}")
    assert Step.unpack(step.pack()) == step
    for cut in range(9):
        with pytest.raises(RecordCorrupt):
            Step.unpack(step.pack()[:cut])


def test_a_record_says_that_it_has_steps():
    """In its packed form, too."""
    record = Record(State.RUNNING, 5, has_steps=True)
    assert Record.unpack(record.pack()) == record


def owing(app, ledger, store, error):
    """A task with one step, whose record fails once, and that asks for a retry then."""
    write, left = store.step, [error]

    def step(*args):
        if left:
            raise left.pop()
        return write(*args)

    store.step = step

    @app.task(base=IdempotentTask, bind=True, max_retries=3)
    def order(self, number):
        try:
            self.idempotency.step("charge", ledger.does("charge", "ch-1"))
        except SoftTimeLimitExceeded as exc:
            raise self.retry(countdown=0, exc=exc) from exc
        if not self.request.retries:
            raise self.retry(countdown=0)
        return "ok"

    return order


@pytest.mark.parametrize("error", [StoreUnavailable("away"), SoftTimeLimitExceeded(10)])
def test_a_step_that_could_not_be_recorded_at_once_is_recorded_before_the_run_ends(
    app, ledger, error
):
    """Else the retry would be recorded first, the step refused, and done again."""
    # Given
    order = owing(app, ledger, environment_of(app).store, error)
    # When
    answer = order.apply((1,))
    # Then
    assert answer.get() == "ok"
    assert ledger == [("charge",)]


def test_a_step_that_no_run_asks_for_any_more_is_told_of(app, ledger, caplog):
    """A release that renames a step repeats its effect in calls that are under way: it is told."""
    # Given
    names = ["charge", "charge-card"]

    @app.task(base=IdempotentTask, bind=True)
    def task(self, number):
        self.idempotency.checkpoint(1)
        self.idempotency.step(names.pop(0), ledger.does("charge"))
        if names:
            raise ValueError

    # When
    task.apply((1,))
    assert "did not ask for it" not in caplog.text
    task.apply((1,)).get()
    # Then
    told = [record.getMessage() for record in caplog.records if "did not ask" in record.msg]
    assert len(told) == 1
    assert "step 'charge' was finished" in told[0]


def test_a_run_that_asks_for_all_of_them_tells_nothing(app, ledger, caplog):
    """In whichever order, and with steps that are new."""
    # Given
    orders = [["one", "two"], ["two", "new", "one"]]

    @app.task(base=IdempotentTask, bind=True)
    def task(self, number):
        for name in orders.pop(0):
            self.idempotency.step(name, ledger.does(name))
        if orders:
            raise ValueError

    # When
    task.apply((1,))
    task.apply((1,)).get()
    # Then
    assert ledger == [("one",), ("two",), ("new",)]
    assert "did not ask for it" not in caplog.text
