"""One thread of the worker's parent: it hears when the runs that others wait for are over."""

from __future__ import annotations

import logging
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from celery_idempotent.core.awaited import SHORTEST_POLL_S, Stage, outlook, poll_s
from celery_idempotent.core.record import Record
from celery_idempotent.errors import StoreError
from celery_idempotent.observers import OncePerSecond
from celery_idempotent.stores.base import Store, Subscription, or_error

log = logging.getLogger("celery_idempotent")
_lines: Final = OncePerSecond()

#: How often a key is looked at that nobody holds, until somebody gets it, in seconds.
_FREE_S: Final = 0.5
#: A run whose end is told is looked at after that part of a lease all the same: its mark may have
#: gone, as an older release renews without it.
_PART_OF_LEASE: Final = 0.4
#: How soon a subscription that broke is tried again, in seconds; twice as long each time.
_AGAIN_S: Final = 0.5
_AGAIN_MOST_S: Final = 30.0
#: How often a silent connection is asked whether it is alive, in seconds.
_CHECKED_S: Final = 5.0
#: How long the thread stays when nothing waits any more, in seconds.
_LINGERS_S: Final = 5.0
#: How many keys are looked at at once.
_PAGE: Final = 500


class Sight(NamedTuple):
    """What was seen of one key."""

    key: str
    record: Record | None
    #: The store's clock at that moment, and this process's.
    now_ms: int
    at: float
    #: Whether it was looked at because its run's end was told.
    is_told: bool


@dataclass(slots=True)
class _Post:
    """One key that is looked at."""

    key: str
    lease_s: float
    look_at: float = 0.0
    is_told: bool = False
    is_followed: bool = False


