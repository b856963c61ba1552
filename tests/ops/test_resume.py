"""A call is run again from one of its steps on, by a command."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from celery_idempotent import IdempotentTask, State, StoreUnavailable, UnknownStep
from celery_idempotent.core.step import CHECKPOINT, Step, StepState
from celery_idempotent.ops import resume
from celery_idempotent.ops.lookup import look_up
from celery_idempotent.settings import environment_of
from celery_idempotent.testing import Message, deliver
from celery_idempotent.testing.deliveries import published_by, results_of
from celery_idempotent.testing.servers import RedisServer
from tests.support.commands import Commands, Done

STEPS = ("reserve", "charge", "mail")


class Shop:
    """A task of three steps, whose code is wrong until it is mended."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        #: What its steps did, and the step that fails.
        self.did: list[Any] = []
        self.wrong: str | None = None
        self.charge = self.task("shop.charge")

    def task(self, name: str, **options: Any) -> Any:
        def body(task: Any, order: int, price: int = 1) -> int:
            for step in STEPS:
                task.idempotency.step(step, self._do, step)
            return price

        options = {"idempotency_key": "order:{order}", "shared": False, **options}
        return self.keep(self.app.task(base=IdempotentTask, bind=True, name=name, **options)(body))

    def keep(self, task: Any) -> Any:
        """Have its results kept where ``deliver`` puts them."""
        task.backend = results_of(self.app)
        return task

    def _do(self, step: str) -> str:
        if step == self.wrong:
            raise ValueError(step)
        self.did.append(step)
        return step

    def view(self) -> Any:
        (view,) = look_up(self.app, environment_of(self.app), "order:42")
        return view

    def steps(self) -> dict[str, Step]:
        packed = environment_of(self.app).store.steps(self.view().name)
        return {name: Step.unpack(step) for name, step in packed.items()}


@pytest.fixture(params=["memory", "redis"])
def app(request: pytest.FixtureRequest, session_server: RedisServer) -> Iterator[Celery]:
    memory = f"memory://{uuid.uuid4().hex}"
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(
        result_extended=True,
        idempotency_store_url=session_server.url(4) if request.param == "redis" else memory,
        idempotency_key_prefix=f"resume{uuid.uuid4().hex}",
    )
    yield app
    app.close()


@pytest.fixture
def shop(app: Celery) -> Shop:
    return Shop(app)


Run = Callable[..., tuple[Done, list[Message]]]


