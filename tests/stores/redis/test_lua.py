"""core.transitions and the Lua scripts, told the same, decide the same and store the same bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import Label, Process, Record, State
from celery_idempotent.core.reservation import Reservation, queued_key
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.verdicts import (
    NEVER_MS,
    Claim,
    Claimed,
    Note,
    Recorded,
    Renewal,
    Reserve,
    Resolve,
    Settle,
)
from celery_idempotent.errors import StoreError
from celery_idempotent.stores.base import Store
from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.testing.contract.kit import (
    FAILURE,
    FIRST,
    RESULT,
    SECOND,
    STRANGER,
    Message,
    replace,
)
from celery_idempotent.testing.contract.upkeep import UNREADABLE
from celery_idempotent.testing.servers import RedisServer
from tests.stores.stores_under_test import (
    MemoryClock,
    VirtualClock,
    VirtualRedisStore,
    read_memory,
    write_memory,
    write_redis,
)

Answer = TypeVar("Answer")

KEYS = ("idempotent:{shop.charge:order:42}", "idempotent:{shop.charge:order:43}")
MESSAGES = (FIRST, SECOND, STRANGER, replace(FIRST, nesting=1), replace(FIRST, fingerprint=b""))
YEAR_MS = 366 * 86_400_000
PROCESSES = (Process("worker", 1, "a").pack(), Process("worker", 1, "b").pack())
EXAMPLES = int(os.environ.get("CELERY_IDEMPOTENT_EXAMPLES", "150"))

keys = st.sampled_from(KEYS)
messages = st.builds(Message.retried, st.sampled_from(MESSAGES), st.integers(0, 2))
nonces = st.sampled_from((b"", b"nonc-1", b"nonc-2", b"nonc-3"))
publications = st.sampled_from((b"", b"once", b"anew"))
digests = st.sampled_from((b"callback", b"anothers"))
outcomes = st.sampled_from((b"", RESULT, FAILURE))
spans = st.sampled_from((1, 2, 1_000, 30_000))
packed_steps = st.sampled_from((b"", b"one", b"two"))
owners = st.sampled_from((b"", *(message.owner for message in MESSAGES)))


@st.composite
def candidates(draw: st.DrawFn) -> Record:
    """What a call of claim asks for; few enough that the same comes again, with its nonce."""
    message = draw(messages)
    nonce = draw(nonces)
    # Nonces are of one call: another message never has the same.
    nonce += bytes((MESSAGES.index(replace(message, retries=0)), message.retries)) * bool(nonce)
    return replace(message.candidate(nonce), process=draw(st.sampled_from(PROCESSES)))


@st.composite
def slips(draw: st.DrawFn) -> Slip:
    """What a message is told from others by; in a note, what it was answered."""
    return Slip(
        deaths=draw(st.integers(0, 1)),
        publication=draw(publications),
        digests=draw(digests),
    )


@st.composite
def reservations(draw: st.DrawFn) -> Reservation:
    """What a producer asks for; its times are from now."""
    message = draw(st.sampled_from(MESSAGES))
    return Reservation(
        message.owner,
        draw(st.sampled_from((0, 0, 1, 1_000))),
        draw(st.sampled_from((0, 0, 1, 2, 1_000, 30_000))),
        keeps_result=draw(st.sampled_from((True, True, False))),
        fingerprint=message.fingerprint,
    )


# One look at all that a virtual store holds: the record and the end of each key, and the notes.
_LOOK = """
local seen = {}
for _, key in ipairs(KEYS) do
  seen[#seen + 1] = {redis.call('GET', key), redis.call('ZSCORE', 'virtual:gone', key),
    redis.call('HGETALL', key .. ':steps')}
