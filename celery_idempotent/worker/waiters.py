"""The messages that a worker holds until the keys that they wait for are free or answered."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import islice, takewhile
from typing import Any, Final
from weakref import WeakSet

from celery.utils.log import get_logger

from celery_idempotent.core.awaited import Outlook, Stage, outlook
from celery_idempotent.core.keys import Owner
from celery_idempotent.core.message import WaitState, read_own
from celery_idempotent.core.verdicts import NEVER_MS
from celery_idempotent.settings import Environment, environment_of
from celery_idempotent.worker.listening import Listener, Sight

log = get_logger("celery_idempotent")

#: After how long a broker without a visibility timeout may take a message back that is not
#: acknowledged (RabbitMQ's ``consumer_timeout``), in seconds.
_TAKEN_BACK_S: Final = 1800.0
#: How long what was seen of a key is relied on past its lease, in seconds.
_SLACK_S: Final = 0.5
#: How long a message is held until its key was seen for the first time, in seconds.
_FIRST_SIGHT_S: Final = 2.0
#: How soon one of those that wait for a lapsed lease is let in after another, in seconds.
_NEXT_S: Final = 1.0
#: For how long the end of a run counts as known for messages that come later, in seconds.
_KNOWN_S: Final = 1.0
#: How many messages are let in before the worker attends to its pool and its broker again.
_AT_ONCE: Final = 100
#: As Celery enters messages with an ETA.
_PRIORITY: Final = 6


@dataclass(slots=True, eq=False)
class Waiter:
    """One message that is held."""

    request: Any
    key: str
    waits: WaitState
    #: When it came, when it would go to the pool by itself, and when it has to, on this process's
    #: monotonic clock.
    since: float
    due: float
    limit: float
    #: For how long it may wait, in seconds.
    timeout: float
    #: Of Celery's timer.
    entry: Any = None

    @property
    def mine(self) -> bool:
        """Whether it is a copy of the message whose run it waits for."""
        return self.waits.redelivery


@dataclass(slots=True)
class _Key:
    """One key, and the messages that wait for it, in their order."""

    lease_s: float
    #: Whether each call runs in its turn (``idempotency_after_wait = "run"``).
    in_turn: bool
    waiters: dict[int, Waiter] = field(default_factory=dict)
    #: Until when somebody holds it for sure, on the monotonic clock: for others, for copies.
    held_until: float = 0.0
    mine_until: float = 0.0
    #: Whether nobody holds it, so that one has to go first.
    lapsed: bool = False
    #: The message that was let in first, and when.
    leader: Any = None
    led_at: float = 0.0
    #: How far the store's clock is ahead of the monotonic one.
    ahead_ms: float | None = None


class Waiters:
    """All messages of one consumer that wait for keys.

    They are Celery's own requests, scheduled in Celery's own timer for the time when they would go
    to the pool by themselves. What the listener sees lets them go sooner, or holds them longer.

    Args:
        consumer: Celery's.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._environment: Environment = environment_of(consumer.app)
        self._listener = Listener(self._environment.store, self._on_seen)
        # Where there is no event loop, Celery's timer is a thread of its own, or a greenlet each.
        self._lock = threading.RLock()
        self._waiters: dict[int, Waiter] = {}
        self._keys: dict[str, _Key] = {}
        #: Whose outcome is in a record, and until when that counts as known, as time.monotonic().
        self._answers: dict[str, tuple[bytes, float]] = {}
        self._connection: Any = None
        self._pipe: tuple[int, int] | None = None

    # --- what comes in ---------------------------------------------------------------------------

    def connect(self) -> None:
        """Forget what came over an earlier connection to the broker: it comes again."""
        if self._connection is not self._consumer.connection:
            self._connection = self._consumer.connection
            with self._lock:
                for key in self._keys:
                    self._listener.unwatch(key)
                self._waiters.clear()
                self._keys.clear()
        hub = self._consumer.hub
        if hub is not None and self._pipe is not None and self._pipe[0] not in hub.readers:
            hub.add_reader(self._pipe[0], self._on_readable)

    def hold(self, request: Any, due: float) -> Any:
        """Hold a message; return its entry in the timer. ``None``: it waits for no key."""
        own = read_own(request._request_dict, request.id)
        if own is None or own[0] is None or not own[1].count:
            return None
        waiter = self._read(request, own[1], due)
        if waiter is None or self._is_answered(waiter):
            due = due if waiter is None else waiter.since
            timer, apply = self._consumer.timer, self._consumer.apply_eta_task
            return timer.call_at(due, apply, (request,), priority=_PRIORITY)
        self._open_pipe()
        options = request.task._setup().options
        with self._lock:
            waiter.entry = self._enter(waiter, due)
            key = self._keys.get(waiter.key)
            if key is None:
                key = self._keys[waiter.key] = _Key(options.lease, options.after_wait == "run")
            key.waiters[id(request)] = self._waiters[id(request)] = waiter
            if waiter.since >= (key.mine_until if waiter.mine else key.held_until):
                self._listener.watch(waiter.key, options.lease)
        return waiter.entry

    def _read(self, request: Any, waits: WaitState, due: float) -> Waiter | None:
        if waits.patient_until_ms == NEVER_MS or waits.to not in (None, request.hostname):
            return None  # it waits for the store, or another worker gets it
        name, options = request.record_name(), request.task._setup().options
        if name is None:
            return None  # idempotency_mode is "off": it will ask for no key
        now, environment = time.monotonic(), self._environment
        longest = (environment.visibility or _TAKEN_BACK_S) / 4
        if options.ttl:
            longest = min(longest, options.ttl / 2)
        if request.expires:
            left = request.expires - datetime.now(request.expires.tzinfo)
            longest = min(longest, left.total_seconds())
        limit = max(due, now + longest)
        return Waiter(request, name, waits, now, due, limit, options.wait_timeout)

    def _is_answered(self, waiter: Waiter) -> bool:
        """Whether the run for which a message waits is known to have an outcome.

        Never for one that was put back twice: it could go to the pool again and again.
        """
        waits, (owner, until) = waiter.waits, self._answers.get(waiter.key, (b"", 0.0))
        if waiter.since >= until or waits.count > 1 or waiter.mine or waits.displaced:
            return False
        return waits.awaited is not None and Owner(*waits.awaited).pack() == owner

    def _know(self, name: str, owner: bytes | None, now: float) -> None:
        """Remember whose outcome answers those that wait for a key; ``None``: nobody's."""
        self._answers.pop(name, None)
        if owner is not None:
            self._answers[name] = owner, now + _KNOWN_S
        # The oldest come first.
        for old in [*takewhile(lambda it: self._answers[it][1] <= now, self._answers)]:
            del self._answers[old]

    def _enter(self, waiter: Waiter, at: float) -> Any:
        entry = self._consumer.timer.call_at(
            at, self._on_due, (waiter.request,), priority=_PRIORITY
        )
        waiter.request._eta_timer_entry = entry
        return entry

    def _over(self, name: str, request: Any) -> None:
        """Look again at the key of a message that was let in first, now that it is over."""
        with self._lock:
            key = self._keys.get(name)
            if key is not None and key.leader is request:
                key.leader = None
                self._listener.watch(name, key.lease_s)

    def discard(self, request: Any) -> None:
        """Give a message to Celery, which discards it: its call was revoked."""
        with self._lock:
            waiter = self._waiters.get(id(request))
            if waiter is None:
                return
            self._drop(waiter)
        self._cancel(waiter)
        self._consumer.apply_eta_task(request)

    def everyone(self) -> list[Waiter]:
        """Return all messages that are held."""
        with self._lock:
            return list(self._waiters.values())

    # --- what lets them go -----------------------------------------------------------------------

    def _on_due(self, request: Any) -> None:
        with self._lock:
            waiter = self._waiters.get(id(request))
            if waiter is None:
                return
            now = time.monotonic()
            again = self._again_at(waiter, self._keys[waiter.key], now)
            if again is not None:
                waiter.entry = self._enter(waiter, again)
                return
            self._lead(waiter, now)
            self._drop(waiter)
        self._consumer.apply_eta_task(request)

    def _again_at(self, waiter: Waiter, key: _Key, now: float) -> float | None:
        """Return until when a message is held on; ``None``: it goes to the pool."""
        limit, since_ms = waiter.limit, waiter.waits.since_ms
        if not waiter.mine and since_ms and key.ahead_ms is not None:
            limit = min(limit, (since_ms - key.ahead_ms) / 1000 + waiter.timeout)
        if now >= limit:
            return None
        until = key.mine_until if waiter.mine else key.held_until
        if now < until:
            return min(until, limit)
        if key.ahead_ms is None and now < waiter.since + _FIRST_SIGHT_S:
            return min(now + _FIRST_SIGHT_S / 8, limit)
        if key.lapsed and key.leader and not waiter.mine and now < key.led_at + key.lease_s:
            return min(now + _NEXT_S, limit)
        return None

    def _lead(self, waiter: Waiter, now: float) -> None:
        key = self._keys[waiter.key]
        if key.lapsed and not waiter.mine:
            key.leader, key.led_at = waiter.request, now
            waiter.request.leads = partial(self._over, waiter.key)

    def _on_seen(self) -> None:
        """Have the sights taken where messages are handed to the pool; from another thread."""
        if self._consumer.hub is None:
            self._consumer.timer.call_at(time.monotonic(), self._take, (), priority=_PRIORITY)
        elif self._pipe is not None:
            with suppress(OSError):
                os.write(self._pipe[1], b"\0")

    def _open_pipe(self) -> None:
        if self._consumer.hub is not None and self._pipe is None:
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)
            self._consumer.hub.add_reader(self._pipe[0], self._on_readable)

    def _on_readable(self) -> None:
        assert self._pipe is not None
        with suppress(OSError):
            os.read(self._pipe[0], 4096)
        self._take()

    def _take(self) -> None:
        sights, left = self._listener.sights, _AT_ONCE
        while sights:
            try:
                sight = sights.popleft()
            except IndexError:
                return
            gone = self._let_go(sight, left)
            for waiter in gone:
                self._cancel(waiter)
                self._consumer.apply_eta_task(waiter.request)
            left -= len(gone)
            if left <= 0:
                # The processes of the pool are given nothing until this returns.
                sights.appendleft(sight)
                self._on_seen()
                return

    def _let_go(self, sight: Sight, most: int) -> list[Waiter]:
        """Take what was seen of a key; return so many messages that go to the pool now."""
        with self._lock:
            key = self._keys.get(sight.key)
            if key is None:
                return []
            key.ahead_ms = sight.now_ms - sight.at * 1000
            others = outlook(sight.record, sight.now_ms, key.lease_s)
            copies = outlook(sight.record, sight.now_ms, key.lease_s, mine=True)
            key.held_until, key.mine_until = _until(others, sight), _until(copies, sight)
            key.lapsed = others.stage in (Stage.FREE, Stage.LAPSED)
            now = time.monotonic()
            answers = others.stage is Stage.ANSWERED and not key.in_turn
            self._know(sight.key, sight.record.owner if answers and sight.record else None, now)
            goes = (
                it
                for it in key.waiters.values()
                if _goes(it, others, copies, sight.is_told, now) and not _is_cancelled(it.entry)
            )
            if key.lapsed or (key.in_turn and others.stage is Stage.ANSWERED):
                # One of them gets the key; the others would find it busy.
                key.lapsed = True
                gone = list(goes)
                first = [it for it in gone if not it.mine][:1]
                if key.leader and now < key.led_at + key.lease_s:
                    first = []
                gone = [it for it in gone if it.mine] + first
                for waiter in first:
                    self._lead(waiter, now)
            else:
                gone = list(islice(goes, most))
            for waiter in gone:
                self._drop(waiter)
            return gone

    def _cancel(self, waiter: Waiter) -> None:
        self._consumer.timer.cancel(waiter.entry)
        # It stays in kombu's timer until its time: it must keep no request, and show none.
        with suppress(AttributeError):
            waiter.entry.args = ()

    def _drop(self, waiter: Waiter) -> None:
        self._waiters.pop(id(waiter.request), None)
        key = self._keys[waiter.key]
        key.waiters.pop(id(waiter.request), None)
        if not key.waiters:
            del self._keys[waiter.key]
            self._listener.unwatch(waiter.key)


