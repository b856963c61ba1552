"""The test kit: a wrong task is caught, a right one passes, and what is told of a run is so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import text

from celery_idempotent import IdempotencyKeyMismatch, IdempotentTask, OutcomeUnknown, State
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.sql.store import SqlStore
from celery_idempotent.testing import Crash, crash_points, deliver, memory_store
from celery_idempotent.testing import plugin as idempotent_plugin

pytest_plugins = ["pytester"]
#: Where the package is not installed there is no entry point that brings it.
idempotent_store = idempotent_plugin.idempotent_store
ROOT = Path(__file__).parents[2]


class Bank:
    """What the tasks have effects on."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.keys: dict[str, str] = {}

    def reset(self) -> None:
        self.done.clear()
        self.keys.clear()

    def charge(self, what: str) -> str:
        self.done.append(what)
        return f"receipt of {what}"

    def charge_once(self, key: str, what: str) -> str:
        if key not in self.keys:
            self.keys[key] = self.charge(what)
        return self.keys[key]


@pytest.fixture
def bank() -> Bank:
    return Bank()


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app that is set up for a broker and a store that nobody could reach."""
    made = Celery("shop", broker="redis://127.0.0.1:1/0", set_as_current=False)
    yield made
    made.close()


@pytest.fixture
def make_task(app: Celery) -> Callable[..., Any]:
    """Make a task of a function that takes the task and one argument."""

    def make(body: Callable[..., Any], **options: Any) -> Any:
        def run(self: Any, order: int) -> Any:
            return body(self, order)

        chosen: dict[str, Any] = {"base": IdempotentTask, "idempotency_key": "order:{order}"}
        decorate = app.task(bind=True, shared=False, name="kit.task", **{**chosen, **options})
        decorate(run)
        return app.tasks["kit.task"]

    return make


def played(task: Any, bank: Bank, **more: Any) -> dict[str, tuple[Crash, list[str]]]:
    """Every crash by its point, and what it left at the bank."""
    return {
        crash.point: (crash, list(bank.done))
        for crash in crash_points(task, (1,), fresh=bank.reset, **more)
    }


def tail(result: Any) -> None:
    """What hangs on a task's result."""


# --- crash points --------------------------------------------------------------------------------


def test_a_task_that_hands_its_key_on_passes(make_task: Callable[..., Any], bank: Bank) -> None:
    """Wherever it dies there is one charge, and the caller gets its receipt."""

    def body(self: Any, order: int) -> str:
        return bank.charge_once(self.idempotency.key_for("bank"), "order")

    crashes = played(make_task(body), bank)
    assert {tuple(done) for _, done in crashes.values()} == {("order",)}
    assert {crash.result for crash, _ in crashes.values()} == {"receipt of order"}
    assert list(crashes) == [
        "undisturbed",
        "before the body",
        "after the body, before its result is recorded",
        "with the result recorded",
        "with everything done, before the ack",
    ]


def test_a_task_that_charges_blindly_is_caught(make_task: Callable[..., Any], bank: Bank) -> None:
    """It charges twice where it dies between effect and record, and nowhere else."""
    crashes = played(make_task(lambda self, order: bank.charge("order")), bank)
    wrong = [point for point, (_, done) in crashes.items() if done != ["order"]]
    assert wrong == ["after the body, before its result is recorded"]
    crash, done = crashes[wrong[0]]
    assert done == ["order", "order"]
    assert crash.ledger == ("run", "killed", "run", "succeeded")
    assert crash.runs == 2
    assert str(crash) == (
        "killed after the body, before its result is recorded: run, killed, run, succeeded; "
        "SUCCESS: 'receipt of order'"
    )


def test_only_the_step_that_was_cut_is_repeated(make_task: Callable[..., Any], bank: Bank) -> None:
    """A step that is recorded is not done again; the one that is not, is."""

    def body(self: Any, order: int) -> None:
        for name in ("hotel", "flight"):
            self.idempotency.step(name, bank.charge, name)
        self.idempotency.check()

    crashes = played(make_task(body), bank)
    repeated = {point: done for point, (_, done) in crashes.items() if len(done) != 2}
    assert repeated == {
        "after step 'hotel', before that is recorded": ["hotel", "hotel", "flight"],
        "after step 'flight', before that is recorded": ["hotel", "flight", "flight"],
    }
    assert {"with step 'hotel' recorded", "after check()"} <= set(crashes)