@pytest.fixture
def run(app: Celery, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command, and gives what it published."""
    commands = Commands(app, capsys)

    def run(*args: str) -> tuple[Done, list[Message]]:
        published: list[Message] = []
        with published_by(app, published):
            return commands("resume", *args), published

    return run


def test_a_call_runs_again_from_a_step_on(shop: Shop, run: Run) -> None:
    """What is earlier is not done again; the arguments come from the result backend."""
    # Given
    first = deliver(shop.charge, (42,), {"price": 7})
    # When
    done, (message,) = run("order:42", "--from", "charge", "--yes")
    # Then
    assert done.lines[0]["task_id"] == message.task_id != first.message.task_id
    assert (done.lines[0]["kept"], done.lines[0]["dropped"]) == (["reserve"], ["charge", "mail"])
    assert (list(message.args), message.kwargs) == ([42], {"price": 7})
    assert message.deliver().get() == 7
    assert shop.did == [*STEPS, "charge", "mail"]
    record = shop.charge.idempotency_record(42)
    assert (record.state, record.owner_id) == (State.SUCCEEDED, message.task_id)
    # Then it can be done again: the new call is the one that is asked for its arguments
    _, (message,) = run("order:42", "--from", "mail", "--yes")
    assert message.deliver().get() == 7
    assert shop.did[5:] == ["mail"]


def test_a_failed_call_goes_on_behind_its_finished_steps(shop: Shop, run: Run) -> None:
    """Without a step nothing is dropped."""
    # Given
    shop.wrong = "mail"
    assert deliver(shop.charge, (42,)).state == "FAILURE"
    # Then its steps live as long as its window
    ttl = environment_of(shop.app).store.ttl(shop.view().name)
    assert ttl is not None
    assert ttl > 80_000
    # When
    shop.wrong = None
    _, (message,) = run("order:42", "--yes")
    # Then
    assert message.deliver().get() == 1
    assert shop.did == [*STEPS]


def test_a_step_that_is_not_recorded_is_an_error(shop: Shop, run: Run) -> None:
    """It has a type, and names those that are; nothing is changed."""
    # Given
    deliver(shop.charge, (42,))
    before = shop.charge.idempotency_record(42)
    # When
    done, published = run("order:42", "--from", "pay", "--yes")
    # Then
    assert (done.code, published) == (1, [])
    assert "Recorded: step 'reserve', step 'charge', step 'mail'" in done.err
    assert shop.charge.idempotency_record(42) == before
    with pytest.raises(UnknownStep):
        resume.plan(shop.app, environment_of(shop.app), shop.view(), "pay")


def test_a_dry_run_does_nothing(shop: Shop, run: Run) -> None:
    """It says what would stay, what would go, and what the task would be called with."""
    # Given
    deliver(shop.charge, (42,))
    before = shop.charge.idempotency_record(42)
    # When
    shown, _ = run("order:42", "--from", "charge", "--dry-run", "--text")
    asked, _ = run("order:42", "--from", "charge", "--dry-run")
    unasked, published = run("order:42", "--from", "charge")
    # Then
    assert "kept: step 'reserve'" in shown.err
    assert "dropped: step 'charge', step 'mail'" in shown.err
    assert "called with [42] {}" in shown.err
    assert asked.lines[0]["publishes"] is True
    assert (unasked.code, published) == (2, [])
    assert shop.charge.idempotency_record(42) == before


def test_a_repair_that_is_not_published_changes_nothing(
    shop: Shop, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To ask for it again does all of it."""
    # Given
    deliver(shop.charge, (42,))

    def away(*_: Any, **__: Any) -> None:
        raise OSError("no broker")

    # When
    monkeypatch.setattr(resume.settle, "publish", away)
    done, _ = run("order:42", "--from", "mail", "--yes")
    monkeypatch.undo()
    # Then
    assert done.code == 1
    assert "nothing was changed" in done.err
    assert set(shop.steps()) == {*STEPS}
    # When
    _, (message,) = run("order:42", "--from", "mail", "--yes")
    # Then
    assert message.deliver().get() == 1
    assert shop.did == [*STEPS, "mail"]


def test_a_repair_whose_message_is_lost_is_asked_for_again(shop: Shop, run: Run) -> None:
    """The arguments are known as before. If the first message comes after all, it is answered."""
    # Given
    deliver(shop.charge, (42,), {"price": 7})
    _, (lost,) = run("order:42", "--from", "mail", "--yes")
    # When
    _, (message,) = run("order:42", "--yes")
    # Then
    assert (list(message.args), message.kwargs) == ([42], {"price": 7})
    assert [message.deliver().get(), lost.deliver().get()] == [7, 7]
    assert shop.did == [*STEPS, "mail"]


def test_a_repair_leaves_alone_what_has_changed_since(shop: Shop, run: Run) -> None:
    """Its message finds the outcome of a run that came before it, and is answered with that."""
    # Given
    shop.wrong = "mail"
    deliver(shop.charge, (42,))
    store, shop.wrong = environment_of(shop.app).store, None
    _, (message,) = run("order:42", "--from", "charge", "--yes")
    # When another call comes first, and the message after it
    assert deliver(shop.charge, (42,)).get() == 1
    # Then
    assert message.deliver().get() == 1
    assert shop.did == ["reserve", "charge", "charge", "mail"]
    assert set(shop.steps()) == {*STEPS}
    assert store.get(shop.view().name) is not None


def test_a_repair_is_done_by_its_message_where_the_command_could_not(
    shop: Shop, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the store, too; it repairs once, and its copies are answered."""
    # Given
    deliver(shop.charge, (42,))
    store = environment_of(shop.app).store

    def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("away")

    monkeypatch.setattr(type(store), "rewind", away)
    done, (message,) = run("order:42", "--from", "mail", "--yes")
    assert done.code == 0
    # When
    (again,) = message.deliver().published
    monkeypatch.undo()
    # Then
    assert set(shop.steps()) == {*STEPS}
    assert again.deliver().get() == 1
    assert shop.did == [*STEPS, "mail"]
    assert again.deliver(redelivered=True).get() == 1
    assert shop.did == [*STEPS, "mail"]


@pytest.mark.parametrize("knows", [True, False])
def test_what_has_changed_since_it_was_looked_at_is_left(
    shop: Shop, app: Celery, knows: bool
) -> None:
    """Nothing is published, and nothing is dropped."""
    # Given
    app.conf.result_extended = knows
    deliver(shop.charge, (42,))
    environment, view = environment_of(app), shop.view()
    old = resume.plan(app, environment, view, "mail")
    assert (old.arguments is not None) is knows
    environment.store.rewind(view.name, old.record.token, STEPS, 60_000)
    published: list[Message] = []
    # When
    with published_by(app, published), pytest.raises(resume.NotResumable, match="has changed"):
        resume.resume(app, environment, old, "a test")
    # Then
    assert published == []
    assert set(shop.steps()) == {*STEPS}


def test_arguments_that_nobody_knows_are_given(shop: Shop, run: Run, app: Celery) -> None:
    """Else the key is free behind the steps that stay, and the person calls the task."""
    # Given
    app.conf.result_extended = False
    deliver(shop.charge, (42,))
    # When
    done, published = run("order:42", "--from", "mail", "--yes", "--text")
    again, _ = run("order:42", "--yes")
    # Then
    assert (done.code, published) == (0, [])
    assert "call the task again with the same key" in done.out
    assert again.code == 1
    assert "result_extended" in again.err
    # When
    _, (message,) = run("order:42", "--args", "[42]", "--kwargs", '{"price": 8}', "--yes")
    # Then
    assert message.deliver().get() == 8
    assert shop.did == [*STEPS, "mail"]


@pytest.mark.parametrize("options", [("--args", "{}"), ("--kwargs", "[]"), ("--args", "no")])
def test_arguments_are_json(shop: Shop, run: Run, options: tuple[str, str]) -> None:
    """A list, and an object."""
    deliver(shop.charge, (42,))
    done, published = run("order:42", "--from", "mail", *options, "--yes")
    assert (done.code, published) == (2, [])


def test_a_call_that_is_under_way_is_left_alone(shop: Shop, run: Run) -> None:
    """Whether it runs, or waits for its retry."""
    # Given
    asked: list[Done] = []

    def body(task: Any, order: int) -> None:
        task.idempotency.step("first", list)
        asked.append(run("order:42", "--from", "first", "--yes")[0])
        asked.append(run("order:42", "--yes")[0])
        raise task.retry(countdown=60)

    options = {"name": "shop.slow", "idempotency_key": "order:{order}", "shared": False}
    slow = shop.keep(shop.app.task(base=IdempotentTask, bind=True, **options)(body))
    # When
    first = deliver(slow, (42,))
    asked.append(run("order:42", "--from", "first", "--yes")[0])
    # Then
    assert first.state == "RETRY"
    assert [done.code for done in asked] == [1, 1, 1]
    assert "is running, and is held for" in asked[0].err
    assert "its retry is due" in asked[2].err


def test_what_has_an_outcome_is_not_only_published(shop: Shop, run: Run) -> None:
    """It would answer the new call, and nothing would run."""
    deliver(shop.charge, (42,))
    done, published = run("order:42", "--yes")
    assert (done.code, published) == (1, [])
    assert "name a step" in done.err


def test_calls_that_run_in_their_turn_are_not_resumed(shop: Shop, run: Run) -> None:
    """Each of them begins its own steps."""
    # Given
    task = shop.task("shop.turn", idempotency_ttl=0, idempotency_after_wait="run")
    shop.wrong = "mail"
    deliver(task, (42,))
    # Then
    done, _ = run("shop.turn:order:42", "--from", "charge", "--yes")
    assert done.code == 1
    assert "in their turn" in done.err


def test_later_duplicates_are_compared_with_the_first_call(shop: Shop, run: Run) -> None:
    """An explicit key stays the key of its arguments."""
    # Given
    name = "shop.explicit"
    task = shop.task(name, idempotency_key=None)
    deliver(task, (1,), idempotency_key="order:42")
    _, (message,) = run("order:42", "--from", "mail", "--yes")
    message.deliver().get()
    # Then
    assert deliver(task, (1,), idempotency_key="order:42").get() == 1
    assert deliver(task, (2,), idempotency_key="order:42").state == "FAILURE"


class Loop:
    """A task with a loop between two steps, and a step for each item."""

    def __init__(self, shop: Shop) -> None:
        self.did: list[Any] = []

        def body(task: Any, order: int) -> None:
            ask = task.idempotency
            ask.step("open", self.did.append, "open")
            for item in ask.resume("items", range(4), every=1):
                ask.step(f"item-{item}", self.did.append, item)
            ask.step("close", self.did.append, "close")

        options = {"name": "shop.loop", "idempotency_key": "order:{order}", "shared": False}
        self.task = shop.keep(shop.app.task(base=IdempotentTask, bind=True, **options)(body))


@pytest.mark.parametrize(
    ("start", "again"),
    [
        ("close", ["close"]),
        ("item-2", [2, 3, "close"]),
        ("open", ["open", 0, 1, 2, 3, "close"]),
    ],
)
def test_a_checkpoint_has_its_place_among_the_steps(
    shop: Shop, run: Run, start: str, again: list[Any]
) -> None:
    """It stays for what came after it, and goes for what came before its latest cursor."""
    # Given
    loop = Loop(shop)
    deliver(loop.task, (42,))
    loop.did.clear()
    # When
    _, (message,) = run("order:42", "--from", start, "--yes")
    # Then
    assert message.deliver().state == "SUCCESS"
    assert loop.did == again


@pytest.mark.parametrize("name", ["items", "@items"])
def test_a_loop_is_named_as_in_the_code(shop: Shop, run: Run, name: str) -> None:
    """It begins with its first item; what had a step of its own before that is done."""
    # Given
    loop = Loop(shop)
    deliver(loop.task, (42,))
    # When
    done, _ = run("order:42", "--from", name, "--yes")
    # Then
    assert done.lines[0]["dropped"] == ["@items", "close"]


def test_a_checkpoint_of_an_older_release_has_no_place(shop: Shop, run: Run) -> None:
    """It may have come after any step, so it goes with each."""
    # Given
    deliver(shop.charge, (42,))
    environment, view = environment_of(shop.app), shop.view()
    record = environment.store.get(view.name)
    assert record is not None
    steps = {name: step.pack() for name, step in shop.steps().items()}
    old = Step(StepState.DONE, 0, steps["mail"][7:]).pack()
    environment.store.put(view.name, record._replace(token=record.token + 1), 0, 100_000, {
        **steps, f"{CHECKPOINT}items": old
    })  # fmt: skip
    # When
    done, _ = run("order:42", "--from", "mail", "--yes")
    # Then
    assert done.lines[0]["dropped"] == ["mail", "@items"]
