"""What every event does to a record: ``(record, event, now) -> (verdict, write)``, pure.

The order of the tests in :func:`claim` is the order of the contract's table. The memory and SQL
stores call these functions; ``stores/lua`` restates them for Redis, and the differential test
holds the two together. ``now_us`` is always the store's clock, in microseconds since 1970.
"""

from __future__ import annotations

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import (
    KEEP_TTL,
    UNKNOWN_TTL_MS,
    Busy,
    Claim,
    Claimed,
    ClaimVerdict,
    Lost,
    Mismatch,
    Recorded,
    Replay,
    Resolve,
    Settle,
    Superseded,
    Unknown,
    Write,
)

__all__ = [
    "KEEP_TTL",
    "UNKNOWN_TTL_MS",
    "Busy",
    "Claim",
    "ClaimVerdict",
    "Claimed",
    "Lost",
    "Mismatch",
    "Recorded",
    "Replay",
    "Resolve",
    "Settle",
    "Superseded",
    "Unknown",
    "Write",
    "abandon",
    "claim",
    "end_lease",
    "forget",
    "note",
    "renew",
    "resolve",
    "settle",
    "step",
]


def claim(
    record: Record | None, ask: Claim, now_us: int, *, noted: bool = False
) -> tuple[ClaimVerdict, Write | None]:
    """Decide what a delivery may do. ``noted``: whether its callbacks' note is set."""
    now_ms = now_us // 1000
    new = ask.candidate
    mine = record is not None and record.owner == new.owner
    if noted and not mine:
        return Superseded(), None
    if ask.compensates_only and (record is None or record.state is not State.COMPENSATING):
        return Superseded(), None
    if record is None:
        return _take(None, ask, now_us, 0)

    if new.nonce and record.nonce == new.nonce:
        # Our own claim, whose answer was lost on the wire, or that we gave up.
        if record.state is State.RUNNING:
            return Claimed(record.token, record.interruptions), None
        if record.state is State.COMPENSATING and record.process:
            return Claimed(record.token, record.interruptions, record), None
        if record.is_done and record.until_ms:
            return Replay(record, mine, noted), None
        return Busy(record, mine, now_ms), None

    live = now_ms < record.until_ms
    if record.state is State.RELEASED and not record.outcome:
        # A nonce stays where a claim was given up: its body never ran, what it counted stands.
        if mine and record.nonce and new.retries < record.retries:
            return Superseded(), None
        return _take(record, ask, now_us, record.interruptions if record.nonce else 0)
    if ask.checked and not mine and record.fingerprint != new.fingerprint:
        return Mismatch(record), None
    if record.state is State.RUNNING:
        if mine and new.retries < record.retries:
            return Superseded(), None
        if live:
            return Busy(record, mine, now_ms), None
        if mine and new.retries > record.retries:
            return _take(record, ask, now_us, 0)
        return _interrupted(record, ask, now_us)
    if record.state is State.RETRYING:
        if mine and new.retries < record.retries:
            return Superseded(), None
        if mine or now_ms >= record.until_ms + ask.lease_ms:
            return _take(record, ask, now_us, 0)
        return Busy(record, mine, now_ms), None
    if record.is_done:
        if mine:
            if live:
                return Busy(record, mine, now_ms), None
            return _replay_mine(record, ask, now_ms, noted)
        if record.state is State.RELEASED and ask.awaited != record.owner:
            return _take(record, ask, now_us, 0)
        return Replay(record, mine, noted), None
    if record.state is State.COMPENSATING:
        if live:
            return Busy(record, mine, now_ms), None
        return _compensate(record, ask, now_us)
    return Unknown(record), None


def _take(
    record: Record | None, ask: Claim, now_us: int, interruptions: int
) -> tuple[Claimed, Write]:
    token = now_us if record is None else max(record.token + 1, now_us)
    taken = ask.candidate._replace(
        state=State.RUNNING,
        token=token,
        until_ms=now_us // 1000 + ask.lease_ms,
        interruptions=interruptions,
        has_steps=record is not None and record.has_steps,
    )
    return Claimed(token, interruptions), Write(taken, ask.keep_ms)