def test_compensations_are_cut_too(app: Celery, make_task: Callable[..., Any], bank: Bank) -> None:
    """Each point of the undoing is played, and every step that was done ends undone."""

    def undo(receipt: str) -> None:
        bank.charge_once(f"undo {receipt}", f"undone {receipt}")

    app.task(name="kit.undo", shared=False)(undo)

    def body(self: Any, order: int) -> None:
        self.idempotency.step("hotel", bank.charge, "hotel", compensate=app.tasks["kit.undo"].s())
        raise ValueError("sold out")

    crashes = played(make_task(body), bank)
    assert all(done[-1] == "undone receipt of hotel" for _, done in crashes.values())
    assert {repr(crash.result) for crash, _ in crashes.values()} == {"ValueError('sold out')"}
    cut, _ = crashes["after undoing step 'hotel', before that is recorded"]
    assert cut.ledger[-3:] == ("undoing", "undone step 'hotel'", "released")
    assert cut.runs == 1


def test_retries_are_followed_and_cut(make_task: Callable[..., Any], bank: Bank) -> None:
    """A task that retries ends, however long its back-off, and each attempt has its points."""

    def body(self: Any, order: int) -> str:
        if not self.request.retries:
            raise self.retry(countdown=3600)
        return bank.charge_once(self.idempotency.key_for("bank"), "order")

    crashes = [
        (crash.point, crash.state, list(bank.done))
        for crash in crash_points(make_task(body), (1,), fresh=bank.reset)
    ]
    points = [point for point, _, _ in crashes]
    assert points.count("before the body") == 2
    assert "after self.retry(), before that is recorded" in points
    assert {(state, *done) for _, state, done in crashes} == {("SUCCESS", "order")}


def test_policy_unknown_is_played_as_it_is(make_task: Callable[..., Any], bank: Bank) -> None:
    """A run that was cut off is not run again, and its caller is told."""
    task = make_task(lambda self, order: bank.charge("order"), idempotency_on_interrupted="unknown")
    crash, done = played(task, bank)["after the body, before its result is recorded"]
    assert done == ["order"]
    assert isinstance(crash.result, OutcomeUnknown)
    assert crash.record is not None
    assert crash.record.state is State.UNKNOWN


def test_callbacks_are_in_what_was_published(
    app: Celery, make_task: Callable[..., Any], bank: Bank
) -> None:
    """They are listed, not run, and sent once wherever it dies."""
    app.task(name="kit.tail", shared=False)(tail)
    task = make_task(lambda self, order: bank.charge_once("key", "order"))
    for crash in crash_points(task, (1,), fresh=bank.reset, link=app.signature("kit.tail")):
        assert [message.task for message in crash.published] == ["kit.tail"], crash


def test_a_body_that_catches_its_own_death_is_told_of(make_task: Callable[..., Any]) -> None:
    """What it says after that reaches nobody, and its next run starts from what was recorded."""

    def body(self: Any, order: int) -> str:
        try:
            self.idempotency.step("hotel", str)
        except BaseException:
            return "caught"
        return "done"

    results = {crash.result for crash in crash_points(make_task(body), (1,))}
    assert results == {"done"}


def test_a_task_that_does_not_do_the_same_again_is_refused(
    make_task: Callable[..., Any], bank: Bank
) -> None:
    """Without fresh=, what is left of the last run can hide a point: that is said."""

    def body(self: Any, order: int) -> None:
        if not bank.done:
            self.idempotency.step("hotel", bank.charge, "hotel")

    with pytest.raises(AssertionError, match="put back with fresh="):
        list(crash_points(make_task(body), (1,)))


def test_a_task_that_never_ends_is_given_up(make_task: Callable[..., Any]) -> None:
    """One that retries for ever doesn't hang the test."""

    def body(self: Any, order: int) -> None:
        raise self.retry(countdown=1, max_retries=10_000)

    with pytest.raises(AssertionError, match="has not ended after 50 deliveries"):
        next(crash_points(make_task(body), (1,)))


