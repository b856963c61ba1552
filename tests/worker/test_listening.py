"""A worker's parent hears when runs are over that its messages wait for, or looks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from celery_idempotent.core.awaited import Stage, outlook
from celery_idempotent.core.record import Record
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.testing.contract.kit import (
    FIRST,
    KEY,
    SECOND,
    claim,
    complete,
    hold,
    interrupt,
)
from celery_idempotent.worker.listening import Listener, Sight
from tests.support.waiting import eventually

LEASE_S = 30.0
#: So long that a run is not looked at again by itself while a test waits.
LONG_LEASE_S = 36_000.0


class Line:
    """A subscription in the hand of a test."""

    def __init__(self, store: Telling) -> None:
        self._store = store
        self._pipe = os.pipe()
        self._told: list[str] = []
        self.keys: set[str] = set()
        self.broken = False

    def tell(self, key: str) -> None:
        self._told.append(key)
        os.write(self._pipe[1], b"\0")

    def cut(self) -> None:
        self.broken = True
        os.write(self._pipe[1], b"\0")

    def sockets(self) -> Sequence[int]:
        return [self._pipe[0]]

    def follow(self, keys: Sequence[str]) -> None:
        self._store.on_follow()
        self.keys.update(keys)

    def unfollow(self, keys: Sequence[str]) -> None:
        self.keys.difference_update(keys)

    def read(self) -> list[str]:
        if self.broken:
            raise StoreUnavailable("cut")
        told, self._told = self._told, []
        if told:
            os.read(self._pipe[0], 1000)
        return told

    def check(self) -> None:
        if self.broken:
            raise StoreUnavailable("cut")

    def close(self) -> None:
        """Nobody hears of it any more."""


class Telling(MemoryStore):
    """A store that tells the ends of runs, when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[Line] = []
        self.on_follow: Callable[[], None] = lambda: None
        self.looks = 0
        self.is_cut_off = False

    def subscribe(self) -> Line:
        if self.is_cut_off:
            raise StoreUnavailable("cut off")
        self.lines.append(Line(self))
        return self.lines[-1]

    def get_many(self, keys: Sequence[str]) -> list[Record | None]:  # type: ignore[override]
        self.looks += 1
        return super().get_many(keys)  # type: ignore[return-value]


@pytest.fixture
def store() -> Telling:
    return Telling()


@pytest.fixture
def listener(store: MemoryStore) -> Iterator[Listener]:
    made = Listener(store, threading.Event().set)
    yield made
    made.unwatch(KEY)


def waited_for(store: MemoryStore, lease_s: float = LEASE_S) -> Record:
    """A run that somebody waits for."""
    held = hold(store, FIRST, lease_ms=int(lease_s * 1000))
    claim(store, SECOND)
    return held


def next_sight(listener: Listener, stage: Stage) -> Sight:
    """The next thing that is seen of the key, and is of that kind."""

    def found() -> Sight | None:
        while listener.sights:
            sight = listener.sights.popleft()
            if outlook(sight.record, sight.now_ms, LEASE_S).stage is stage:
                return sight
        return None

    sight = eventually(found, f"{stage} seen")
    assert sight is not None
    return sight


def test_an_end_between_the_last_answer_and_the_subscription_is_seen(
    store: Telling, listener: Listener
) -> None:
    """The key is looked at once its end can be told, and not before."""
    # Given
    held = waited_for(store)
    store.on_follow = lambda: complete(store, held) and None
    # When
    listener.watch(KEY, LEASE_S)
    # Then
    assert not next_sight(listener, Stage.ANSWERED).is_told


def test_what_is_told_is_looked_at(store: Telling, listener: Listener) -> None:
    """At once, long before it would be looked at by itself."""
    # Given
    held = waited_for(store, LONG_LEASE_S)
    listener.watch(KEY, LONG_LEASE_S)
    next_sight(listener, Stage.HELD)
    # When
    complete(store, held)
    store.lines[0].tell(KEY)
    # Then
    assert next_sight(listener, Stage.ANSWERED).is_told


def test_an_end_is_seen_that_was_told_as_the_line_broke(store: Telling, listener: Listener) -> None:
    """Nobody has read it, and there is no other line yet: the key is looked at all the same."""
    # Given
    held = waited_for(store, LONG_LEASE_S)
    listener.watch(KEY, LONG_LEASE_S)
    next_sight(listener, Stage.HELD)
    # When
    complete(store, held)
    store.is_cut_off = True
    store.lines[0].cut()
    # Then
    next_sight(listener, Stage.ANSWERED)


def test_an_end_while_the_line_is_cut_is_seen(store: Telling, listener: Listener) -> None:
    """The key is looked at when the line breaks, and when there is another one."""
    # Given
    held = waited_for(store)
    listener.watch(KEY, LEASE_S)
    next_sight(listener, Stage.HELD)
    store.on_follow = lambda: complete(store, held) and None
    # When
    store.lines[0].cut()
    # Then
    next_sight(listener, Stage.ANSWERED)
    assert len(store.lines) == 2
    assert store.lines[1].keys == {KEY}


def test_a_key_that_is_left_and_watched_again_is_told_of(
    store: Telling, listener: Listener
) -> None:
    """As where the connection to the broker broke, and its messages came again at once."""
    # Given
    held = waited_for(store)
    listener.watch(KEY, LEASE_S)
    next_sight(listener, Stage.HELD)
    # When
    with listener._lock:
        post = listener._posts.pop(KEY)
        listener._left.append(KEY)
        listener._posts[KEY] = type(post)(KEY, LEASE_S)
        listener._attend()
    next_sight(listener, Stage.HELD)
    # Then
    assert store.lines[0].keys == {KEY}
    complete(store, held)


def test_a_run_whose_end_is_told_is_hardly_looked_at(store: Telling, listener: Listener) -> None:
    """Unlike one that has lost its mark."""
    # Given
    waited_for(store)
    listener.watch(KEY, LEASE_S)
    next_sight(listener, Stage.HELD)
    # When
    listener.watch("another", LEASE_S)
    eventually(lambda: any(sight.key == "another" for sight in listener.sights), "it is seen")
    # Then
    assert not any(sight.key == KEY for sight in listener.sights)
    listener.unwatch("another")


def test_a_run_whose_end_is_not_told_is_looked_at_again_and_again(listener: Listener) -> None:
    """Here nobody has marked it: as often as a tenth of its age, so that the end is seen."""
    store = listener._store
    held = hold(store, FIRST)
    listener.watch(KEY, LEASE_S)
    for _ in range(3):
        next_sight(listener, Stage.HELD)
    complete(store, held)
    next_sight(listener, Stage.ANSWERED)


def test_a_store_that_tells_nothing_is_looked_at() -> None:
    """The base class has no subscription."""
    # Given
    store = MemoryStore()
    listener = Listener(store, threading.Event().set)
    held = waited_for(store)
    listener.watch(KEY, LEASE_S)
    next_sight(listener, Stage.HELD)
    # When
    complete(store, held)
    # Then
    next_sight(listener, Stage.ANSWERED)
    listener.unwatch(KEY)


def test_a_lease_that_is_over_is_seen(store: Telling, listener: Listener) -> None:
    """It tells nobody anything: whoever waits has to look."""
    # Given
    held = hold(store, FIRST, lease_ms=300)
    claim(store, SECOND)
    # When
    listener.watch(KEY, 0.3)
    # Then
    next_sight(listener, Stage.LAPSED)
    interrupt(store, held)
