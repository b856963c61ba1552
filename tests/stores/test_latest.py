"""Seeded schedules of calls of which only the newest waits, against the store itself."""

from __future__ import annotations

import heapq
import itertools
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import State
from celery_idempotent.core.reservation import queued_key
from celery_idempotent.core.verdicts import Busy, Claim, Claimed, Replay, Settle
from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.testing.contract.kit import KEY, RESULT, Message, replace

SCHEDULES = int(os.environ.get("CELERY_IDEMPOTENT_EXAMPLES", "2000"))
LEASE_MS = 1_000
KEEP_MS = 3_600_000


@dataclass
class Call:
    """A call, and what its message says."""

    name: str
    since_ms: int = 0
    awaited: bytes = b""
    retries: int = 0
    #: When the store has seen it first, in turn with all others.
    place: int | None = None
    answer: object = None

    @property
    def message(self) -> Message:
        return Message(self.name, self.retries)


@dataclass
class Schedule:
    """One schedule, drawn from its seed: calls come, run, wait, and are killed and lost."""

    seed: int
    now_us: int = 1_750_000_000_000_000
    calls: list[Call] = field(default_factory=list)
    #: The name of the call of each run, and the name of the one that runs.
    runs: list[str] = field(default_factory=list)
    running: str | None = None
    problems: list[str] = field(default_factory=list)
    is_hurt: bool = False

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.store = MemoryStore(lambda: self.now_us)
        self.kills = self.chance.choice((0.0, 0.1, 0.4)) if self.seed % 2 else 0.0
        self.refused = self.chance.choice((0.0, 0.2))
        self.places = itertools.count()
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, ms: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_us + int(ms * 1000), next(self._numbers), do))

    def play(self) -> list[str]:
        within = self.chance.choice((1, 300, 3_000))
        for number in range(self.chance.choice((2, 3, 5, 8))):
            call = Call(f"call {number}")
            self.calls.append(call)
            self.at(self.chance.uniform(0, within), lambda call=call: self.deliver(call, call))
        for _ in range(5_000):
            if not self._events:
                break
            self.now_us, _, do = heapq.heappop(self._events)
            do()
        else:
            self.problems.append("it goes on without end")
        self.judge()
        return self.problems

    def deliver(self, call: Call, message: Call) -> None:
        """Let a copy of a call's message come, as it says."""
        ask = Claim(
            replace(message.message.candidate(self.chance.randbytes(8)), fingerprint=b""),
            LEASE_MS,
            KEEP_MS,
            max_interruptions=100,
            message=message.message.slip,
            slip_key=message.message.slip_key,
            awaited=message.awaited,
            awaited_key=_slip_key(message.awaited),
            frees=True,
            in_turn=True,
            latest=True,
            came_ms=message.since_ms,
            queued_key=queued_key(KEY),
            horizon_ms=KEEP_MS,
        )
        verdict = self.store.claim(KEY, ask)
        if call.place is None:
            call.place = next(self.places)
        if isinstance(verdict, Claimed):
            self.run(call, message, verdict)
        elif isinstance(verdict, Replay):
            call.answer = call.answer or verdict.record.outcome
        elif isinstance(verdict, Busy):
            self.wait(call, message, verdict)
        else:
            self.problems.append(f"{call.name}: {verdict}")

    def wait(self, call: Call, message: Call, verdict: Busy) -> None:
        left = replace(message)
        if self.chance.random() >= self.refused and not verdict.mine:
            left.since_ms = message.since_ms or verdict.now_ms
            displaced = left.since_ms <= verdict.record.came_ms
            left.awaited = verdict.record.owner if displaced else b""
        self.at(self.chance.uniform(1, 400), lambda: self.deliver(call, left))

    def run(self, call: Call, message: Call, verdict: Claimed) -> None:
        if self.running is not None:
            self.problems.append(f"{call.name} runs beside {self.running}")
        self.runs.append(call.name)
        held = self.store.get(KEY)
        assert held is not None
        held = held._replace(token=verdict.token)
        if self.chance.random() < self.kills:
            # Its message comes as it was, and nobody renews its lease.
            self.is_hurt = True
            late = self.chance.choice((10, 500, 3_000, 20_000))
            self.at(late, lambda: self.deliver(call, message))
            return
        self.running = call.name
        self.at(self.chance.uniform(1, LEASE_MS - 1), lambda: self.end(call, held))

    def end(self, call: Call, held: Any) -> None:
        self.running = None
        call.answer = call.name.encode()
        ended = held._replace(state=State.RELEASED, outcome=RESULT, process=b"", nonce=b"")
        slip = replace(call.message.slip, answered=True, digests=b"", outcome=RESULT)
        event = Settle(ended, 0, KEEP_MS, slip, KEEP_MS, call.message.slip_key)
        self.store.settle(KEY, event)

    def judge(self) -> None:
        came = sorted(self.calls, key=lambda call: call.place or 0)
        self.problems += [f"{it.name} is not answered" for it in came if it.answer is None]
        last = came[-1].name
        if last not in self.runs:
            self.problems.append(f"{last} came last, and did not run: {self.runs}")
        places = [next(it.place for it in came if it.name == name) for name in self.runs]
        if not self.is_hurt and places != sorted(set(places)):
            self.problems.append(f"not in their order, or twice: {self.runs}")


def _slip_key(owner: bytes) -> str:
    known = Owner.unpack(owner)
    return "" if known is None else known.slip_key(KEY)


@pytest.mark.long(3)
def test_the_newest_call_is_never_lost() -> None:
    """Never two at once, all answered, and the call that came last runs after it was made."""
    runs = calls = 0
    for seed in range(SCHEDULES):
        schedule = Schedule(seed)
        assert not schedule.play(), f"schedule {seed}"
        runs, calls = runs + len(schedule.runs), calls + len(schedule.calls)
    # Then most calls did not have to run
    assert runs < 0.9 * calls, (runs, calls)


@pytest.mark.parametrize("lost", ["the place", "the instant"])
def test_a_schedule_notices_a_fault(monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    """Without the place of the one that waits, or where a message forgets when it came."""
    # Given
    real = MemoryStore.claim

    def claim(store: MemoryStore, key: str, ask: Claim) -> Any:
        if lost == "the place":
            store._slips.pop(queued_key(key), None)
        else:
            ask = ask._replace(came_ms=0)
            store._slips.pop(ask.slip_key, None)
        return real(store, key, ask)

    monkeypatch.setattr(MemoryStore, "claim", claim)
    # Then
    assert any(Schedule(seed).play() for seed in range(300))