def test_only_idempotent_tasks_are_taken(app: Celery) -> None:
    """A plain task is done twice wherever it dies: there is nothing to find out."""
    plain = app.task(name="kit.plain", shared=False)(test_only_idempotent_tasks_are_taken)
    with pytest.raises(TypeError, match="IdempotentTask"):
        next(crash_points(plain))


def test_arguments_that_are_none_are_refused_with_what_to_write(
    make_task: Callable[..., Any],
) -> None:
    """What one tries first: ``deliver(task, order=1)``, ``crash_points(task, 7)``."""
    task = make_task(tail)
    words = r"order was taken as an option .* args and kwargs: kwargs=\{'order': ...\}$"
    for call in (deliver, lambda *args, **options: next(crash_points(*args, **options))):
        with pytest.raises(TypeError, match=words):
            call(task, order=1)
        with pytest.raises(TypeError, match=r"args are of type int, and must be .*: \(x,\)$"):
            call(task, 7)


def test_a_store_of_ones_own_is_played_on_too(
    make_task: Callable[..., Any], bank: Bank, tmp_path: Path
) -> None:
    """On a database, leases are ended as a worker's parent does it."""
    names = iter(range(100))

    def store() -> SqlStore:
        made = SqlStore.from_url(f"sqlite:///{tmp_path / f'{next(names)}.db'}")
        made.create_schema()
        return made

    task = make_task(lambda self, order: bank.charge("order"))
    crashes = played(task, bank, store=store)
    assert [len(done) for _, done in crashes.values()] == [1, 1, 2, 1, 1]


def test_an_effect_in_the_session_is_there_once_wherever_it_dies(
    make_task: Callable[..., Any], tmp_path: Path
) -> None:
    """What a body wrote in its transaction goes with it, and is committed with its record."""
    # Given
    names = iter(range(100))
    store: Any = None

    def make_store() -> SqlStore:
        nonlocal store
        store = SqlStore.from_url(f"sqlite:///{tmp_path / f'{next(names)}.db'}")
        store.create_schema()
        with store.engines.sessions.begin() as connection:
            connection.execute(text("CREATE TABLE charges (amount INTEGER)"))
        return store

    def body(self: Any, order: int) -> str:
        self.idempotency.session.execute(text("INSERT INTO charges VALUES (100)"))
        return "paid"

    points = []
    # When
    for crash in crash_points(make_task(body), (1,), store=make_store):
        points.append(crash.point)
        with store.engines.sessions.begin() as connection:
            charges = connection.execute(text("SELECT amount FROM charges")).all()
        # Then
        assert charges == [(100,)], crash
        assert crash.result == "paid", crash
    assert {"after the body, before the commit", "with all of it committed"} <= set(points)


# --- deliveries ----------------------------------------------------------------------------------


def test_a_delivery_goes_through_the_tracer(
    app: Celery, make_task: Callable[..., Any], idempotent_store: Any
) -> None:
    """The request is a worker's, arguments come as JSON, callbacks are sent with the result."""

    def body(self: Any, order: Any) -> Any:
        assert not self.request.is_eager
        return [order, self.request.id, self.request.retries]

    app.task(name="kit.tail", shared=False)(tail)
    task = make_task(body, idempotency_key=None)
    # When
    done = deliver(task, ((1, 2),), task_id="t1", retries=2, link=app.signature("kit.tail"))
    # Then
    assert done.state == "SUCCESS"
    assert done.get() == [[1, 2], "t1", 2]
    assert [(message.task, list(message.args)) for message in done.published] == [
        ("kit.tail", [[[1, 2], "t1", 2]])
    ]


def test_a_message_that_is_delivered_again_is_answered_again(
    make_task: Callable[..., Any], bank: Bank, idempotent_store: Any
) -> None:
    """The body has run once; a duplicate under another id gets the same."""
    # Given
    task = make_task(lambda self, order: bank.charge("order"))
    first = deliver(task, (1,))
    # When
    answers = [first.again(), deliver(task, (1,)), deliver(task, kwargs={"order": 1})]
    # Then
    assert [answer.get() for answer in answers] == ["receipt of order"] * 3
    assert bank.done == ["order"]
    # And after its window it runs again
    idempotent_store.advance(86400)
    deliver(task, (1,))
    assert bank.done == ["order", "order"]


