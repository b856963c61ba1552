"""No task is silently plain: what would run past the guard, or before it, is refused."""

import asyncio
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, Task, signals
from celery.app.trace import build_tracer
from celery.worker.request import Request

from celery_idempotent import ConfigurationError, IdempotentTask, State
from celery_idempotent.worker.boot import IdempotencyStep, NamesStep, check_names
from celery_idempotent.worker.request import IdempotentRequest


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Celery:
    """An app that nobody shares."""
    app = Celery(f"checks-{id(request)}", broker="memory://", backend="cache+memory://")
    app.conf.update(idempotency_store_url=f"memory://{uuid4().hex}")
    app.task = functools.partial(app.task, shared=False)
    return app


@pytest.fixture
def ran() -> list[Any]:
    """What the bodies did."""
    return []


def deliver(task: Any, *args: Any) -> Any:
    """Have a worker's tracer run one delivery; give the state it leaves and what it answers."""
    if task.__trace__ is None:
        task.__trace__ = build_tracer(task.name, task, app=task.app)
    task_id = uuid4().hex
    request = {"id": task_id, "retries": 0, "delivery_info": {}, "hostname": "h"}
    answer = task.__trace__(task_id, list(args), {}, request)
    if answer.info is None:
        return "SUCCESS", answer.retval
    return answer.info.state, answer.info.retval


def nothing(order: int) -> None:
    """Do nothing."""


# --- bodies that have not run when they return ---------------------------------------------------


async def _async(order: int) -> int:
    return order


async def _async_generator(order: int) -> Any:
    yield order


def _generator(order: int) -> Any:
    yield order


class _Object:
    async def __call__(self, order: int) -> int:
        return order


@pytest.mark.parametrize("body", [_async, _async_generator, _generator])
@pytest.mark.parametrize("bind", [False, True])
def test_a_body_that_does_not_run_when_it_is_called_is_refused(
    app: Celery, body: Callable[..., Any], bind: bool
) -> None:
    """When the task is bound: what its call returns is not its result."""
    task = app.task(body, base=IdempotentTask, bind=bind, name="t", idempotency_key="o:{order}")
    with pytest.raises(ConfigurationError, match=r"task 't': its body is .* not run"):
        task.delay(1)


@pytest.mark.parametrize(
    "run", [_async, staticmethod(_async), functools.partial(_async, order=1), _Object()]
)
def test_so_is_that_of_a_class(app: Celery, run: Any) -> None:
    """However it is made."""
    kind = type("Charge", (IdempotentTask,), {"run": run, "name": "t"})
    with pytest.raises(ConfigurationError, match="async"):
        app.register_task(kind())


def test_an_async_call_of_a_base_is_refused(app: Celery) -> None:
    """Celery would take the coroutine for the result."""

    class Base(IdempotentTask):
        abstract = True

        async def __call__(self, *args: Any) -> Any:
            return super().__call__(*args)

    @app.task(base=Base, idempotency_key="o:{order}")
    def charge(order: int) -> None:
        """Do nothing."""

    with pytest.raises(ConfigurationError, match=r"Base\.__call__ is async"):
        charge.delay(1)


def test_a_plain_body_that_awaits_is_fine(app: Celery) -> None:
    """It has run when it returns."""

    @app.task(base=IdempotentTask, idempotency_key="o:{order}")
    def charge(order: int) -> int:
        return asyncio.run(_async(order))

    assert [deliver(charge, 1), deliver(charge, 1)] == [("SUCCESS", 1)] * 2


@pytest.mark.parametrize("body", [_async, _generator])
@pytest.mark.parametrize("stored", [False, True])
def test_a_hidden_one_is_refused_at_its_first_delivery(
    app: Celery, body: Callable[..., Any], stored: bool
) -> None:
    """Behind a decorator it can't be seen earlier; its key stays free, whatever is kept."""

    # Given
    @app.task(base=IdempotentTask, idempotency_key="o:{order}", idempotency_store_failures=stored)
    @functools.wraps(body)
    def charge(order: int) -> Any:
        return body(order)

    # When
    for _ in range(2):
        state, error = deliver(charge, 1)
        # Then
        assert (state, type(error)) == ("FAILURE", ConfigurationError)
        assert "which nobody runs" in str(error)
    assert charge.idempotency_record(1).state is State.RELEASED


def test_a_generator_that_a_body_made_is_its_result(app: Celery, ran: list[Any]) -> None:
    """The body has run: what the result backend makes of it is another question."""

    # Given
    @app.task(base=IdempotentTask, idempotency_key="o:{order}", ignore_result=True)
    def charge(order: int) -> Any:
        ran.append(order)
        return (it for it in ())

    # When
    deliver(charge, 1)
    # Then
    assert ran == [1]
    assert charge.idempotency_record(1).state is State.SUCCEEDED


# --- classes that pass by the guard --------------------------------------------------------------


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


def _helper(task: Any, args: Any) -> Any:
    return task.run(*args)


class _Runner:
    """A callable object in place of a method."""

    def __get__(self, task: Any, kind: Any = None) -> Any:
        return functools.partial(_helper_of_many, task)