def _goes(waiter: Waiter, others: Outlook, copies: Outlook, is_told: bool, now: float) -> bool:
    """Whether a message may go to the pool, after what was seen of its key.

    A lease that is over may be renewed after an outage, and a copy may wait for more than its
    record tells: those go early only when they are told to.
    """
    early = is_told or now >= waiter.due
    if waiter.mine:
        return early and copies.stage is not Stage.HELD
    if waiter.waits.displaced and not early:
        return False  # that run may not have begun: a free key need not be this one's turn
    return others.stage in (Stage.FREE, Stage.ANSWERED) or (early and others.stage is Stage.LAPSED)


def _until(seen: Outlook, sight: Sight) -> float:
    return sight.at + seen.for_s + _SLACK_S if seen.stage is Stage.HELD else 0.0


def _is_cancelled(entry: Any) -> bool:
    """Whether Celery gave a message up, as its connection to the broker broke."""
    return bool(getattr(entry, "canceled", False) or getattr(entry, "dead", False))


_all: WeakSet[Waiters] = WeakSet()


def waiters_of(consumer: Any) -> Waiters:
    """Return the messages of a consumer that wait for keys.

    Raises:
        ConfigurationError: a setting is wrong, or no store can be found.
    """
    found: Waiters | None = vars(consumer).get("_idempotency_waiters")
    if found is None:
        found = consumer._idempotency_waiters = Waiters(consumer)
        _all.add(found)
    return found


def are_held() -> bool:
    """Whether this is a worker that holds messages until a key is free or answered."""
    return bool(_all)


def waiting_messages() -> list[Waiter]:
    """Return all messages that this worker holds until a key is free or answered."""
    return [waiter for waiters in list(_all) for waiter in waiters.everyone()]