def test_a_failure_and_a_refusal_are_results(
    make_task: Callable[..., Any], idempotent_store: Any
) -> None:
    """get() raises what the caller would get."""

    def body(self: Any, order: int) -> int:
        return 1 // order

    task = make_task(body)
    failed = deliver(task, (0,))
    assert failed.state == "FAILURE"
    with pytest.raises(ZeroDivisionError):
        failed.get()
    deliver(task, (1,), idempotency_key="req")
    with pytest.raises(IdempotencyKeyMismatch):
        deliver(task, (2,), idempotency_key="req").get()


def test_a_duplicate_of_a_running_call_waits(
    make_task: Callable[..., Any], idempotent_store: Any
) -> None:
    """It is put back, and that message can be delivered in its turn."""
    # Given a body that is called again while it runs
    inner: list[Any] = []

    def body(self: Any, order: int) -> str:
        inner.append(deliver(self, (order,)))
        return "done"

    task = make_task(body)
    # When
    deliver(task, (1,))
    # Then
    (waiting,) = inner
    assert waiting.state == "RETRY"
    (again,) = waiting.published
    assert again.countdown > 0
    assert again.task_id == waiting.message.task_id
    assert again.deliver().get() == "done"


def test_an_app_that_is_eager_stays_so(app: Celery, make_task: Callable[..., Any]) -> None:
    """A delivery puts the app's settings, and its broker, back as they were."""
    # Given
    app.conf.task_always_eager = True
    task = make_task(lambda self, order: "done")
    # When
    with memory_store():
        deliver(task, (1,))
        # Then
        assert task.delay(1).get() == "done"
    assert app.conf.task_always_eager is True
    assert "send_task" not in vars(app)
    assert "_backend" not in vars(task) or vars(task)["_backend"] is None


def test_the_store_is_every_apps_and_then_nobodys(app: Celery) -> None:
    """Within the fixture's reach each app has it; afterwards each has its own again."""
    app.conf.idempotency_store_url = "memory://own"
    own = environment_of(app).store
    with memory_store() as store:
        assert environment_of(app).store is store
        with memory_store() as inner:
            assert environment_of(app).store is inner
        assert environment_of(app).store is store
    assert environment_of(app).store is own


# --- the plugin ----------------------------------------------------------------------------------


def test_the_plugin_imports_nothing_until_it_is_used() -> None:
    """Loading it, as pytest does at each start, doesn't bring in Celery."""
    program = (
        "import sys, pytest; before = set(sys.modules); import celery_idempotent.testing.plugin;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "assert new == {'celery_idempotent'}, new"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_a_test_that_uses_it_is_short(pytester: pytest.Pytester) -> None:
    """As a user writes it: the right task passes, the wrong one fails and says where it died."""
    # Given
    pytester.makepyfile(
        """
        from celery import Celery
        from celery_idempotent import IdempotentTask
        from celery_idempotent.testing import crash_points

        app = Celery("shop")
        charges = []

        @app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order_id}")
        def right(self, order_id):
            if order_id not in charges:
                charges.append(order_id)

        @app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order_id}")
        def wrong(self, order_id):
            charges.append(order_id)

        def test_right():
            for crash in crash_points(right, (42,), fresh=charges.clear):
                assert len(charges) == 1, crash

        def test_wrong():
            for crash in crash_points(wrong, (42,), fresh=charges.clear):
                assert len(charges) == 1, crash

        def test_eager(idempotent_store):
            charges.clear()
            app.conf.task_always_eager = True
            wrong.delay(1), wrong.delay(1)
            assert charges == [1]
        """
    )
    # When
    installed = "celery_idempotent" in {ep.name for ep in entry_points(group="pytest11")}
    plugin = () if installed else ("-p", "celery_idempotent.testing.plugin")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *plugin)
    # Then
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*killed after the body, before its result is recorded*"])
