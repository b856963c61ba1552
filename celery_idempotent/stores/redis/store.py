"""Records in Redis or Valkey: each operation is one script on the server."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from celery_idempotent.core.record import VERSION, Record, State
from celery_idempotent.core.reservation import Reservation, key_of_queued, queued_key
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.verdicts import (
    UNKNOWN_TTL_MS,
    Busy,
    Claim,
    Claimed,
    ClaimVerdict,
    Lost,
    Mismatch,
    Note,
    Recorded,
    Renewal,
    Replay,
    Reserve,
    Reserved,
    Resolve,
    Settle,
    Superseded,
    Taken,
    Unknown,
)
from celery_idempotent.errors import RecordCorrupt, StoreError
from celery_idempotent.stores.base import (
    GIVEN_UP_MS,
    STEPS,
    AskableStore,
    ReservedPage,
    Sample,
    Subscription,
    is_beside_a_record,
    or_error,
    quoted,
)
from celery_idempotent.stores.journal import JournalStore, RunLists
from celery_idempotent.stores.outage import not_done
from celery_idempotent.stores.redis.connect import connector, patience_of
from celery_idempotent.stores.redis.journal import RedisJournals
from celery_idempotent.stores.redis.servers import RedisServers
from celery_idempotent.stores.redis.subscription import RedisSubscription
from celery_idempotent.stores.redis.wire import ScriptCall, Wire
from celery_idempotent.stores.urls import mask_url

#: How much of a record is read for a list: all but the tail of a long outcome, in bytes.
_HEAD: Final = 2048
#: How often a claim is sent again that was too late by the server's clock.
_LATE_TURNS: Final = 3
#: So many keys a server is asked to look at for one page of a scan.
_PAGE: Final = 1000

#: The numbers that a claim sends, and the head of its answer: see lua/claim.lua.
_ASK: Final = struct.Struct(">QQIIBQQQQ")
_ANSWER: Final = struct.Struct(">BBQ")


class RedisStore(RedisJournals, RedisServers):
    """A store on one Redis or Valkey server."""

    waits_for_replicas = True

    def __init__(self, wire: Wire, wait: tuple[int, int] = (0, 0)) -> None:
        self._wire = wire
        #: How many replicas must have the end of a run, and for how many milliseconds to wait.
        self._wait = wait
        self._claim = self._script("claim")
        self._settle = self._script("settle")

    @classmethod
    def from_url(cls, url: str, options: Mapping[str, Any] | None = None) -> RedisStore:
        """Make a store from a URL as Celery writes them; it connects at the first operation."""
        given = dict(options or {})
        replicas = given.pop("wait_replicas", 0)
        connection_class, kwargs, most = connector(url, given)
        patience_ms = patience_of(kwargs)
        return cls(
            Wire(lambda: connection_class(**kwargs), mask_url(url), 2 * patience_ms, most),
            (replicas, patience_ms),
        )

    @property
    def journals(self) -> JournalStore:
        return self

    @property
    def run_lists(self) -> RunLists:
        return self

    @property
    def askable(self) -> AskableStore:
        return self

    def subscribe(self) -> Subscription:
        return RedisSubscription(self._wire)

    def claim(self, key: str, ask: Claim) -> ClaimVerdict:
        flags = ask.checked + 2 * ask.callbacks + 4 * ask.compensates_only + 8 * ask.is_new
        flags += 16 * ask.frees + 32 * ask.in_turn + 64 * bool(ask.queued_key)
        flags += 128 * ask.latest
        numbers = _ASK.pack(
            ask.lease_ms,
            UNKNOWN_TTL_MS,
            ask.max_interruptions,
            ask.max_compensations,
            flags,
            ask.patient_until_ms,
            ask.refused_from_ms,
            ask.horizon_ms,
            ask.came_ms,
        )
        keys = _keys(key, ask.slip_key, ask.awaited_key, ask.queued_key)
        args = (ask.candidate.pack(), ask.awaited, numbers, ask.keep_ms, ask.message.pack())
        for _ in range(_LATE_TURNS):
            answer = self._wire.call_timed(ScriptCall(self._claim, keys, args))
            if type(answer) is int:
                return Claimed(answer)
            if type(answer) is list:
                failed = Record.unpack(answer[2]) if answer[2] else None
                told = (it.decode("utf-8", "replace") for it in answer[4:])
                return Claimed(answer[0], answer[1], failed, _pairs(answer[3]), *told)
            code, flags, now_ms = _ANSWER.unpack_from(answer)
            if code != 9:
                verdict = _verdict(ask, code, flags, now_ms, answer[_ANSWER.size :])
                if isinstance(verdict, Unknown):
                    self._list_unknown(key, verdict.record.token)
                return verdict
        raise not_done(
            f"the store has found each of {_LATE_TURNS} claims of {key} too late: its clock is "
            "being moved, or this process stands still"
        )

    @property
    def failed_at(self) -> float:
        return self._wire.failed_at

    def settle(self, key: str, event: Settle) -> Recorded | Lost:
        keys = _keys(key, event.slip_key, queued=event.queued_key)
        args: tuple[bytes | int, ...] = (event.record.pack(), event.delay_ms, event.ttl_ms)
        if event.slip is not None:
            args += (event.slip.pack(), event.slip_ttl_ms)
        if event.clears_steps or event.drops_steps_of:
            args += (
                (int(event.clears_steps),) if len(args) > 3 else (b"", 0, int(event.clears_steps))
            )
        if event.drops_steps_of:
            args += (event.drops_steps_of.encode(),)
        call = ScriptCall(self._settle, keys, args)
        if self._wait[0]:
            answer = self._wire.call_replicated(call, *self._wait)
        else:
            answer = self._wire.call(call)
        told = Recorded(answer) if type(answer) is int else _recorded(answer)
        if event.record.state is State.UNKNOWN and isinstance(told, Recorded):
            self._list_unknown(key, told.token)
        return told

    def renew(self, renewals: Sequence[Renewal]) -> list[Recorded | Lost | StoreError]:
        if not renewals:
            return []
        script, calls = self._script("renew"), []
        for one in renewals:
            args = one.held.pack(), one.lease_ms, one.keep_ms
            calls.append(ScriptCall(script, _keys(one.key, one.slip_key), args))
        answers = self._wire.call_all(calls)
        return [it if isinstance(it, StoreError) else or_error(_recorded, it) for it in answers]

    def step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        keys, held = _keys(one.key, one.slip_key), one.held.pack()
        return _recorded(self._call("step", keys, held, one.lease_ms, one.keep_ms, name, packed))

    def resolve(self, key: str, event: Resolve) -> bool:
        switches = int(event.compensate), int(event.clears_steps)
        args = (int(event.state), event.outcome, event.ttl_ms, *switches)
        return _is_done(self._call("resolve", _keys(key), *args))

    def rewind(self, key: str, token: int, kept: Collection[str], ttl_ms: int) -> bool:
        return _is_done(self._call("rewind", _keys(key), token, ttl_ms, *kept))

    def note(self, key: str, event: Note) -> None:
        args: tuple[bytes | int, ...] = (event.token, event.ttl_ms, event.slip.pack())
        if event.sends_ms:
            args += (event.sends_ms,)
        self._call("note", _keys(key, event.slip_key), *args)

    def slip(self, slip_key: str) -> Slip | None:
        return Slip.unpack(self._wire.command("GET", slip_key))

    def end_lease(self, key: str, owner: bytes, process: bytes, slip_key: str = "") -> bool:
        return bool(self._call("end_lease", _keys(key, slip_key), owner, process)[0])

    def abandon(self, key: str, given_up: Record, ttl_ms: int) -> None:
        self._call("abandon", _keys(key), given_up.pack(), ttl_ms, GIVEN_UP_MS)

    def forget(self, key: str, ttl_ms: int) -> bool:
        return bool(self._call("forget", _keys(key, queued=queued_key(key)), ttl_ms)[0])

    def reserve(self, key: str, ask: Reserve) -> Reserved | Taken:
        flags = ask.attaches + 2 * ask.checked
        args: tuple[bytes | int, ...] = (ask.reservation.pack(), ask.hold_ms, flags, *ask.over)
        call = ScriptCall(self._script("reserve"), _keys(key, queued=queued_key(key)), args)
        answer = self._wire.call_one_at_a_time(call)
        if type(answer) is int:
            return Reserved()
        return Taken(answer[1:], State(answer[0]) if answer[0] else None)

    def confirm(self, key: str, owner: bytes, ttl_ms: int) -> None:
        self._call("confirm", _keys(key, queued=queued_key(key)), owner, ttl_ms)

    def unreserve(self, key: str, owner: bytes) -> None:
        self._call("unreserve", _keys(key, queued=queued_key(key)), owner)

    def reservation(self, key: str) -> Reservation | None:
        return Reservation.unpack(self._wire.command("GET", queued_key(key)))

    def reserved(self, prefix: str) -> Iterator[ReservedPage]:
        for names in self._matching(queued_key(f"{quoted(prefix)}:{{*}}")):
            keys = {name: key for name in names if (key := key_of_queued(name))}
            packed = self._wire.commands([("GET", name) for name in keys]) if keys else []
            found = []
            for key, one in zip(keys.values(), packed, strict=True):
                if isinstance(one, StoreError):
                    raise one
                queued = Reservation.unpack(one)
                if queued is not None:
                    found.append((key, queued))
            yield ReservedPage(found, _PAGE)

    def put(
        self, key: str, record: Record, left_ms: int, ttl_ms: int, steps: Mapping[str, bytes]
    ) -> bool:
        pairs = (part for pair in steps.items() for part in pair)
        answer = self._call("put", _keys(key), record.pack(), left_ms, ttl_ms, *pairs)
        is_written = bool(answer[0])
        if is_written and record.state is State.UNKNOWN:
            self._list_unknown(key, record.token)
        return is_written

    def get(self, key: str) -> Record | None:
        packed = self._wire.command("GET", key)
        return None if packed is None else Record.unpack(packed)

    def get_many(self, keys: Sequence[str]) -> list[Record | StoreError | None]:
        heads = self._wire.commands([("GETRANGE", key, 0, _HEAD - 1) for key in keys])
        return [self._in_list(key, head) for key, head in zip(keys, heads, strict=True)]

    def _in_list(self, key: str, head: Any) -> Record | StoreError | None:
        if isinstance(head, StoreError):
            return head
        try:
            return Record.unpack(head) if head else None
        except StoreError as exc:
            if len(head) < _HEAD:
                return exc
        return or_error(self.get, key)  # its label alone is longer than that

    def now_ms(self) -> int:
        seconds, micros = self._wire.command("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    def peek(self, key: str) -> tuple[Record | None, int]:
        packed, now_ms = self._call("peek", _keys(key))
        return (None if packed is None else Record.unpack(packed)), now_ms

    def steps(self, key: str) -> dict[str, bytes]:
        return _pairs(self._wire.command("HGETALL", key + STEPS))

    def ttl(self, key: str) -> float | None:
        left = self._wire.command("PTTL", key)
        return None if left < 0 else left / 1000

    def scan(self, pattern: str) -> Iterator[str]:
        for keys in self._matching(pattern):
            yield from (key for key in keys if not is_beside_a_record(key))

    def _matching(self, pattern: str) -> Iterator[list[str]]:
        for wire in self._wire.wires():
            for names, _ in _pages(wire, "MATCH", pattern):
                yield names

    def sample(self, prefix: str, most: int) -> list[Sample]:
        wires = self._wire.wires()
        return [_sample(wire, prefix, -(-most // len(wires))) for wire in wires]

    def ping(self) -> None:
        self._wire.command("PING")

    def close(self) -> None:
        self._wire.close()


def _sample(wire: Wire, prefix: str, most: int) -> Sample:
    seen, keys = 0, []
    for names, is_last in _pages(wire):
        seen += len(names)
        keys += [key for key in names if key.startswith(f"{prefix}:{{") and key[-1] == "}"]
        if len(keys) >= most and not is_last:
            # The server returns its keys in the order of their hashes, which is at random.
            return Sample(keys, round(len(keys) / seen * int(wire.command("DBSIZE"))))
    return Sample(keys, len(keys))


def _pages(wire: Wire, *match: str) -> Iterator[tuple[list[str], bool]]:
    """Go through all keys of one server; yield a page of them, and whether it is the last."""
    cursor: Any = b"0"
    is_last = False
    while not is_last:
        cursor, names = wire.command("SCAN", cursor, *match, "COUNT", _PAGE)
        is_last = cursor in (b"0", 0)
        yield [name.decode("utf-8", "surrogateescape") for name in names], is_last


def _keys(key: str, slip_key: str = "", awaited_key: str = "", queued: str = "") -> tuple[str, ...]:
    if queued:
        return *_keys(key, slip_key, awaited_key), queued
    if awaited_key:
        return key, key + STEPS, slip_key, awaited_key
    return (key, key + STEPS, slip_key) if slip_key else (key, key + STEPS)


def _verdict(ask: Claim, code: int, flags: int, now_ms: int, raw: bytes) -> ClaimVerdict:
    mine, noted = bool(flags & 1), bool(flags & 2)
    if code == 2:
        return Busy(Record.unpack(raw), mine, now_ms)
    if code == 3:
        return Replay(Record.unpack(raw), mine, noted)
    if code == 4:
        return Superseded()
    if code == 5:
        return Mismatch(Record.unpack(raw))
    if code == 6:
        return Unknown(Record.unpack(raw), noted)
    slip = Slip.unpack(raw)
    if code == 7 and slip is not None:
        owner = ask.candidate.owner if mine else ask.awaited
        return Replay(slip.as_record(owner), mine, noted, mine)
    if code == 8 and slip is not None:
        record = slip.as_record(ask.candidate.owner)
        return Busy(record._replace(until_ms=slip.sending_ms), mine, now_ms)
    raise _unreadable((code, raw))


def _pairs(flat: Any) -> dict[str, bytes]:
    names = (name.decode("utf-8", "surrogateescape") for name in flat[::2])
    return dict(zip(names, flat[1::2], strict=True))


def _is_done(answer: Any) -> bool:
    if answer[0] == 0:
        raise _unreadable(answer)
    return bool(answer[0] == 1)


def _recorded(answer: Any) -> Recorded | Lost:
    if type(answer) is int:
        return Recorded(answer)
    if answer[0] == 1:
        return Recorded(answer[1])
    if answer[0] == 3:
        return Recorded(answer[1], True)
    if answer[0] in (2, 4):
        return Lost(_winner(answer[1]), answer[0] == 4)
    raise _unreadable(answer)


def _winner(raw: bytes) -> Record:
    """Read the record of the run that has a key; of one that a newer release wrote, its head."""
    return Record.unpack_head(raw) if raw[0] > VERSION else Record.unpack(raw)


def _unreadable(answer: Any) -> StoreError:
    try:
        Record.unpack(answer[1])
    except StoreError as exc:
        return exc
    return RecordCorrupt("a record cannot be read by the store's script: forget the key to free it")
