"""``self.idempotency.release()``: the key is free at once, and the body goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_idempotent import ClaimLost, ConfigurationError
from celery_idempotent.settings import everywhere
from celery_idempotent.stores.sql.store import SqlStore
from celery_idempotent.testing.deliveries import Delivered, deliver, message_of
from celery_idempotent.testing.memory import MovableStore
from tests.delivery.conftest import record_of


@pytest.fixture(params=[0, 86_400], ids=["no window", "a day"])
def app(request: pytest.FixtureRequest) -> Celery:
    app = Celery("hand back", broker="memory://", backend="cache+memory://")
    app.conf.update(idempotency_ttl=request.param)
    app.task = functools.partial(app.task, shared=False)
    return app


def second(self: Any, order: int) -> str:
    return "second"


def test_the_next_call_runs_beside_it(guarded: Callable[..., Any], store: MovableStore) -> None:
    """Each gets its own outcome, and so do its copies."""
    # Given
    seen: list[Delivered] = []

    def first(self: Any, order: int) -> str:
        for _ in range(2):
            self.idempotency.release()
            self.idempotency.check()
        seen.append(deliver(self, (order,)))
        return "first"

    task = guarded(first, second)
    # When
    call = deliver(task, (1,))
    # Then
    assert (call.get(), seen[0].get()) == ("first", "second")
    assert (call.again().get(), seen[0].again().get()) == ("first", "second")
    assert record_of(store).owner_id == seen[0].message.task_id


def test_it_costs_one_command_more(
    guarded: Callable[..., Any], store: MovableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That which frees the key; the end is recorded with one, as without it."""
    # Given
    sent: list[str] = []

    def counted(name: str) -> None:
        real = getattr(store, name)

        def call(*args: Any) -> Any:
            sent.append(name)
            return real(*args)

        monkeypatch.setattr(store, name, call)

    for name in ("claim", "settle", "note", "renew", "slip"):
        counted(name)
    task = guarded(second, lambda self, order: self.idempotency.release())
    # Then
    deliver(task, (1,))
    assert sent == ["claim", "settle"]
    sent.clear()
    deliver(task, (2,))
    assert sent == ["claim", "settle", "settle"]


def test_a_failure_after_it_is_its_own_calls_only(guarded: Callable[..., Any]) -> None:
    """The next call runs; a copy fails again."""

    def first(self: Any, order: int) -> None:
        self.idempotency.release()
        raise ValueError("declined")

    task = guarded(first, second)
    call = deliver(task, (1,))
    assert deliver(task, (1,)).get() == "second"
    for one in (call, call.again()):
        with pytest.raises(ValueError, match="declined"):
            one.get()


def test_a_retry_after_it_waits_for_its_turn(guarded: Callable[..., Any]) -> None:
    """It is the same call's next attempt, and claims the key as any other."""

    def first(self: Any, order: int) -> None:
        self.idempotency.release()
        raise self.retry(countdown=1)

    task = guarded(first, second)
    call = deliver(task, (1,))
    assert call.published[0].deliver().get() == "second"
    assert call.again().get() == "second"


def test_check_asks_whether_the_call_is_still_this_runs(
    guarded: Callable[..., Any], store: MovableStore
) -> None:
    """It is not once a copy of the message has taken over."""
    # Given
    seen: list[str] = []

    def first(self: Any, order: int) -> str:
        self.idempotency.release()
        assert message.deliver(redelivered=True).state == "IGNORED"
        self.idempotency.check()
        store.advance(30)
        seen.append(message.deliver(redelivered=True).get())
        with pytest.raises(ClaimLost):
            self.idempotency.check()
        return "first"

    task = guarded(first, second)
    message = message_of(task, (1,))
    # When
    late = message.deliver()
    # Then
    assert seen == ["second"]
    assert late.state == "IGNORED"
    assert message.deliver(redelivered=True).get() == "second"


@pytest.mark.parametrize("how", ["a step before", "a step after", "a checkpoint after"])
def test_what_is_kept_with_the_key_goes_not_with_it(guarded: Callable[..., Any], how: str) -> None:
    """The next call would take it for its own."""

    def first(self: Any, order: int) -> None:
        if how == "a step before":
            self.idempotency.step("one", int)
        self.idempotency.release()
        if how == "a step after":
            self.idempotency.step("one", int)
        self.idempotency.checkpoint(1)

    with pytest.raises(ConfigurationError, match="kept with the key"):
        deliver(guarded(first), (1,)).get()


@pytest.mark.parametrize("opened", ["before", "after"])
def test_a_session_goes_not_with_it(
    guarded: Callable[..., Any], tmp_path: Path, opened: str
) -> None:
    """What is written in it is committed with the key."""

    def first(self: Any, order: int) -> None:
        if opened == "before":
            _ = self.idempotency.session
        self.idempotency.release()
        _ = self.idempotency.session

    database = SqlStore.from_url(f"sqlite:///{tmp_path}/records")
    database.create_schema()
    with everywhere(database):
        task = guarded(first)
        with pytest.raises(ConfigurationError, match="kept with the key"):
            deliver(task, (1,)).get()
    database.close()


def test_without_a_claim_it_does_nothing(guarded: Callable[..., Any]) -> None:
    """In a direct call, and in one with the key None; an eager call has no copies to answer."""

    def body(self: Any, order: int) -> str:
        self.idempotency.release()
        return "ran"

    task = guarded(body, body, body, body)
    assert task(1) == "ran"
    assert deliver(task, (1,), idempotency_key=None).get() == "ran"
    for _ in range(2):
        assert task.apply((1,)).get() == "ran"


def test_an_eager_call_gets_its_own_outcome(guarded: Callable[..., Any]) -> None:
    """Another call has the key by then, and has ended."""
    # Given
    seen: list[Any] = []

    def first(self: Any, order: int) -> str:
        self.idempotency.release()
        seen.append(self.apply((order,)).get())
        return "first"

    # Then
    assert guarded(first, second).apply((1,)).get() == "first"
    assert seen == ["second"]