def _interrupted(record: Record, ask: Claim, now_us: int) -> tuple[ClaimVerdict, Write]:
    interruptions = record.interruptions + 1
    if interruptions <= ask.max_interruptions:
        return _take(record, ask, now_us, interruptions)
    return _become_unknown(record, interruptions)


def _compensate(record: Record, ask: Claim, now_us: int) -> tuple[ClaimVerdict, Write]:
    # Without a process nobody has begun: a person asked for it, or a claim was given up.
    interruptions = record.interruptions + bool(record.process)
    if interruptions > ask.max_compensations:
        return _become_unknown(record, interruptions)
    # The owner stays: the failure is its call's, whoever undoes what it did.
    taken = record._replace(
        token=max(record.token + 1, now_us),
        until_ms=now_us // 1000 + ask.lease_ms,
        interruptions=interruptions,
        process=ask.candidate.process,
        nonce=ask.candidate.nonce,
    )
    return Claimed(taken.token, interruptions, taken), Write(taken, ask.keep_ms)


def _become_unknown(record: Record, interruptions: int) -> tuple[Unknown, Write]:
    # No new token: the run may be alive still, and its late completion settles the record.
    unknown = record._replace(
        state=State.UNKNOWN, until_ms=0, interruptions=interruptions, nonce=b""
    )
    return Unknown(unknown), Write(unknown, UNKNOWN_TTL_MS)


def _replay_mine(
    record: Record, ask: Claim, now_ms: int, noted: bool
) -> tuple[Replay, Write | None]:
    if noted or not ask.callbacks:
        return Replay(record, True, noted), None
    # It sends the callbacks that its first delivery didn't, alone: under a delivery lease.
    leased = record._replace(
        until_ms=now_ms + ask.lease_ms,
        process=ask.candidate.process,
        nonce=ask.candidate.nonce,
    )
    return Replay(leased, True, noted), Write(leased, KEEP_TTL)


def settle(
    record: Record | None, event: Settle, now_us: int
) -> tuple[Recorded | Lost, Write | None]:
    """Complete, fail, release, retry, interrupt: write what a run became, if it holds its key.

    An absent record is written anew (the store came back empty, and nobody took over). Released
    keys get a higher token, so that nothing of the run can be accepted later.
    """
    new = event.record
    releases = new.state is State.RELEASED
    token = new.token + 1 if releases else new.token
    if record is not None:
        again = record.token == token and record.state is new.state and record.owner == new.owner
        if again and new.state not in (State.RUNNING, State.COMPENSATING):
            return Recorded(token), None  # the first answer was lost
        if record.token != new.token:
            return Lost(record), None
        if record.state in (State.SUCCEEDED, State.FAILED):
            return Recorded(record.token), None
        if record.state is State.UNKNOWN and new.state is State.RUNNING:
            return Recorded(record.token), None  # an interrupt tells nothing new
    # Compensating is a run of its own: what counts is how often that is cut off.
    begins = new.state is State.COMPENSATING and (
        record is not None and record.state is not State.COMPENSATING
    )
    timed = event.delay_ms > 0 or new.state in (
        State.RUNNING,
        State.RETRYING,
        State.COMPENSATING,
    )
    written = new._replace(
        token=token,
        until_ms=now_us // 1000 + event.delay_ms if timed else 0,
        interruptions=0 if record is None or begins else record.interruptions,
        has_steps=new.has_steps if record is None else record.has_steps,
    )
    return Recorded(token), Write(written, event.ttl_ms)


def renew(
    record: Record | None, held: Record, lease_ms: int, keep_ms: int, now_us: int
) -> tuple[Recorded | Lost, Write | None]:
    """Prolong the lease of a run, or the delivery lease of a done one, by ``held.token``."""
    until_ms = now_us // 1000 + lease_ms
    if record is None:
        if held.state not in (State.RUNNING, State.COMPENSATING):
            return Recorded(held.token), None
        return Recorded(held.token), Write(held._replace(until_ms=until_ms), keep_ms)
    if record.token != held.token:
        return Lost(record), None
    if record.state in (State.RUNNING, State.COMPENSATING):
        return Recorded(held.token), Write(record._replace(until_ms=until_ms), keep_ms)
    if record.is_done and record.until_ms:
        return Recorded(held.token), Write(record._replace(until_ms=until_ms), KEEP_TTL)
    return Recorded(held.token), None