def _helper_of_many(task: Any, *args: Any) -> Any:
    return task.run(*args)


class Decorated(Task):
    """Its ``__call__`` can't be read."""

    abstract = True

    @_counted
    def __call__(self, *args: Any) -> Any:
        return self.run(*args)


class Helped(Task):
    """Leaves the work to a function."""

    abstract = True

    def __call__(self, *args: Any) -> Any:
        return _helper(self, args)


class AsObject(Task):
    """Has an object for it."""

    abstract = True
    __call__ = _Runner()


class Skipping(Task):
    """Goes on with Celery's own, past whoever is next."""

    abstract = True

    def __call__(self, *args: Any) -> Any:
        return Task.__call__(self, *args)


BY_PASSES = [Decorated, Helped, AsObject, Skipping]


@pytest.mark.parametrize("passing", BY_PASSES)
@pytest.mark.parametrize("autoretry", [(), (Exception,)])
def test_a_call_that_passes_by_the_guard_fails_at_its_first_delivery(
    app: Celery, ran: list[Any], passing: type, autoretry: tuple[type, ...]
) -> None:
    """The body is not run, and nothing tries it again."""
    # Given
    base = type("Base", (passing, IdempotentTask), {"abstract": True})

    @app.task(base=base, idempotency_key="o:{order}", autoretry_for=autoretry)
    def charge(order: int) -> None:
        ran.append(order)

    # When
    state, error = deliver(charge, 1)
    # Then
    assert (state, type(error)) == ("FAILURE", ConfigurationError)
    assert passing.__name__ in str(error)
    with pytest.raises(ConfigurationError):
        charge.apply((1,), throw=True)
    assert not ran


@pytest.mark.parametrize("mode", ["off", "enforce", "shadow"])
@pytest.mark.parametrize("way", ["decorated", "helper"])
def test_one_that_reaches_the_guard_by_another_way_is_fine(
    app: Celery, ran: list[Any], mode: str, way: str
) -> None:
    """A decorator and a helper that go on to ``super().__call__``; direct calls run as ever."""

    # Given
    class Base(IdempotentTask):
        abstract = True

        if way == "decorated":

            @_counted
            def __call__(self, *args: Any) -> Any:
                return super().__call__(*args)
        else:

            def __call__(self, *args: Any) -> Any:
                return functools.partial(IdempotentTask.__call__, self)(*args)

    @app.task(base=Base, idempotency_key="o:{order}", idempotency_mode=mode)
    def charge(order: int) -> None:
        ran.append(order)

    # When
    answers = [deliver(charge, 1), deliver(charge, 1)]
    charge(2)
    charge.run(3)
    # Then
    assert [state for state, _ in answers] == ["SUCCESS"] * 2
    assert ran == ([1] if mode == "enforce" else [1, 1]) + [2, 3]


class PassingBy(Task):
    """Runs the body past the guard, as classes of other libraries do."""

    abstract = True

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)


def test_a_base_that_passes_by_the_guard_is_refused_when_the_task_is_bound(app: Celery) -> None:
    """The error names it."""

    class Base(PassingBy, IdempotentTask):
        abstract = True

    # When
    with pytest.raises(ConfigurationError, match=r"PassingBy.__call__ calls self\.run"):
        app.task(base=Base, idempotency_key="order:{order}")(nothing).bind(app)


def test_such_a_base_is_fine_below_a_class_that_calls_the_guard(
    app: Celery, ran: list[Any]
) -> None:
    """Then it isn't called, and what else it does stays: a lock at the enqueue, say."""

    # Given
    class Base(PassingBy, IdempotentTask):
        abstract = True

        def __call__(self, *args: Any) -> Any:
            return IdempotentTask.__call__(self, *args)

    @app.task(base=Base, idempotency_key="o:{order}")
    def charge(order: int) -> None:
        ran.append(order)

    # When
    answers = [deliver(charge, 1), deliver(charge, 1)]
    # Then
    assert [state for state, _ in answers] == ["SUCCESS"] * 2
    assert ran == [1]


def test_a_class_with_an_on_bound_of_its_own_is_guarded(app: Celery, ran: list[Any]) -> None:
    """It need not call anybody else's."""

    # Given
    class Base(IdempotentTask):
        abstract = True

        @classmethod
        def on_bound(cls, app: Celery) -> None:
            """Keep to itself."""

    @app.task(base=Base, idempotency_key="o:{order}")
    def charge(order: int) -> None:
        ran.append(order)

    # When
    deliver(charge, 1)
    deliver(charge, 1)
    # Then
    assert ran == [1]


class Batches(Task):
    """As celery-batches has it: it takes the messages before the pool sees them."""

    abstract = True

    def Strategy(self, task: Any, app: Any, consumer: Any) -> Any:  # noqa: N802
        """Collect them."""