class Listener:
    """Looks at the keys that a worker's messages wait for, and is told of the ends of their runs.

    A key is looked at when it is first asked for, once its end can be told; when it is told; and
    when the run's lease ends. Where the store tells nothing, it is looked at again and again: the
    end of a run is then noticed late by a tenth of its duration.

    Args:
        store: where the records are.
        seen: is called, in the listener's thread, after something was put into :attr:`sights`.
    """

    def __init__(self, store: Store, seen: Callable[[], None]) -> None:
        self._store = store
        self._seen = seen
        self._lock = threading.Lock()
        self._posts: dict[str, _Post] = {}
        self._left: list[str] = []
        self._thread: threading.Thread | None = None
        self._pipe: tuple[int, int] | None = None
        #: What was seen and not taken yet.
        self.sights: deque[Sight] = deque()
        self._subscription: Subscription | None = None
        self._subscribe_at = 0.0
        self._again_s = _AGAIN_S
        self._check_at = 0.0

    # --- from other threads ----------------------------------------------------------------------

    def watch(self, key: str, lease_s: float) -> None:
        """Look at a key from now on: at once, and also if it is looked at already."""
        with self._lock:
            post = self._posts.get(key)
            if post is None:
                self._posts[key] = _Post(key, lease_s)
            else:
                post.look_at = 0.0
            self._attend()

    def unwatch(self, key: str) -> None:
        """Look at a key no more: nothing waits for it."""
        with self._lock:
            post = self._posts.pop(key, None)
            if post is not None and post.is_followed:
                self._left.append(key)

    def _attend(self) -> None:
        if self._thread is None:
            if self._pipe is None:
                self._pipe = os.pipe()
                for end in self._pipe:
                    os.set_blocking(end, False)
            self._thread = threading.Thread(
                target=self._listen, name="idempotency-listener", daemon=True
            )
            self._thread.start()
        elif self._pipe is not None:
            with suppress(OSError):  # it is full: the thread wakes up anyway
                os.write(self._pipe[1], b"\0")

    # --- the thread ------------------------------------------------------------------------------

    def _listen(self) -> None:
        idle_since: float | None = None
        try:
            while True:
                now = time.monotonic()
                with self._lock:
                    if self._posts:
                        idle_since = None
                    elif idle_since is None:
                        idle_since = now
                    elif now >= idle_since + _LINGERS_S:
                        self._thread = None
                        return
                try:
                    self._turn(now)
                except Exception:
                    log.exception("looking at what is waited for went wrong; it goes on")
                    time.sleep(_AGAIN_S)
        finally:
            self._unsubscribe()

    def _turn(self, now: float) -> None:
        self._follow(now)
        if self._look(time.monotonic()):
            self._seen()
        self._wait()
        for key in self._heard():
            with self._lock:
                post = self._posts.get(key)
                if post is not None:
                    post.look_at, post.is_told = 0.0, True

    def _follow(self, now: float) -> None:
        """Subscribe to new keys before they are looked at, so that no end falls in between."""
        with self._lock:
            new = [post for post in self._posts.values() if not post.is_followed]
            left, self._left = self._left, []
        try:
            if self._subscription is None:
                if now < self._subscribe_at or not new:
                    return
                self._subscription = self._store.subscribe()
                if self._subscription is None:
                    self._subscribe_at = float("inf")
                    return
                self._check_at = now + _CHECKED_S
            elif now >= self._check_at:
                self._check_at = now + _CHECKED_S
                self._subscription.check()
            # In this order: a key that was left may be one that is new.
            if left:
                self._subscription.unfollow(left)
            if new:
                self._subscription.follow([post.key for post in new])
        except StoreError as exc:
            self._broke(now, exc)
            return
        for post in new:
            post.is_followed, post.look_at = True, 0.0
        self._again_s = _AGAIN_S

    def _broke(self, now: float, exc: StoreError) -> None:
        self._unsubscribe()
        self._subscribe_at = now + self._again_s
        self._again_s = min(2 * self._again_s, _AGAIN_MOST_S)
        end = _lines.turn()
        if end is not None:
            log.info("ends of runs are looked for, as they can't be told now: %s%s", exc, end)

    def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        with self._lock:
            for post in self._posts.values():
                # What it told and nobody has read is lost: look at each key.
                if post.is_followed:
                    post.is_followed, post.look_at = False, 0.0
            self._left = []
        if subscription is not None:
            with suppress(Exception):
                subscription.close()

    def _look(self, now: float) -> bool:
        with self._lock:
            due = [post for post in self._posts.values() if post.look_at <= now]
            told = {post.key for post in due if post.is_told}
            for post in due:
                post.is_told = False
                post.look_at = now + _AGAIN_S  # unless this look succeeds
        seen = False
        for start in range(0, len(due), _PAGE):
            posts = due[start : start + _PAGE]
            try:
                now_ms = self._store.now_ms()
                at = time.monotonic()
                records = self._store.get_many([post.key for post in posts])
            except StoreError:
                return seen  # nothing can be said of them now
            for post, record in zip(posts, records, strict=True):
                if isinstance(record, StoreError):
                    # By itself: a list takes a right that workers did not need before.
                    record = or_error(self._store.get, post.key)
                if not isinstance(record, StoreError):
                    self._schedule(post, record, now_ms, at)
                    self.sights.append(Sight(post.key, record, now_ms, at, post.key in told))
                    seen = True
        return seen

    def _schedule(self, post: _Post, record: Record | None, now_ms: int, at: float) -> None:
        looks = outlook(record, now_ms, post.lease_s)
        over_s = looks.for_s + SHORTEST_POLL_S
        if looks.stage is not Stage.HELD:
            next_s = _FREE_S
        elif looks.is_told and post.is_followed:
            next_s = min(over_s, max(1.0, post.lease_s * _PART_OF_LEASE))
        else:
            next_s = min(over_s, poll_s(looks.age_s))
        with self._lock:
            # Unless something was told of it, or it was asked for, in the meantime.
            if post.look_at > 0.0:
                post.look_at = at + next_s

    def _wait(self) -> None:
        with self._lock:
            times = [post.look_at for post in self._posts.values()]
            if any(not post.is_followed for post in self._posts.values()):
                times.append(self._subscribe_at)
        if self._subscription is not None:
            times.append(self._check_at)
        pause = min(times, default=float("inf")) - time.monotonic()
        pause = min(max(pause, 0.0), _LINGERS_S)
        assert self._pipe is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._pipe[0], selectors.EVENT_READ)
            if self._subscription is not None:
                for socket in self._subscription.sockets():
                    selector.register(socket, selectors.EVENT_READ)
            selector.select(pause)
        with suppress(OSError):
            os.read(self._pipe[0], 4096)

    def _heard(self) -> list[str]:
        if self._subscription is None:
            return []
        try:
            return self._subscription.read()
        except StoreError as exc:
            self._broke(time.monotonic(), exc)
            return []