def step(
    record: Record | None, held: Record, lease_ms: int, keep_ms: int, now_us: int
) -> tuple[Recorded | Lost, Write | None]:
    """Let a run write a step, if it holds its key: it is a sign of life, too."""
    until_ms = now_us // 1000 + lease_ms
    if record is None:
        record = held
    elif record.token != held.token:
        return Lost(record), None
    if record.state in (State.RUNNING, State.COMPENSATING):
        record = record._replace(until_ms=until_ms)
    elif record.state is State.UNKNOWN:
        # It still waits to be resolved, for as long as before.
        return Recorded(held.token), Write(record._replace(has_steps=True), KEEP_TTL)
    else:
        return Lost(record), None
    return Recorded(held.token), Write(record._replace(has_steps=True), keep_ms)


def note(record: Record | None, token: int) -> Write | None:
    """End the delivery lease of ``token``'s run: what it held is dropped from the record."""
    if record is None or record.token != token or not (record.is_done and record.until_ms):
        return None
    return Write(record._replace(until_ms=0, process=b"", nonce=b""), KEEP_TTL)


def end_lease(record: Record | None, owner: bytes, process: bytes, now_us: int) -> Write | None:
    """End what a dead process held for ``owner``: its lease, or its delivery lease."""
    now_ms = now_us // 1000
    if record is None or record.owner != owner or record.process != process:
        return None
    if not (record.state in (State.RUNNING, State.COMPENSATING) or record.is_done):
        return None
    if record.until_ms <= now_ms:
        return None
    return Write(record._replace(until_ms=now_ms, nonce=b""), KEEP_TTL)


def abandon(record: Record | None, given_up: Record, ttl_ms: int, now_us: int) -> Write | None:
    """Undo a claim whose answer never came, or see to it that it gets nothing if it comes late.

    ``given_up`` is the claim's candidate. The nonce stays in the record: it marks the claim that
    is not to be granted, and that what the record had counted still stands.
    """
    if record is None:
        left = given_up._replace(state=State.RELEASED, token=now_us, until_ms=0, process=b"")
        return Write(left, ttl_ms)
    if record.state is State.RUNNING:
        if record.nonce != given_up.nonce:
            return None
        undone = record._replace(
            state=State.RELEASED, token=record.token + 1, until_ms=0, process=b""
        )
        return Write(undone, ttl_ms)
    if record.state is State.COMPENSATING and record.process:
        if record.nonce != given_up.nonce:
            return None
        undone = record._replace(token=record.token + 1, until_ms=now_us // 1000, process=b"")
        return Write(undone, KEEP_TTL)
    if record.is_done and record.until_ms:
        if record.nonce != given_up.nonce:
            return None
        return Write(record._replace(until_ms=0, process=b""), KEEP_TTL)
    if record.nonce == given_up.nonce:
        return None
    counted = record.interruptions if record.nonce or record.state is not State.RELEASED else 0
    return Write(record._replace(nonce=given_up.nonce, interruptions=counted), KEEP_TTL)


def forget(record: Record | None, ttl_ms: int, now_us: int) -> Write | None:
    """Free a key for the next call: only a higher token stays, so that no late run is accepted."""
    if record is None:
        return None
    return Write(Record(State.RELEASED, max(record.token + 1, now_us)), ttl_ms)


def resolve(record: Record | None, event: Resolve, now_us: int) -> Write | None:
    """Settle an unknown outcome, with a higher token: a late completion is refused from then on."""
    if record is None or record.state is not State.UNKNOWN:
        return None
    resolved = record._replace(
        state=State.RELEASED if event.state is State.FAILED else event.state,
        token=max(record.token + 1, now_us),
        until_ms=0,
        outcome=event.outcome,
        process=b"",
        nonce=b"",
        interruptions=0,
    )
    if event.state is State.FAILED and event.compensate:
        # Its lease is over: the next delivery of the key, or a message made for it, goes on.
        resolved = resolved._replace(state=State.COMPENSATING, until_ms=now_us // 1000)
    return Write(resolved, event.ttl_ms)
