"""A loop goes on behind its last checkpoint, in each store, and with a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from sqlalchemy import insert

from celery_idempotent import ClaimLost, IdempotentTask, StoreUnavailable
from celery_idempotent.core.keys import record_key
from celery_idempotent.run.shutdown import Shutdown
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.base import NotCommitted
from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.stores.sql.store import SqlStore
from celery_idempotent.stores.sql.transaction import SqlTransaction
from celery_idempotent.testing import crash_points
from celery_idempotent.testing.deliveries import deliver
from celery_idempotent.testing.memory import memory_store
from celery_idempotent.testing.servers import RedisServer
from tests.support.bookings import Books, bookings

Body = Callable[..., Any]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture(params=["memory", "redis"])
def app(request: pytest.FixtureRequest, server: RedisServer) -> Celery:
    url = server.url() if request.param == "redis" else f"memory://{uuid4().hex}"
    app = Celery("points", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(idempotency_store_url=url, idempotency_key_prefix=f"points{uuid4().hex}")
    return app


def task_of(app: Celery, body: Body, **options: Any) -> Any:
    options = {"base": IdempotentTask, "bind": True, "shared": False, "name": "export", **options}
    return app.task(**options)(body)


class Loop:
    """A body that loops over ``items``, and fails before it does ``fails_at``, once."""

    def __init__(self, items: Any, *, fails_at: Any = None, **more: Any) -> None:
        self.items, self.fails_at, self.more = items, fails_at, more
        self.done: list[Any] = []

    def __call__(self, task: Any, number: int) -> int:
        for item in task.idempotency.resume("items", self.items, **self.more):
            if item == self.fails_at:
                self.fails_at = None
                raise ValueError(item)
            self.done.append(item)
        return len(self.done)

    def body(self) -> Body:
        def body(task: Any, number: int) -> int:
            return self(task, number)

        return body


def test_a_later_run_goes_on_behind_the_last_checkpoint(app: Celery) -> None:
    """What came after it is done again, and nothing else."""
    # Given
    loop = Loop(range(10), every=3, fails_at=8)
    export = task_of(app, loop.body())
    # When
    states = [export.apply((1,)).state, export.apply((1,)).state]
    # Then
    assert states == ["FAILURE", "SUCCESS"]
    assert loop.done == [*range(8), *range(6, 10)]


def test_a_failure_behind_the_loop_repeats_nothing_of_it(app: Celery) -> None:
    """The last item is followed by a checkpoint."""
    # Given
    loop, fails = Loop(range(5), every=100), [True]

    def body(task: Any, number: int) -> None:
        loop(task, number)
        if fails.pop():
            raise ValueError

    export = task_of(app, body)
    # When
    export.apply((1,))
    fails.append(False)
    export.apply((1,)).get()
    # Then
    assert loop.done == list(range(5))


@pytest.mark.parametrize("every", [1, 2, 7])
def test_one_command_a_checkpoint_and_one_small_record(
    app: Celery, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many items there are, one cursor is kept; nothing is sent between checkpoints."""
    # Given
    store = environment_of(app).store
    sent: list[str] = []
    real = store.step
    monkeypatch.setattr(
        store, "step", lambda one, name, packed: (sent.append(name), real(one, name, packed))[1]
    )
    kept: list[dict[str, bytes]] = []

    def body(task: Any, number: int) -> None:
        for _ in task.idempotency.resume("items", range(70), every=every):
            pass
        kept.append(store.steps(key_of(app, task)))

    # When
    task_of(app, body).apply((1,)).get()
    # Then
    assert sent == ["@items"] * (70 // every)
    assert len(kept[0]) == 1
    assert sum(map(len, kept[0].values())) < 100


def key_of(app: Celery, task: Any) -> str:
    return record_key(environment_of(app).prefix, task._call_key((1,), {}, ...))


def test_without_a_number_a_checkpoint_is_written_when_the_last_one_is_old(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quick loop of many items sends few commands: the one at its end."""
    # Given
    store, sent = environment_of(app).store, []
    real = store.step
    monkeypatch.setattr(
        store, "step", lambda one, name, packed: (sent.append(1), real(one, name, packed))[1]
    )
    # When
    task_of(app, Loop(range(1000), seconds=1000).body()).apply((1,)).get()
    often = task_of(app, Loop(range(7), seconds=0).body(), name="often")
    counted = len(sent)
    often.apply((1,)).get()
    # Then
    assert (counted, len(sent) - counted) == (1, 7)


def test_by_cursor_items_may_come_and_go_between_two_runs(app: Celery) -> None:
    """A cursor is compared: the item that it belonged to need not be there any more."""
    # Given
    loop = Loop([10, 20, 30, 40], cursor=lambda item: item, every=1, fails_at=30)
    export = task_of(app, loop.body())
    # When
    export.apply((1,))
    loop.items = [5, 10, 25, 30, 40, 50]  # 20 was deleted
    export.apply((1,)).get()
    # Then
    assert loop.done == [10, 20, 25, 30, 40, 50]


def test_items_may_be_asked_for_behind_the_cursor(app: Celery) -> None:
    """A query needs not read what is done."""
    # Given
    asked: list[Any] = []

    def items(last: Any) -> list[int]:
        asked.append(last)
        return [item for item in (1, 2, 3, 4) if last is None or item > last]

    loop = Loop(items, cursor=lambda item: item, every=1, fails_at=3)
    export = task_of(app, loop.body())
    # When
    export.apply((1,))
    export.apply((1,)).get()
    # Then
    assert asked == [None, 2]
    assert loop.done == [1, 2, 3, 4]


def test_items_out_of_order_are_an_error_and_none_is_left_out(app: Celery) -> None:
    """A resumed loop would skip what sorts before its cursor."""
    # Given
    loop = Loop([1, 3, 2], cursor=lambda item: item)
    # Then
    with pytest.raises(ValueError, match="ascending order"):
        task_of(app, loop.body()).apply((1,), throw=True)


@pytest.mark.parametrize("cursor", [None, object(), "x" * 3000])
def test_a_cursor_that_can_not_be_kept_is_an_error(app: Celery, cursor: Any) -> None:
    """Silently without a checkpoint, all would be done again."""

    # Given
    def body(task: Any, number: int) -> None:
        task.idempotency.checkpoint(cursor)

    # Then
    with pytest.raises(ValueError, match="cursor"):
        task_of(app, body, idempotency_max_result_size=2000).apply((1,), throw=True)


def test_a_loops_cursor_of_none_is_an_error_at_its_end_too(app: Celery) -> None:
    """However few items there are: the next run would begin anew."""
    # Given
    loop = Loop(lambda last: [1], cursor=lambda item: None, every=100)
    # Then
    with pytest.raises(ValueError, match="cursor of None"):
        task_of(app, loop.body()).apply((1,), throw=True)


def test_by_hand(app: Celery) -> None:
    """The cursor of this run and of earlier ones, and none in a new call."""
    # Given
    seen: list[Any] = []

    def body(task: Any, number: int) -> None:
        ask = task.idempotency
        seen.append(ask.cursor)
        ask.checkpoint({"page": len(seen)})
        seen.append(ask.cursor)
        if len(seen) == 2:
            raise ValueError

    export = task_of(app, body)
    # When
    for _ in range(2):
        export.apply((1,))
    export.forget(1)
    export.apply((1,))
    # Then
    assert seen == [None, {"page": 1}, {"page": 1}, {"page": 3}, None, {"page": 5}]


def test_a_run_that_lost_its_key_is_told_at_its_checkpoint(app: Celery) -> None:
    """It stops, and the cursor is not the next run's."""
    # Given
    loop = Loop(range(3), every=1)

    def body(task: Any, number: int) -> None:
        task.forget(number)
        with pytest.raises(ClaimLost, match="checkpoint 0"):
            loop(task, number)

    export = task_of(app, body)
    # When
    export.apply((1,))
    # Then
    assert loop.done == [0]
    assert environment_of(app).store.steps(key_of(app, export)) == {}


def test_an_outage_costs_checkpoints_and_stops_no_loop(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not recorded is done again."""
    # Given
    store, real = environment_of(app).store, environment_of(app).store.step
    away = [False]

    def step(*args: Any) -> Any:
        if away[0]:
            raise StoreUnavailable("away")
        return real(*args)

    monkeypatch.setattr(store, "step", step)
    done: list[int] = []

    def body(task: Any, number: int) -> None:
        for item in task.idempotency.resume("items", range(6), every=1):
            away[0] = 2 <= item < 5 and len(done) < 6
            done.append(item)
            if done == [0, 1, 2, 3]:
                raise ValueError

    export = task_of(app, body)
    # When
    export.apply((1,))
    away[0] = False
    export.apply((1,)).get()
    # Then
    assert done[:4] == [0, 1, 2, 3]
    assert done[4:] == [2, 3, 4, 5]


def test_a_direct_call_loops_over_all(app: Celery) -> None:
    """There is no claim, and nothing is recorded."""
    # Given
    loop = Loop(range(3), every=1)
    export = task_of(app, loop.body())
    # When
    assert export(1) == 3
    # Then
    assert loop.done == [0, 1, 2]
    assert environment_of(app).store.get(key_of(app, export)) is None


def test_a_step_can_not_take_the_name_of_a_checkpoint(app: Celery) -> None:
    """They are kept side by side."""

    # Given
    def body(task: Any, number: int) -> None:
        task.idempotency.step("@items", lambda: None)

    # Then
    with pytest.raises(ValueError, match="begin with @"):
        task_of(app, body).apply((1,), throw=True)


def test_killed_at_each_checkpoint_nothing_is_left_out(app: Celery) -> None:
    """At most one interval is done again: the test kit kills at each point there is."""
    # Given
    loop = Loop(range(7), cursor=lambda item: item, every=2)
    export = task_of(app, loop.body())

    def fresh() -> None:
        loop.done = []

    # When
    points = []
    for crash in crash_points(export, (1,), fresh=fresh):
        points.append(crash.point)
        # Then
        assert sorted(set(loop.done)) == list(range(7)), crash
        assert len(loop.done) <= 9, crash
        assert crash.state == "SUCCESS", crash
    assert sum("checkpoint 'items'" in point for point in points) == 8


class Shop:
    """An app whose store is an SQLite file, and a task that books one row an item."""

    def __init__(self, directory: Path) -> None:
        url = f"sqlite:///{directory / 'records.db'}"
        self.app = Celery(
            "shop", broker="memory://", backend="cache+memory://", set_as_current=False
        )
        self.app.conf.update(idempotency_store_url=url, task_always_eager=True)
        store = environment_of(self.app).store
        assert isinstance(store, SqlStore)
        store.create_schema()
        self.store, self.books = store, Books(url)
        self.fails_at: int | None = None

    def task(self) -> Any:
        def body(task: Any, number: int) -> int:
            return self._body(task, number)

        return task_of(self.app, body)

    def _body(self, task: Any, number: int) -> int:
        session = task.idempotency.session
        for item in task.idempotency.resume("items", range(6), every=2):
            session.execute(insert(bookings).values(order_id=item, task_id="task"))
            if item == self.fails_at:
                self.fails_at = None
                raise ValueError(item)
        return 6

    def booked(self) -> list[int]:
        return [self.books.count(item) for item in range(6)]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path)
    yield made
    made.books.close()
    made.store.close()


def test_with_a_session_nothing_is_done_twice(shop: Shop) -> None:
    """A checkpoint commits what was written with the cursor; a failure undoes only what is new."""
    # Given
    export, shop.fails_at = shop.task(), 3
    # When
    failed = export.apply((1,))
    between = shop.booked()
    export.apply((1,)).get()
    # Then
    assert failed.state == "FAILURE"
    assert between == [1, 1, 0, 0, 0, 0]
    assert shop.booked() == [1] * 6


def test_a_checkpoint_that_is_not_committed_undoes_what_came_after_the_last_one(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run begins anew, behind the checkpoint before; nothing is booked twice."""
    # Given
    real, fails = SqlTransaction.commit_step, [False, True, False]

    def commit_step(self: SqlTransaction, *args: Any) -> Any:
        if fails and fails.pop():
            self.rollback()
            raise NotCommitted("the database went away")
        return real(self, *args)

    monkeypatch.setattr(SqlTransaction, "commit_step", commit_step)

    export = shop.task()
    # When
    with pytest.raises(StoreUnavailable, match="went away"):
        export.apply((1,), throw=True).get()
    between = shop.booked()
    export.apply((1,)).get()
    # Then
    assert between == [1, 1, 0, 0, 0, 0]
    assert shop.booked() == [1] * 6


def test_without_a_worker_nobody_shuts_down() -> None:
    """A direct call or an eager one never stops."""
    # Given
    one = Shutdown()
    # When
    one.announce()
    # Then
    assert not one.is_announced()
    one.watch()
    assert not one.is_announced()
    one.announce()
    assert one.is_announced()


def test_a_call_that_another_body_applies_does_not_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no message that could come again, and the body around it would begin anew."""
    # Given
    monkeypatch.setattr(Shutdown, "is_announced", lambda _: True)
    with memory_store():
        app = Celery("nested", broker="memory://", backend="cache+memory://", set_as_current=False)
        loop, begun = Loop(range(3), every=1), []
        inner = task_of(app, loop.body(), name="inner", idempotency_stop_at_checkpoint=True)

        def body(task: Any, number: int) -> Any:
            begun.append(task.request.id)
            return inner.apply((number,)).get(disable_sync_subtasks=False)

        outer = task_of(app, body, name="outer")
        # When
        ended = deliver(outer, (1,))
        # Then
        assert ended.get() == 3
        assert not ended.published
        assert len(begun) == 1
        # And one with a message of its own does
        stopped = deliver(inner, (2,))
        assert [it.task for it in stopped.published] == ["inner"]


def test_a_loop_is_not_bound_to_a_store_of_memory() -> None:
    """The name is part of the stored step, so that two loops have two cursors."""
    # Given
    app = Celery("two", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(idempotency_store_url=f"memory://{uuid4().hex}")
    assert isinstance(environment_of(app).store, MemoryStore)
    first, second = Loop(range(3), every=1), Loop(range(3), every=1)
    fails = [True]

    def body(task: Any, number: int) -> None:
        first(task, number)
        for item in task.idempotency.resume("more", range(3), every=1):
            if item == 1 and fails.pop():
                raise ValueError
            second.done.append(item)

    export = task_of(app, body)
    # When
    export.apply((1,))
    fails.append(False)
    export.apply((1,)).get()
    # Then
    assert (first.done, second.done) == ([0, 1, 2], [0, 1, 2])
