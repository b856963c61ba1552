"""Stores that delete nothing by themselves are tended by the heartbeat, now and then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.run import upkeep
from celery_idempotent.stores.memory import MemoryStore


class Tended(MemoryStore):
    """A store that wants to be tended."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = 0
        self.more = False
        self.away = False

    def tend(self) -> bool:
        self.turns += 1
        if self.away:
            raise StoreUnavailable("away")
        return self.more


class Clock:
    """Time and the heartbeat, in the test's hand: what is to be told is told at once."""

    def __init__(self) -> None:
        self.now = 1000.0

    def later(self, tell: Callable[[], object], what: str, for_s: float, *, must: bool) -> None:
        assert not must
        tell()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(upkeep, "heartbeat", made)
    monkeypatch.setattr(upkeep.time, "monotonic", lambda: made.now)
    return made


def ask(store: Any, clock: Clock, seconds: int) -> int:
    """How many turns a store has in so many seconds of tasks."""
    before = store.turns
    for _ in range(seconds):
        clock.now += 1
        upkeep.now_and_then(store)
    return int(store.turns - before)


def test_a_store_has_its_turn_about_once_a_minute(clock: Clock) -> None:
    """Not with the first task, and then now and then."""
    # Given
    store = Tended()
    # Then
    assert ask(store, clock, 1) == 0
    assert 6 <= ask(store, clock, 600) <= 20


def test_where_there_is_more_the_next_turn_is_soon(clock: Clock) -> None:
    """Until all of it is done."""
    # Given
    store = Tended()
    ask(store, clock, 100)
    store.more = True
    ask(store, clock, 100)
    # Then
    assert ask(store, clock, 60) >= 20


def test_a_store_that_is_away_has_its_turn_later(clock: Clock) -> None:
    """Nothing is lost by that, and nothing is raised."""
    # Given
    store = Tended()
    store.away = True
    # Then
    assert ask(store, clock, 300) >= 1


def test_a_store_that_deletes_by_itself_is_left_alone(clock: Clock) -> None:
    """Redis and memory have no such method."""
    upkeep.now_and_then(MemoryStore())