end
local slips = {}
for _, pattern in ipairs({'*:sent:*', '*:queued'}) do
  for _, key in ipairs(redis.call('KEYS', pattern)) do
    slips[#slips + 1] = key
    slips[#slips + 1] = redis.call('GET', key)
  end
end
seen[#seen + 1] = slips
return seen
"""


class Twins(RuleBasedStateMachine):
    """A memory store and a Redis store that are told the same, and what always holds of both."""

    store: VirtualRedisStore  # given by the test: one connection for all examples

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.memory_clock = MemoryClock()
        self.memory = MemoryStore(self.memory_clock.now_us)
        self.redis_clock = VirtualClock(self.store)
        self.redis_clock.reset()
        #: The highest token given for a key, and the token that is accepted, while a record lasts.
        self.highest: dict[str, int] = {}
        self.accepted: dict[str, int] = {}
        #: Keys that have a record, as far as is known before the next step.
        self.present: set[str] = set()

    def both(self, do: Callable[[Store], Answer]) -> Answer | None:
        """Do it to both stores; they must answer the same, or raise the same (then: ``None``)."""
        answers: list[Any] = []
        for store in (self.memory, self.store):
            try:
                answers.append(do(store))
            except StoreError as exc:
                answers.append((type(exc), str(exc)))
        first, second = (_comparable(answer) for answer in answers)
        assert first == second, f"in memory: {first}\nin Redis: {second}"
        return None if isinstance(answers[0], tuple) else answers[0]

    @rule(
        target=held,
        key=keys,
        candidate=candidates(),
        lease_ms=spans,
        keep_ms=spans,
        most=st.integers(0, 2),
        most_undone=st.integers(0, 2),
        checked=st.booleans(),
        callbacks=st.booleans(),
        awaited=owners,
        message=slips(),
        has_slip=st.sampled_from((True, True, False)),
        is_new=st.booleans(),
        patience=st.sampled_from((0, 0, 1_000)),
        refused=st.booleans(),
        frees=st.booleans(),
        in_turn=st.booleans(),
        reserves=st.booleans(),
        latest=st.booleans(),
        came_ago=st.sampled_from((None, 0, 1, 2, 1_000, 30_000)),
        horizon_ms=st.sampled_from((0, 1, 1_000, 30_000)),
    )
    def claim(
        self,
        key: str,
        candidate: Record,
        lease_ms: int,
        keep_ms: int,
        most: int,
        most_undone: int,
        checked: bool,
        callbacks: bool,
        awaited: bytes,
        message: Slip,
        has_slip: bool,
        is_new: bool,
        patience: int,
        refused: bool,
        frees: bool,
        in_turn: bool,
        reserves: bool,
        latest: bool,
        came_ago: int | None,
        horizon_ms: int,
    ) -> Any:
        ask = Claim(
            candidate,
            lease_ms,
            keep_ms,
            max_interruptions=most,
            max_compensations=most_undone,
            checked=checked,
            callbacks=callbacks,
            awaited=awaited,
            awaited_key=_slip_key(key, awaited) if has_slip else "",
            message=replace(message, retries=candidate.retries),
            slip_key=_slip_key(key, candidate.owner) if has_slip else "",
            is_new=is_new,
            patient_until_ms=patience and self.memory_clock.now_us() // 1000 + patience,
            refused_from_ms=0 if refused else NEVER_MS,
            frees=frees,
            in_turn=in_turn,
            queued_key=queued_key(key) if reserves or latest else "",
            latest=latest,
            came_ms=self.came(came_ago) if latest else 0,
            horizon_ms=horizon_ms,
        )
        before = self.record(key)
        verdict = self.both(lambda store: store.claim(key, ask))
        if not isinstance(verdict, Claimed):
            return multiple()
        if before is not None and before.nonce == candidate.nonce != b"":
            # The same call again: it gets what it had, or nothing.
            assert verdict.token == before.token
        else:
            assert verdict.token > self.highest.get(key, 0)
        self.highest[key] = verdict.token
        return key, verdict.failed or replace(
            candidate,
            token=verdict.token,
            interruptions=verdict.interruptions,
            has_steps=bool(verdict.steps),
            label=Label.read(candidate.label)
            ._replace(origin=verdict.origin, came=verdict.came, cut_off=verdict.cut_off)
            .text(),
        )

    @rule(
        run=held,
        state=st.sampled_from(State),
        delay_ms=st.sampled_from((0, 0, 1, 1_000)),
        ttl_ms=spans,
        outcome=outcomes,
        keeps_process=st.booleans(),
        slip=st.none() | slips(),
        slip_ttl_ms=spans,
        clears_steps=st.booleans(),
        drops_steps_of=st.sampled_from(("", "a", "b")),
        reserves=st.booleans(),
    )
    def settle(
        self,
        run: tuple[str, Record],
        state: State,
        delay_ms: int,
        ttl_ms: int,
        outcome: bytes,
        keeps_process: bool,
        slip: Slip | None,
        slip_ttl_ms: int,
        clears_steps: bool,
        drops_steps_of: str,
        reserves: bool,
    ) -> None:
        key, record = run
        event = Settle(
            replace(
                record,
                state=state,
                outcome=outcome,
                nonce=b"",
                process=record.process if keeps_process else b"",
                retries=record.retries + (state is State.RETRYING),
            ),
            delay_ms,
            ttl_ms,
            slip and replace(slip, answered=True, digests=b"", outcome=outcome),
            slip_ttl_ms,
            _slip_key(key, record.owner),
            clears_steps,
            "" if clears_steps else drops_steps_of,
            queued_key(key) if reserves else "",
        )
        answer = self.both(lambda store: store.settle(key, event))
        if isinstance(answer, Recorded):
            self.highest[key] = max(self.highest.get(key, 0), answer.token)
            settled = self.record(key)
            # An end that is told again is accepted again, also after another run has the key.
            written = settled is not None and settled.token == record.token
            if written and state in (State.SUCCEEDED, State.FAILED):
                assert self.accepted.setdefault(key, record.token) == record.token

    @rule(
        run=held,
        slip=slips(),
        lease_ms=spans,
        ttl_ms=spans,
        slip_ttl_ms=spans,
        count=st.integers(0, 2),
        reserves=st.booleans(),
    )
    def give_the_key_up(
        self,
        run: tuple[str, Record],
        slip: Slip,
        lease_ms: int,
        ttl_ms: int,
        slip_ttl_ms: int,
        count: int,
        reserves: bool,
    ) -> None:
        key, record = run
        left = replace(
            slip,
            retries=record.retries,
            digests=b"",
            holder=record.nonce.ljust(8, b"\0") + record.process,
            outcome=bytes((count,)) if count else b"",
            released=True,
        )
        event = Settle(
            replace(record, state=State.RELEASED, outcome=b"", nonce=b"", process=b""),
            lease_ms,
            ttl_ms,
            left,
            slip_ttl_ms,
            _slip_key(key, record.owner),
            queued_key=queued_key(key) if reserves else "",
        )
        answer = self.both(lambda store: store.settle(key, event))
        if isinstance(answer, Recorded):
            self.highest[key] = max(self.highest.get(key, 0), answer.token)

    @rule(
        runs=st.lists(held, max_size=3),
        lease_ms=spans,
        keep_ms=spans,
        delivers=st.booleans(),
        has_slip=st.booleans(),
    )
    def renew(
        self,
        runs: list[tuple[str, Record]],
        lease_ms: int,
        keep_ms: int,
        delivers: bool,
        has_slip: bool,
    ) -> None:
        state = State.SUCCEEDED if delivers else State.RUNNING
        renewals = [
            Renewal(
                key,
                replace(record, state=state),
                lease_ms,
                keep_ms,
                _slip_key(key, record.owner) if has_slip else "",
            )
            for key, record in runs
        ]
        self.both(lambda store: [_comparable(answer) for answer in store.renew(renewals)])

    @rule(
        run=held,
        lease_ms=spans,
        keep_ms=spans,
        name=st.sampled_from("ab"),
        packed=packed_steps,
        has_slip=st.booleans(),
    )
    def step(
        self,
        run: tuple[str, Record],
        lease_ms: int,
        keep_ms: int,
        name: str,
        packed: bytes,
        has_slip: bool,
    ) -> None:
        key, record = run
        slip = _slip_key(key, record.owner) if has_slip else ""
        renewal = Renewal(key, record, lease_ms, keep_ms, slip)
        self.both(lambda store: store.step(renewal, name, packed))

    @rule(
        key=keys,
        state=st.sampled_from((State.SUCCEEDED, State.FAILED, State.RELEASED)),
        outcome=st.sampled_from((b"", RESULT, FAILURE)),
        ttl_ms=spans,
        compensate=st.booleans(),
        clears_steps=st.booleans(),
    )
    def resolve(
        self,
        key: str,
        state: State,
        outcome: bytes,
        ttl_ms: int,
        compensate: bool,
        clears_steps: bool,
    ) -> None:
        event = Resolve(state, outcome, ttl_ms, compensate, clears_steps)
        if self.both(lambda store: store.resolve(key, event)):
            resolved = self.record(key)
            assert resolved is not None
            assert resolved.token > self.highest.get(key, 0)
            self.highest[key] = resolved.token
            if state is State.SUCCEEDED:
                assert self.accepted.setdefault(key, resolved.token) == resolved.token

    @rule(
        key=keys,
        seen=st.booleans(),
        kept=st.lists(st.sampled_from("ab"), unique=True),
        ttl_ms=spans,
    )
    def rewind(self, key: str, seen: bool, kept: list[str], ttl_ms: int) -> None:
        record = self.record(key)
        token = 1 if record is None or not seen else record.token
        if self.both(lambda store: store.rewind(key, token, kept, ttl_ms)):
            rewound = self.record(key)
            assert rewound is not None
            assert rewound.token > self.highest.get(key, 0)
            self.highest[key] = rewound.token
            self.accepted.pop(key, None)

    @rule(
        run=held,
        owner=owners,
        slip=slips(),
        answered=st.booleans(),
        succeeded=st.booleans(),
        released=st.booleans(),
        outcome=outcomes,
        ttl_ms=spans,
        sends_ms=st.sampled_from((0, 0, 1, 1_000)),
    )
    def note(
        self,
        run: tuple[str, Record],
        owner: bytes,
        slip: Slip,
        answered: bool,
        succeeded: bool,
        released: bool,
        outcome: bytes,
        ttl_ms: int,
        sends_ms: int,
    ) -> None:
        key, record = run
        told = replace(
            slip, answered=answered, succeeded=succeeded, outcome=outcome, released=released
        )
        # A release has a token of its own, one higher.
        token = max(record.token, (self.record(key) or record).token)
        event = Note(_slip_key(key, owner or record.owner), told, token, ttl_ms, sends_ms)
        self.both(lambda store: store.note(key, event))

    @rule(key=keys, owner=owners, process=st.sampled_from((b"", *PROCESSES)))
    def end_lease(self, key: str, owner: bytes, process: bytes) -> None:
        slip = _slip_key(key, owner)
        self.both(lambda store: store.end_lease(key, owner, process, slip))

    @rule(key=keys, candidate=candidates(), ttl_ms=spans)
    def abandon(self, key: str, candidate: Record, ttl_ms: int) -> None:
        self.both(lambda store: store.abandon(key, candidate, ttl_ms))

    @rule(run=held, ttl_ms=spans)
    def abandon_a_granted_claim(self, run: tuple[str, Record], ttl_ms: int) -> None:
        key, record = run
        self.both(lambda store: store.abandon(key, replace(record, token=0), ttl_ms))

    @rule(key=keys, ttl_ms=spans)
    def forget(self, key: str, ttl_ms: int) -> None:
        self.both(lambda store: store.forget(key, ttl_ms))
        self.accepted.pop(key, None)

    @rule(
        key=keys,
        reservation=reservations(),
        hold_ms=spans,
        attaches=st.sampled_from((True, True, False)),
        checked=st.booleans(),
        over=st.lists(owners, max_size=2),
    )
    def reserve(
        self,
        key: str,
        reservation: Reservation,
        hold_ms: int,
        attaches: bool,
        checked: bool,
        over: list[bytes],
    ) -> None:
        ask = Reserve(reservation, hold_ms, attaches, checked, tuple(over))
        self.both(lambda store: store.reserve(key, ask))

    @rule(key=keys, owner=owners, ttl_ms=spans)
    def confirm(self, key: str, owner: bytes, ttl_ms: int) -> None:
        self.both(lambda store: store.confirm(key, owner, ttl_ms))

    @rule(key=keys, ttl_ms=spans)
    def confirm_what_is_there(self, key: str, ttl_ms: int) -> None:
        found = self.both(lambda store: store.reservation(key))
        if found is not None:
            self.confirm(key, found.owner, ttl_ms)

    @rule(key=keys, owner=owners)
    def unreserve(self, key: str, owner: bytes) -> None:
        self.both(lambda store: store.unreserve(key, owner))

    @rule(key=keys)
    def get(self, key: str) -> None:
        self.both(lambda store: (store.get(key),))
        self.both(lambda store: sorted(store.scan("idempotent:*")))

    @rule(ms=st.sampled_from((1, 2, 999, 1_000, 30_000, -1, -60_000)))
    def advance(self, ms: int) -> None:
        self.memory_clock.advance(ms)
        self.redis_clock.advance(ms)
        now_ms = self.memory_clock.now_us() // 1000
        # A server deletes what is over; memory only when it is looked at, which matters where the
        # clock goes back.
        self.memory._slips = {
            name: (packed, end)
            for name, (packed, end) in self.memory._slips.items()
            if end > now_ms
        }
        for key in KEYS:
            if self.memory.ttl(key) is None:
                self.memory._records.pop(key, None)
                self.memory._steps.pop(key, None)
                self.present.discard(key)
                self.highest.pop(key, None)
                self.accepted.pop(key, None)

    @rule(key=keys, before_ms=st.sampled_from((0, 1)), later=st.sampled_from((0, 1, 1_000, 30_000)))
    def advance_to_an_instant(self, key: str, before_ms: int, later: int) -> None:
        record = self.record(key)
        if record is not None and record.until_ms:
            self.go_to(record.until_ms + later - before_ms)

    @rule(key=keys, before_ms=st.sampled_from((0, 1)))
    def advance_to_the_end_of_a_record(self, key: str, before_ms: int) -> None:
        left = self.memory.ttl(key)
        if left is not None:
            self.go_to(self.memory_clock.now_us() // 1000 + round(left * 1000) - before_ms)

    @rule(key=keys, spoil=st.sampled_from(sorted(UNREADABLE)))
    def spoil(self, key: str, spoil: str) -> None:
        self.write(key, UNREADABLE[spoil][0])

    @rule(key=keys, at=st.integers(0, 23), value=st.integers(0, 255))
    def spoil_the_header(self, key: str, at: int, value: int) -> None:
        packed = read_memory(self.memory, key)
        if self.memory.ttl(key) is not None and packed is not None and len(packed) >= 24:
            spoilt = packed[:at] + bytes((value,)) + packed[at + 1 :]
            # Whether there are steps stays said: beside a record that denies them they live on.
            self.write(key, spoilt[:2] + bytes((spoilt[2] & ~1 | packed[2] & 1,)) + spoilt[3:])

    @rule(key=keys, size=st.integers(0, 120))
    def cut_short(self, key: str, size: int) -> None:
        packed = read_memory(self.memory, key)
        if self.memory.ttl(key) is not None and packed is not None:
            self.write(key, packed[:size])

    @invariant()
    def the_same_is_stored(self) -> None:
        """The bytes, what is left of their time, and the slips are the same in both."""
        look = self.store._wire.command("EVAL", _LOOK, len(KEYS), *KEYS)
        now_ms = self.memory_clock.now_us() // 1000
        for key, (packed, gone_ms, steps) in zip(KEYS, look, strict=False):
            left = self.memory.ttl(key)
            in_redis = {
                name.decode(): step for name, step in zip(steps[::2], steps[1::2], strict=True)
            }
            assert self.memory.steps(key) == in_redis
            assert (left is None) is (packed is None)
            if left is not None:
                assert _known(read_memory(self.memory, key)) == _known(packed)
                assert round(left * 1000) == int(gone_ms) - now_ms
        slips = dict(zip(look[-1][::2], look[-1][1::2], strict=True))
        assert {name.decode(): packed for name, packed in slips.items()} == {
            name: packed
            for name, (packed, gone_ms) in self.memory._slips.items()
            if gone_ms > now_ms
        }

    @invariant()
    def nothing_disappears(self) -> None:
        """A record that was there is there, unless its time ran out."""
        there = {key for key in KEYS if self.memory.ttl(key) is not None}
        assert self.present <= there
        self.present = there

    def came(self, ago_ms: int | None) -> int:
        """When a call came first, so long ago; 0: it comes first now."""
        return 0 if ago_ms is None else self.memory_clock.now_us() // 1000 - ago_ms

    def record(self, key: str) -> Record | None:
        try:
            return self.memory.get(key)
        except StoreError:
            return None

    def write(self, key: str, packed: bytes) -> None:
        """Put bytes into both; from then on nothing is promised of the key's past."""
        write_memory(self.memory, key, packed)
        write_redis(self.store, key, packed)
        self.memory._steps.pop(key, None)
        self.store._wire.command("DEL", f"{key}:steps")
        self.highest.pop(key, None)
        self.accepted.pop(key, None)

    def go_to(self, ms: int) -> None:
        ahead_ms = ms - self.memory_clock.now_us() // 1000
        if abs(ahead_ms) < YEAR_MS:  # a spoilt instant may be far beyond what a clock shows
            self.advance(ahead_ms)


def _slip_key(key: str, owner: bytes) -> str:
    known = Owner.unpack(owner)
    return "" if known is None else known.slip_key(key)


def _known(packed: bytes) -> bytes:
    """A record without the flags that no version knows: who writes it again leaves them out.

    A row is written again where only its slip changes, so that nobody changes it meanwhile. A
    script needs no such thing, and the flags stay until it writes the record.
    """
    return packed[:2] + bytes(flags & 3 for flags in packed[2:3]) + packed[3:]


def _comparable(answer: Any) -> Any:
    return (type(answer), str(answer)) if isinstance(answer, Exception) else answer


@pytest.fixture
def virtual_store(session_server: RedisServer) -> Iterator[VirtualRedisStore]:
    store = VirtualRedisStore.from_url(session_server.url(3))
    assert isinstance(store, VirtualRedisStore)
    yield store
    store.close()


@pytest.mark.long(10)
def test_memory_and_redis_are_the_same(virtual_store: VirtualRedisStore) -> None:
    """Whatever happens in whatever order: equal verdicts, equal bytes, equal times to live.

    And of both: tokens only rise, one completion is accepted in a window, nothing disappears.
    """

    class TheseTwins(Twins):
        store = virtual_store

    run_state_machine_as_test(
        TheseTwins,
        settings=hypothesis.settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )
