"""Decides what each event does to a record: ``(record, event, now) -> (verdict, write)``, pure.

The order of the tests in :func:`claim` is the order of the contract's table. The memory and SQL
stores call these functions. ``stores/redis/lua`` has the same rules for Redis; the differential
test compares the two. ``now_us`` is always the store's clock, in microseconds since 1970.
"""

from __future__ import annotations

from celery_idempotent.core.record import Label, Record, State, still_given_up
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.verdicts import (
    KEEP_TTL,
    NEVER_MS,
    UNKNOWN_TTL_MS,
    Busy,
    Claim,
    Claimed,
    ClaimVerdict,
    Lost,
    Mismatch,
    Note,
    Recorded,
    Replay,
    Reserve,
    Reserved,
    Resolve,
    Settle,
    Superseded,
    Taken,
    Unknown,
    Write,
)

__all__ = [
    "abandon",
    "claim",
    "confirm",
    "end_lease",
    "forget",
    "note",
    "put",
    "renew",
    "reserve",
    "resolve",
    "settle",
    "step",
    "unreserve",
    "with_mark",
]


def claim(
    record: Record | None,
    ask: Claim,
    now_us: int,
    *,
    slip: Slip | None = None,
    awaited: Slip | None = None,
    queued: Reservation | None = None,
    left_ms: int = NEVER_MS,
) -> tuple[ClaimVerdict, Write | None]:
    """Decide what a delivery may do.

    Args:
        slip: the slip of the message's owner.
        awaited: the slip of the run that this caller waited for last.
        queued: the key's reservation, if this delivery has to end it.
        left_ms: for how long the record is still kept.
    """
    verdict, write = _decide(record, ask, now_us, slip, awaited, left_ms)
    if queued is not None and (isinstance(verdict, Claimed) or queued.owner == ask.candidate.owner):
        write = (Write(None) if write is None else write)._replace(drops_queued=True)
    return verdict, write


def _decide(
    record: Record | None,
    ask: Claim,
    now_us: int,
    slip: Slip | None,
    awaited: Slip | None,
    left_ms: int,
) -> tuple[ClaimVerdict, Write | None]:
    now_ms = now_us // 1000
    new = ask.candidate
    mine = record is not None and record.owner == new.owner
    if ask.compensates_only and (record is None or record.state is not State.COMPENSATING):
        return Superseded(), None
    noted = slip is not None and ask.callbacks and slip.has_sent(ask.message.digests)
    if slip is not None and (not slip.answered or (record is not None and not record.owner)):
        # Nobody has answered yet, or the key was forgotten since.
        answer, is_copy = None, False
    else:
        answer = slip
        is_copy = answer is not None and not (ask.is_new or answer.is_older_than(ask.message))
    if slip is not None and not noted and _is_being_sent(slip, ask, now_ms):
        # Another delivery answers this call, or sends its callbacks: wait, whatever this would do.
        telling = slip.as_record(new.owner)._replace(until_ms=slip.sending_ms)
        return Busy(telling, True, now_ms), None
    if record is None:
        if answer is not None and is_copy:
            return _answer_again(answer, slip, ask, now_ms, noted)
        return _take(None, ask, now_us, 0, slip)

    if new.nonce and record.nonce == new.nonce:
        # This is our own claim: its answer was lost on the wire, or we gave it up.
        if record.state is State.RUNNING:
            origin = Label.of(record).origin
            return Claimed(record.token, record.interruptions, origin=origin), None
        if record.state is State.COMPENSATING and record.process:
            return Claimed(record.token, record.interruptions, record), None
        if record.is_done and record.until_ms:
            return Replay(record, mine, noted), None
        return _busy(record, mine, slip, ask, now_ms, noted)
    if new.nonce and record.has_given_up(new.nonce):
        return _busy(record, mine, slip, ask, now_ms, noted)

    # Runs that survived an outage may renew first. A lease that was ended has no nonce.
    live = now_ms < record.until_ms or (bool(record.nonce) and now_ms < ask.patient_until_ms)
    if record.state is State.RELEASED and not record.outcome:
        if mine and is_copy and answer is not None:
            return _answer_again(answer, slip, ask, now_ms, noted)
        # The nonce stays after a claim was given up. Its body never ran, so the counts stand.
        if mine and record.nonce and new.retries < record.retries:
            return Superseded(), None
        if mine or not is_copy:
            return _take(record, ask, now_us, record.interruptions if record.nonce else 0, slip)
    if not mine:
        if answer is not None and (is_copy or answer.outcome):
            if answer.outcome or not (
                answer.succeeded and record.state in (State.SUCCEEDED, State.FAILED)
            ):
                return _answer_again(answer, slip, ask, now_ms, noted)
            return _replay_other(record, slip, ask, now_ms, noted, left_ms)
        is_kept = record.state in (State.SUCCEEDED, State.FAILED)
        if awaited is not None and awaited.released:
            awaited = None  # the key was free before that run ended
        if awaited is not None and awaited.answered and awaited.outcome and not is_kept:
            shared = Replay(awaited.as_record(ask.awaited), False, noted)
            return _told(shared, record, slip, ask, now_ms, noted, awaited.outcome)
        if ask.checked and record.fingerprint != new.fingerprint and not _is_free_for(record, ask):
            return _told(Mismatch(record), record, slip, ask, now_ms, noted)
    if record.state is State.RUNNING:
        if mine and new.retries < record.retries:
            return Superseded(), None
        if live:
            return _busy(record, mine, slip, ask, now_ms, noted)
        if mine and new.retries > record.retries:
            return _take(record, ask, now_us, 0, slip)
        return _interrupted(record, ask, now_us, slip)
    if record.state is State.RETRYING:
        if mine and new.retries < record.retries:
            return Superseded(), None
        if mine or now_ms >= record.until_ms + ask.lease_ms:
            return _take(record, ask, now_us, 0, slip)
        return _busy(record, mine, slip, ask, now_ms, noted)
    if record.is_done:
        if mine:
            if now_ms < record.until_ms:
                return _busy(record, mine, slip, ask, now_ms, noted)
            if answer is not None and is_copy and answer.outcome:
                return _answer_again(answer, slip, ask, now_ms, noted)
            return _replay_mine(record, ask, now_ms, noted)
        if record.state is State.RELEASED:
            if ask.awaited != record.owner:
                return _take(record, ask, now_us, 0, slip)
            shared = Replay(record, False, noted)
            return _told(shared, record, slip, ask, now_ms, noted, record.outcome)
        return _replay_other(record, slip, ask, now_ms, noted, left_ms)
    if record.state is State.COMPENSATING:
        if live:
            return _busy(record, mine, slip, ask, now_ms, noted)
        return _compensate(record, ask, now_us, slip)
    return _told(Unknown(record, noted), record, slip, ask, now_ms, noted)


def _busy(
    record: Record, mine: bool, slip: Slip | None, ask: Claim, now_ms: int, noted: bool
) -> tuple[ClaimVerdict, Write | None]:
    """Return that the key is busy, and mark the record: its end is to be told to who waits."""
    if not mine and now_ms >= ask.refused_from_ms:
        return _told(Busy(record, mine, now_ms), record, slip, ask, now_ms, noted)
    if record.is_awaited or not _keeps_waiting(record, 0):
        return Busy(record, mine, now_ms), None
    marked = record._replace(is_awaited=True)
    return Busy(marked, mine, now_ms), Write(marked, only_marks=True)


def _is_free_for(record: Record, ask: Claim) -> bool:
    """Whether a key without a window no longer says which arguments its calls have."""
    if not ask.frees:
        return False
    return record.state is State.UNKNOWN or (
        record.state is State.RELEASED and ask.awaited != record.owner
    )


def _take(
    record: Record | None, ask: Claim, now_us: int, interruptions: int, slip: Slip | None
) -> tuple[ClaimVerdict, Write | None]:
    token = now_us if record is None else max(record.token + 1, now_us)
    now_ms = now_us // 1000
    if slip is not None and slip.is_run and ask.candidate.retries <= slip.retries:
        # The run that had given its key up was cut off after that.
        interruptions = slip.interruptions + 1
        if interruptions > ask.max_interruptions:
            left = ask.candidate._replace(token=token)
            if record is not None:
                left = left._replace(
                    has_steps=record.has_steps,
                    is_awaited=record.is_awaited,
                    given_up=record.given_up,
                )
            return _become_unknown(left, ask, now_ms, interruptions, None)
    origin, label = _origin(record, ask), ask.candidate.label
    if origin:
        label = Label.read(label)._replace(origin=origin).text()
    taken = ask.candidate._replace(
        state=State.RUNNING,
        token=token,
        until_ms=now_ms + ask.lease_ms,
        interruptions=interruptions,
        has_steps=record is not None and record.has_steps,
        is_awaited=record is not None and record.is_awaited,
        given_up=b"" if record is None else still_given_up(record.given_up, now_ms),
        label=label,
    )
    # The old answer belongs to an earlier attempt, which nobody asks for any more.
    slip_ttl_ms = KEEP_TTL if slip is None else 0
    claimed = Claimed(token, interruptions, origin=origin)
    return claimed, Write(taken, ask.keep_ms, None, slip_ttl_ms)


def _origin(record: Record | None, ask: Claim) -> str:
    """Return who began what a claim goes on with; empty: its own call, or the key has a window."""
    if record is None or not ask.frees or not record.owner or record.is_done:
        return ""
    origin = "" if ask.in_turn else Label.of(record).origin
    # A released key with a count is one whose claim was given up: the run before it was cut off.
    cut_off = record.state is not State.RELEASED or (record.nonce and record.interruptions)
    if not origin and cut_off:
        origin = record.owner.hex()
    return "" if origin == ask.candidate.owner.hex() else origin


def _interrupted(
    record: Record, ask: Claim, now_us: int, slip: Slip | None
) -> tuple[ClaimVerdict, Write | None]:
    interruptions = record.interruptions + 1
    if interruptions <= ask.max_interruptions:
        return _take(record, ask, now_us, interruptions, slip)
    return _become_unknown(record, ask, now_us // 1000, interruptions, slip)


def _compensate(
    record: Record, ask: Claim, now_us: int, slip: Slip | None
) -> tuple[ClaimVerdict, Write | None]:
    # Without a process no run has begun: an operator asked for it, or a claim was given up.
    interruptions = record.interruptions + bool(record.process)
    if interruptions > ask.max_compensations:
        return _become_unknown(record, ask, now_us // 1000, interruptions, slip)
    # The owner stays: the failure belongs to its call, whichever delivery runs the compensation.
    taken = record._replace(
        token=max(record.token + 1, now_us),
        until_ms=now_us // 1000 + ask.lease_ms,
        interruptions=interruptions,
        process=ask.candidate.process,
        nonce=ask.candidate.nonce,
    )
    return Claimed(taken.token, interruptions, taken), Write(taken, ask.keep_ms)


def _become_unknown(
    record: Record, ask: Claim, now_ms: int, interruptions: int, slip: Slip | None
) -> tuple[Unknown, Write | None]:
    # The token stays: the run may still be alive, and then its late completion settles the record.
    unknown = record._replace(
        state=State.UNKNOWN, until_ms=0, interruptions=interruptions, nonce=b""
    )
    write = Write(unknown, UNKNOWN_TTL_MS)
    if ask.slip_key:
        # While a copy tells this, the run can't tell another outcome.
        write = _with_sending(write, slip, ask, now_ms)
    return Unknown(unknown), write


def _replay_mine(
    record: Record, ask: Claim, now_ms: int, noted: bool
) -> tuple[Replay, Write | None]:
    if noted or not ask.callbacks:
        return Replay(record, True, noted), None
    # It sends the callbacks that its first delivery did not send, under a delivery lease.
    leased = record._replace(
        until_ms=now_ms + ask.lease_ms,
        process=ask.candidate.process,
        nonce=ask.candidate.nonce,
    )
    return Replay(leased, True, noted), Write(leased, KEEP_TTL)


def _replay_other(
    record: Record, slip: Slip | None, ask: Claim, now_ms: int, noted: bool, left_ms: int
) -> tuple[ClaimVerdict, Write | None]:
    shared = Replay(record, False, noted)
    if record.outcome and left_ms < ask.horizon_ms:
        # The record may be gone when the next copy of the message comes.
        ttl_ms = ask.horizon_ms
        return _told(shared, None, slip, ask, now_ms, noted, record.outcome, ttl_ms)
    return _leased(shared, slip, ask, now_ms, noted)


def _answer_again(
    answer: Slip, slip: Slip | None, ask: Claim, now_ms: int, noted: bool
) -> tuple[ClaimVerdict, Write | None]:
    """Answer a call from its slip, whichever call has the key now."""
    if not answer.outcome:
        return Superseded(), None
    record = answer.as_record(ask.candidate.owner)
    return _leased(Replay(record, True, noted, True), slip, ask, now_ms, noted)


def _leased(
    verdict: ClaimVerdict,
    slip: Slip | None,
    ask: Claim,
    now_ms: int,
    noted: bool,
) -> tuple[ClaimVerdict, Write | None]:
    """Return the verdict; if callbacks are unsent, take a lease on them in the message's slip."""
    if noted or not ask.callbacks or not ask.slip_key:
        return verdict, None
    return verdict, _with_sending(Write(None), slip, ask, now_ms)


def _told(
    verdict: ClaimVerdict,
    record: Record | None,
    slip: Slip | None,
    ask: Claim,
    now_ms: int,
    noted: bool,
    outcome: bytes = b"",
    ttl_ms: int = 0,
) -> tuple[ClaimVerdict, Write | None]:
    """Return a verdict that the record does not keep, or not for long; the slip does, from now.

    The next copy of the message gets the same ``outcome``. Where there is none yet, the caller
    makes an error, and has a lease for as long as that takes: meanwhile no copy of the message
    answers, and neither does a run of its call. The record is written as it is: what changes it
    at this moment comes before or after all of this.
    """
    if not ask.slip_key:
        return verdict, None
    write = Write(record)
    is_told = slip is not None and slip.answered
    if outcome:
        told = ask.message._replace(answered=True, digests=b"", outcome=outcome)
        slip = told if slip is None else slip.merged(told)
        write = write._replace(slip=slip, slip_ttl_ms=ttl_ms or ask.keep_ms)
    if not noted if ask.callbacks else not (outcome or is_told):
        write = _with_sending(write, slip, ask, now_ms)
    return verdict, None if write.slip is None else write


def _is_being_sent(slip: Slip, ask: Claim, now_ms: int) -> bool:
    if now_ms >= slip.sending_ms:
        return False
    return not ask.candidate.nonce or slip.holder[:8] != ask.candidate.nonce.ljust(8, b"\0")


def _with_sending(write: Write, slip: Slip | None, ask: Claim, now_ms: int) -> Write:
    kept = ask.message._replace(digests=b"") if slip is None else slip
    holder = (ask.candidate.nonce.ljust(8, b"\0") + ask.candidate.process)[:255]
    sending = kept._replace(sending_ms=now_ms + ask.lease_ms, holder=holder)
    # A slip without an answer has no meaning once the lease is over.
    ttl_ms = ask.lease_ms if slip is None else write.slip_ttl_ms
    return write._replace(slip=sending, slip_ttl_ms=ttl_ms)


def settle(
    record: Record | None,
    event: Settle,
    now_us: int,
    *,
    slip: Slip | None = None,
    queued: Reservation | None = None,
) -> tuple[Recorded | Lost, Write | None]:
    """Complete, fail, release, retry or interrupt a run, if it holds its key.

    An absent record is written anew (the store came back empty, and no other run took over).
    A released key gets a higher token, so that no late write of the run is accepted.

    Args:
        slip: the slip of the run's owner.
        queued: the key's reservation, if it ends with a release.
    """
    new = event.record
    now_ms = now_us // 1000
    releases = new.state is State.RELEASED
    token = new.token + 1 if releases else new.token
    if slip is not None and slip.released and slip.token == new.token:
        return _settle_released(slip, event, now_ms)
    answered = slip is not None and (slip.answered or now_ms < slip.sending_ms)
    if record is not None:
        again = record.token == token and record.state is new.state and record.owner == new.owner
        if again and new.state not in (State.RUNNING, State.COMPENSATING):
            # The first answer was lost.
            return Recorded(token, _is_told_by_a_copy(slip, event, now_ms)), None
        if record.token != new.token:
            if slip is not None and slip.answered and slip.token == new.token:
                # The answer was lost; the key is another's now.
                return Recorded(token, _is_told_by_a_copy(slip, event, now_ms)), None
            if slip is None or not slip.answered:
                return Lost(record), None
            return Lost(record, True), _kept(slip, event)
        if record.state in (State.SUCCEEDED, State.FAILED):
            return Recorded(record.token), None
        if record.state is State.UNKNOWN and new.state is State.RUNNING:
            return Recorded(record.token), None  # an interrupt changes nothing
        if record.state is State.UNKNOWN and new.state is State.RETRYING and answered:
            # There is nothing left to retry.
            return Recorded(record.token, True), slip and _kept(slip, event)
    else:
        lost = _answered_since(new, slip)
        if lost is not None:
            return lost, slip and _kept(slip, event)
    # A copy can have answered the run's call only while the outcome is unknown.
    answered = answered and record is not None and record.state is State.UNKNOWN
    # Compensating is a run of its own, and only its own interruptions count.
    begins = new.state is State.COMPENSATING and (
        record is not None and record.state is not State.COMPENSATING
    )
    # What a run gives up before its end has no lease: that is in its slip.
    timed = (event.delay_ms > 0 and not (event.slip is not None and event.slip.is_run)) or (
        new.state in (State.RUNNING, State.RETRYING, State.COMPENSATING)
    )
    written = new._replace(
        token=token,
        until_ms=now_ms + event.delay_ms if timed and not answered else 0,
        interruptions=0 if record is None or begins else record.interruptions,
        has_steps=(new if record is None else record).has_steps and not event.clears_steps,
        given_up=b"" if record is None else record.given_up,
        is_awaited=(new if record is None else record).is_awaited,
    )
    write = Write(written, event.ttl_ms, drops_queued=releases and queued is not None)
    if answered and slip is not None:
        kept = _kept(slip, event)
        return Recorded(token, True), write._replace(slip=kept.slip, slip_ttl_ms=kept.slip_ttl_ms)
    if event.slip is not None:
        left = event.slip._replace(token=new.token)
        if event.delay_ms:
            left = left._replace(sending_ms=now_ms + event.delay_ms)
        write = write._replace(slip=left, slip_ttl_ms=event.slip_ttl_ms)
    return Recorded(token), write


def _settle_released(
    slip: Slip, event: Settle, now_ms: int
) -> tuple[Recorded | Lost, Write | None]:
    """Write what a run became that had given its key up: its own call is answered, nobody else."""
    new = event.record
    if event.slip is not None and event.slip.is_run:
        return Recorded(new.token + 1), None  # the answer to its release was lost
    if slip.answered:
        return Recorded(new.token), None  # ... or to its end
    if new.state is State.RUNNING:
        return Recorded(new.token), Write(None, slip=slip._replace(sending_ms=now_ms))
    if new.state is State.RELEASED and not new.outcome and event.slip is None:
        return Recorded(new.token), Write(None, slip_ttl_ms=0)  # its message comes again
    outcome = b"" if new.state is State.RETRYING else new.outcome
    delivers = event.delay_ms > 0 and bool(outcome)
    left = slip._replace(
        answered=True,
        outcome=outcome,
        sending_ms=now_ms + event.delay_ms if delivers else 0,
    )
    ttl_ms = max(event.slip_ttl_ms, event.ttl_ms)
    return Recorded(new.token), Write(None, slip=left, slip_ttl_ms=ttl_ms)


def _is_told_by_a_copy(slip: Slip | None, event: Settle, now_ms: int) -> bool:
    """Whether a copy of a message answers its call, whose run is recorded and asks again."""
    if slip is None:
        return False
    own = b"" if event.slip is None else event.slip.holder
    is_telling = now_ms < slip.sending_ms and slip.holder != own
    return is_telling or (slip.answered and slip.token != event.record.token)


def _kept(slip: Slip, event: Settle) -> Write:
    """Keep the slip of a run whose copy answers its call: that run leaves another copy, from now.

    Where the copy has not answered yet, the run's end is left for it to answer, or for the next.
    """
    if event.slip is not None and not slip.answered:
        slip = event.slip._replace(
            token=event.record.token,
            sending_ms=slip.sending_ms,
            holder=slip.holder,
            digests=slip.digests,
        )
    ttl_ms = event.ttl_ms if event.slip is None else max(event.ttl_ms, event.slip_ttl_ms)
    return Write(None, slip=slip, slip_ttl_ms=ttl_ms)


def _answered_since(held: Record, slip: Slip | None) -> Lost | None:
    """Return ``Lost`` for a run without a record whose call was answered by another run.

    Then the record has expired and was not lost by the store: the run outlived its key's window.
    """
    if slip is None or not slip.answered or slip.token == held.token:
        return None
    ended = held._replace(state=State.RELEASED, token=slip.token, until_ms=0, interruptions=0)
    return Lost(ended, True)


def renew(
    record: Record | None,
    held: Record,
    lease_ms: int,
    keep_ms: int,
    now_us: int,
    *,
    slip: Slip | None = None,
) -> tuple[Recorded | Lost, Write | None]:
    """Prolong the lease of a run, or the delivery lease of a finished one, by ``held.token``.

    Args:
        slip: the slip of the run's owner.
    """
    until_ms = now_us // 1000 + lease_ms
    holds_no_key = record is None or record.token != held.token
    if slip is not None and slip.released and slip.token == held.token and holds_no_key:
        # It has given its key up: its lease is in its slip.
        if slip.answered:
            left = slip._replace(sending_ms=until_ms) if slip.sending_ms else None
            return Recorded(held.token), None if left is None else Write(None, slip=left)
        left = slip._replace(sending_ms=until_ms)
        return Recorded(held.token), Write(None, slip=left, slip_ttl_ms=keep_ms)
    if record is None:
        if held.state not in (State.RUNNING, State.COMPENSATING):
            return Recorded(held.token), None
        lost = _answered_since(held, slip)
        if lost is not None:
            return lost, None
        return Recorded(held.token), Write(held._replace(until_ms=until_ms), keep_ms)
    if record.token != held.token:
        return Lost(record), None
    if record.state in (State.RUNNING, State.COMPENSATING):
        return Recorded(held.token), Write(record._replace(until_ms=until_ms), keep_ms)
    if record.is_done and record.until_ms:
        return Recorded(held.token), Write(record._replace(until_ms=until_ms), KEEP_TTL)
    unknown = record.state is State.UNKNOWN
    if unknown and slip is not None and (slip.answered or now_us // 1000 < slip.sending_ms):
        # A copy has answered the call, or is about to: known for as long as its run lives.
        return Recorded(held.token, True), Write(None, slip=slip, slip_ttl_ms=keep_ms)
    return Recorded(held.token), None


def step(
    record: Record | None,
    held: Record,
    lease_ms: int,
    keep_ms: int,
    now_us: int,
    *,
    slip: Slip | None = None,
) -> tuple[Recorded | Lost, Write | None]:
    """Accept a step of a run that holds its key; this prolongs its lease, too.

    Args:
        slip: the slip of the run's owner.
    """
    until_ms = now_us // 1000 + lease_ms
    if record is None:
        lost = _answered_since(held, slip)
        if lost is not None:
            return lost, None
        record = held
    elif record.token != held.token:
        return Lost(record), None
    if record.state in (State.RUNNING, State.COMPENSATING):
        record = record._replace(until_ms=until_ms)
    elif record.state is State.UNKNOWN:
        # It still waits to be resolved, and expires no later than before.
        return Recorded(held.token), Write(record._replace(has_steps=True), KEEP_TTL)
    else:
        return Lost(record), None
    return Recorded(held.token), Write(record._replace(has_steps=True), keep_ms)


def note(record: Record | None, event: Note, *, slip: Slip | None = None) -> Write | None:
    """Record that a message was answered, and end the delivery lease of its run."""
    write = Write(None)
    if record is not None and record.token == event.token and record.is_done and record.until_ms:
        write = Write(record._replace(until_ms=0, process=b"", nonce=b""), KEEP_TTL)
    if event.slip.answered:
        merged = event.slip if slip is None else slip.merged(event.slip)
        write = write._replace(slip=merged, slip_ttl_ms=event.ttl_ms, slip_first=True)
    elif slip is not None and slip.sending_ms:
        if slip.answered:
            write = write._replace(slip=slip._replace(sending_ms=0, holder=b""))
        else:
            write = write._replace(slip_ttl_ms=0)
    return None if write == Write(None) else write


def end_lease(
    record: Record | None,
    owner: bytes,
    process: bytes,
    now_us: int,
    *,
    slip: Slip | None = None,
) -> Write | None:
    """End what a dead process held for ``owner``: its lease, or its lease on callbacks."""
    now_ms = now_us // 1000
    write = Write(None)
    if slip is not None and slip.holder[8:] == process and now_ms < slip.sending_ms:
        write = write._replace(slip=slip._replace(sending_ms=0, holder=b""))
    if (
        record is not None
        and record.owner == owner
        and record.process == process
        and (record.state in (State.RUNNING, State.COMPENSATING) or record.is_done)
        and record.until_ms > now_ms
    ):
        write = write._replace(record=record._replace(until_ms=now_ms, nonce=b""))
    return None if write == Write(None) else write


def abandon(
    record: Record | None, given_up: Record, ttl_ms: int, for_ms: int, now_us: int
) -> Write | None:
    """Undo a claim whose answer never came, or have it refused if it arrives late.

    ``given_up`` is the claim's candidate. Its nonce stays in the record: it marks the claim that is
    not to be granted, and shows that the record's counts still stand.

    Args:
        for_ms: for how long it might still arrive in time to be granted.
    """
    now_ms = now_us // 1000
    until_ms = now_ms + for_ms

    def undone(record: Record, ttl_ms: int) -> Write:
        return Write(record.remembering(given_up.nonce, until_ms, now_ms), ttl_ms)

    if record is None:
        left = given_up._replace(
            state=State.RELEASED, token=now_us, until_ms=0, interruptions=0, process=b""
        )
        return undone(left, ttl_ms)
    if record.has_given_up(given_up.nonce):
        return None
    holds = record.nonce == given_up.nonce
    if record.state is State.RUNNING and holds:
        free = record._replace(
            state=State.RELEASED, token=record.token + 1, until_ms=0, process=b""
        )
        return undone(free, ttl_ms)
    if record.state is State.COMPENSATING and record.process and holds:
        free = record._replace(token=record.token + 1, until_ms=now_ms, process=b"")
        return undone(free, KEEP_TTL)
    if record.is_done and record.until_ms and holds:
        return undone(record._replace(until_ms=0, process=b""), KEEP_TTL)
    if (
        record.state is State.RUNNING
        or (record.state is State.COMPENSATING and record.process)
        or (record.is_done and record.until_ms)
    ):
        return undone(record, KEEP_TTL)  # another's claim, which stays as it is
    counted = record.interruptions if record.nonce or record.state is not State.RELEASED else 0
    return undone(record._replace(nonce=given_up.nonce, interruptions=counted), KEEP_TTL)


def forget(
    record: Record | None, ttl_ms: int, now_us: int, *, queued: Reservation | None = None
) -> Write | None:
    """Free a key for the next call. Only a higher token stays, so that a late run is refused."""
    if record is None:
        return None if queued is None else Write(None, drops_queued=True)
    freed = Record(State.RELEASED, max(record.token + 1, now_us))
    return Write(freed, ttl_ms, drops_queued=queued is not None)


def reserve(
    record: Record | None, queued: Reservation | None, ask: Reserve, now_us: int
) -> tuple[Reserved | Taken, Write | None]:
    """Decide whether a call is to be published, and reserve its key if so.

    Args:
        record: ``None``: there is none, or it can't be read; a worker says so.
        queued: the key's reservation.
    """
    now_ms, new = now_us // 1000, ask.reservation
    due_ms = now_ms + new.due_ms
    expires_ms = now_ms + new.expires_ms if new.expires_ms else 0
    if ask.attaches:
        if record is not None and _is_ahead(record, ask, now_ms):
            return Taken(record.owner, record.state), None
        if (
            queued is not None
            and queued.is_confirmed
            and queued.keeps_result
            and queued.owner not in ask.over
            and queued.due_ms <= due_ms
            and (not queued.expires_ms or 0 < expires_ms <= queued.expires_ms)
            and _is_alike(queued.fingerprint, ask)
        ):
            return Taken(queued.owner, None), None
    reserved = new._replace(due_ms=due_ms, expires_ms=expires_ms, is_confirmed=False)
    return Reserved(), Write(None, slip=reserved, slip_ttl_ms=ask.hold_ms)


def _is_ahead(record: Record, ask: Reserve, now_ms: int) -> bool:
    """Whether the record's call will have an outcome that another call can get."""
    if not record.owner or record.owner in ask.over or not _is_alike(record.fingerprint, ask):
        return False
    if record.state in (State.RUNNING, State.RETRYING):
        return now_ms < record.until_ms and not Label.of(record).is_alone
    return record.state in (State.SUCCEEDED, State.FAILED)


def _is_alike(fingerprint: bytes, ask: Reserve) -> bool:
    """Whether a call has the arguments of the one that asks, or need not have them."""
    return not ask.checked or fingerprint == ask.reservation.fingerprint


def confirm(queued: Reservation | None, owner: bytes, ttl_ms: int, now_us: int) -> Write | None:
    """Record that a reserved call was published: from now on it stops others.

    Args:
        owner: whose reservation it must be; packed.
        ttl_ms: how long it lives after the call is due, if its message doesn't expire.
    """
    if queued is None or queued.owner != owner:
        return None  # its message was delivered already, or another call is reserved
    left_ms = (queued.expires_ms or queued.due_ms + ttl_ms) - now_us // 1000
    if left_ms <= 0:
        return Write(None, slip_ttl_ms=0)
    return Write(None, slip=queued._replace(is_confirmed=True), slip_ttl_ms=left_ms)


def unreserve(queued: Reservation | None, owner: bytes) -> Write | None:
    """Undo the reservation of a call that could not be published."""
    return Write(None, slip_ttl_ms=0) if queued is not None and queued.owner == owner else None


def put(record: Record | None, new: Record, left_ms: int, ttl_ms: int, now_us: int) -> Write | None:
    """Write a record as another store had it, unless a newer one is here."""
    if record is not None:
        is_older = record.token < new.token
        if not (is_older or (record.token == new.token and record.state is State.RUNNING)):
            return None
    until_ms = now_us // 1000 + left_ms if left_ms > 0 else 0
    # Whoever waits for it waits at the other store.
    return Write(new._replace(until_ms=until_ms, is_awaited=False), ttl_ms)


def resolve(record: Record | None, event: Resolve, now_us: int) -> Write | None:
    """Settle an unknown outcome with a higher token, so that a late completion is refused."""
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
        has_steps=record.has_steps and not event.clears_steps,
    )
    if event.state is State.RELEASED:
        resolved = resolved._replace(owner=b"")  # as if forgotten: no copy was answered
    if event.state is State.FAILED and event.compensate:
        # Its lease is over: the next delivery of the key, or a message made for it, continues.
        resolved = resolved._replace(state=State.COMPENSATING, until_ms=now_us // 1000)
    return Write(resolved, event.ttl_ms)


def with_mark(before: Record | None, write: Write | None, now_us: int) -> Write | None:
    """Return the write with what becomes of the mark that somebody waits for the record's run.

    It stays as long as they have to wait: over renewals and a takeover, of which they are told
    nothing, and over a retry, of which its own message has to hear. Otherwise it goes with its end.
    """
    if write is None or before is None or not before.is_awaited:
        return write
    if write.record is None or write.record == before:
        return write
    over = _keeps_waiting(write.record, now_us // 1000) < _keeps_waiting(before, 0)
    wakes = over or write.record.state is State.RETRYING
    return write._replace(record=write.record._replace(is_awaited=not over), wakes=wakes)


def _keeps_waiting(record: Record, now_ms: int) -> int:
    """Return whom a record keeps waiting: 2 everybody, 1 copies of its own message, 0 nobody."""
    if record.state is State.RETRYING:
        return 2
    if record.until_ms <= now_ms:
        return 0
    return 2 if record.state in (State.RUNNING, State.COMPENSATING) else 1
