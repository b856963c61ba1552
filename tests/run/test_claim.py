"""Scenario 59: from grant to body there is no gap. A claim that is cut off is undone, uncounted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from celery_idempotent import IdempotentTask
from celery_idempotent.core.record import State
from celery_idempotent.delivery.attempt import Attempt
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.run.journal import Journal
from celery_idempotent.run.run import Run
from celery_idempotent.testing.deliveries import deliver
from celery_idempotent.testing.memory import MovableStore, memory_store

#: Where a delivery is after its key was granted, and before its body.
PLACES: dict[str, tuple[Any, str]] = {
    "as the store answers": (MovableStore, "claim"),
    "as the run is made": (Run, "__init__"),
    "as the lease is kept": (type(heartbeat), "add"),
    "as the journal is told": (Journal, "begin"),
    "as the body is about to begin": (Attempt, "__init__"),
}
#: A soft time limit, a SIGTERM to the process, and an error.
CUTS = (SoftTimeLimitExceeded, SystemExit, ValueError)


@pytest.fixture
def store() -> Iterator[MovableStore]:
    with memory_store() as made:
        yield made


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("asking", broker="memory://", backend="cache+memory://")
    app.task = functools.partial(app.task, shared=False)
    yield app
    app.close()


@pytest.fixture
def charge(app: Celery, store: MovableStore) -> Any:
    """A task that says how many of its key's runs were cut off."""

    @app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order}")
    def charge(self: Any, order: int) -> int:
        return self.idempotency.interrupted + 0

    return charge


def cut(real: Callable[..., Any], kind: type[BaseException]) -> Callable[..., Any]:
    """Do it, once, and raise then."""
    left = [kind]

    def cut_off(*args: Any, **kwargs: Any) -> Any:
        answer = real(*args, **kwargs)
        if left:
            raise left.pop()
        return answer

    return cut_off


@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("place", PLACES)
def test_what_cuts_in_before_the_body_leaves_the_key_free(
    charge: Any,
    store: MovableStore,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    kind: type[BaseException],
) -> None:
    """No lease is waited for: the next call runs at once, and no run counts as cut off."""
    # Given
    where, name = PLACES[place]
    # When
    with monkeypatch.context() as patch:
        patch.setattr(where, name, cut(getattr(where, name), kind))
        try:
            deliver(charge, (1,))
        except SystemExit:
            assert kind is SystemExit
    # Then
    (key,) = store.scan("*")
    record = store.get(key)
    assert record is not None
    assert (record.state, record.interruptions) == (State.RELEASED, 0)
    assert not [lease for lease in heartbeat.leases() if lease.store is store]
    assert deliver(charge, (1,)).get() == 0


def test_a_process_that_cannot_keep_a_lease_runs_nothing(
    charge: Any, store: MovableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat's thread can't start: the message waits, as where the store is away."""
    # Given
    with monkeypatch.context() as patch:
        patch.setattr(type(heartbeat), "add", cut(lambda *_: None, RuntimeError))
        first = deliver(charge, (1,))
    # Then
    assert first.state == "RETRY"
    (key,) = store.scan("*")
    record = store.get(key)
    assert record is not None
    assert (record.state, record.interruptions) == (State.RELEASED, 0)
    assert first.published[0].deliver().get() == 0