@pytest.mark.parametrize("bases", [(IdempotentTask, Batches), (Batches, IdempotentTask)])
def test_a_task_that_takes_its_messages_by_itself_is_refused(
    app: Celery, bases: tuple[type, ...]
) -> None:
    """They would be called in batches, without any message of their own."""

    @app.task(base=type("Base", bases, {"abstract": True}), idempotency_key=("orders",))
    def charge(orders: list[Any]) -> None:
        """Do nothing."""

    with pytest.raises(ConfigurationError, match="Batches takes the messages"):
        charge.delay([])


# --- what a worker refuses to start with ---------------------------------------------------------


def start(step: type, app: Celery, pool: str = "celery.concurrency.prefork") -> None:
    """Have a worker of this app begin to start."""
    pool_cls = type("TaskPool", (), {"__module__": pool})
    parent = SimpleNamespace(app=app, pool_cls=pool_cls)
    step(parent).create(parent)


class OtherRequest(Request):
    """A project's own, for plain tasks."""


class OwnRequest(IdempotentRequest):
    """A project's own that is ours, too."""


@pytest.mark.parametrize("request_class", [OtherRequest, f"{__name__}:OtherRequest"])
def test_a_request_class_that_is_not_ours_is_refused(app: Celery, request_class: Any) -> None:
    """The parent would end no lost child's lease, and nobody would know why keys stay taken."""
    # Given
    app.conf.idempotency_store_url = "redis://127.0.0.1:1"

    @app.task(base=IdempotentTask, name="t", Request=request_class)
    def charge(order: int) -> None:
        """Do nothing."""

    app.finalize()
    # Then
    with pytest.raises(ConfigurationError, match=r"task 't': its Request.*IdempotentRequest"):
        start(IdempotencyStep, app)


def test_a_request_class_that_is_derived_from_ours_is_fine(app: Celery) -> None:
    """As is a plain task's, whatever it is."""
    # Given
    app.conf.idempotency_store_url = "redis://127.0.0.1:1"
    app.task(nothing, base=IdempotentTask, name="ours", Request=OwnRequest)
    app.task(nothing, name="plain", Request=OtherRequest)
    app.finalize()
    # Then
    start(IdempotencyStep, app)


def test_a_pool_in_which_nothing_would_be_guarded_is_refused(app: Celery) -> None:
    """celery-aio-pool: all deliveries have one request, which is known from the first one on."""
    app.conf.idempotency_store_url = "redis://127.0.0.1:1"
    with pytest.raises(ConfigurationError, match="celery_aio_pool"):
        start(IdempotencyStep, app, "celery_aio_pool.pool")


@pytest.mark.parametrize("name", ["idempotency_key", "idempotent_key"])
def test_an_option_of_ours_on_a_plain_task_is_refused(app: Celery, name: str) -> None:
    """By a worker, before it takes a message."""
    # Given
    app.task(nothing, name="t", **{name: "o:{order}"})
    # Then
    with pytest.raises(ConfigurationError, match=f"task 't': {name} is set"):
        start(NamesStep, app)


def test_plain_tasks_and_ours_are_told_apart(app: Celery) -> None:
    """Options of ours on a task of ours are right."""
    # Given
    app.task(nothing, name="plain", idempotent=True)
    app.task(nothing, name="ours", base=IdempotentTask, idempotency_ttl=60)
    # Then
    check_names(app)


def test_an_unknown_setting_is_refused_when_the_first_task_is_bound(app: Celery) -> None:
    """It would be ignored in silence: "rerun" for "unknown"."""
    # Given
    app.conf.idempotency_on_interupted = "unknown"
    task = app.task(nothing, name="t", base=IdempotentTask)
    # Then
    with pytest.raises(ConfigurationError, match="did you mean idempotency_on_interrupted"):
        task.delay(1)
    with pytest.raises(ConfigurationError, match="did you mean idempotency_on_interrupted"):
        start(NamesStep, Celery(f"other-{id(app)}", changes=dict(app.conf.changes)))


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        (
            "idempotency_store_url",
            "localhost:6379",
            "idempotency_store_url is wrong, and must be a",
        ),
        ("idempotency_on_running", "wiat", "this app: idempotency_on_running is 'wiat'"),
        ("idempotency_ttl", "a day", "this app: idempotency_ttl is 'a day'"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_published(
    app: Celery, setting: str, value: str, words: str
) -> None:
    """It is called the app's, as it stands there and not on the task."""
    # Given
    app.conf[setting] = value
    task = app.task(nothing, name="t", base=IdempotentTask)
    published: list[Any] = []

    def note(**message: Any) -> None:
        published.append(message)

    signals.before_task_publish.connect(note)
    # Then
    with pytest.raises(ConfigurationError, match=words):
        task.delay(1)
    assert not published


def test_a_class_may_name_its_parameters_and_result(app: Celery) -> None:
    """As type checkers want it; with Celery's older releases, too, whose own class takes none."""

    # Given
    class Charge(IdempotentTask[[int], str]):
        name = "typed"

        def run(self, order: int) -> str:
            return f"{order} is charged"

    # When
    task = app.register_task(Charge())
    # Then
    assert deliver(task, 1) == ("SUCCESS", "1 is charged")
