"""Decides what each event does to a record: ``(record, event, now) -> (verdict, write)``, pure.

The order of the tests in :func:`claim` is the order of the contract's table. The memory and SQL
stores call these functions. ``stores/redis/lua`` has the same rules for Redis; the differential
test compares the two. ``now_us`` is always the store's clock, in microseconds since 1970.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

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
    Renewal,
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

_COUNTS: Final = re.compile("([0-9A-Fa-f]+):([0-9]+)")
#: How many calls whose runs were cut off a record names.
_MOST_CUT_OFF: Final = 16


class _Asked(NamedTuple):
    """A delivery that asks for its key, and what the store has for it."""

    ask: Claim
    now_us: int
    record: Record | None
    #: The slip of the message's owner.
    slip: Slip | None
    #: The slip of the run that this caller waited for last.
    awaited: Slip | None
    #: For how long the record and the slip are still kept.
    left_ms: int
    slip_left_ms: int

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    @property
    def mine(self) -> bool:
        """Whether the record is of the message's own call."""
        return self.record is not None and self.record.owner == self.ask.candidate.owner

    @property
    def noted(self) -> bool:
        """Whether the message's callbacks have gone out."""
        slip, ask = self.slip, self.ask
        return slip is not None and ask.callbacks and slip.has_sent(ask.message.digests)

    @property
    def answer(self) -> Slip | None:
        """The slip, if it holds an answer that counts: not where the key was forgotten since."""
        slip, record = self.slip, self.record
        if slip is None or not slip.answered:
            return None
        is_forgotten = record is not None and not record.owner and slip.token < record.token
        return None if is_forgotten else slip

    @property
    def is_copy(self) -> bool:
        """Whether the message is a copy of the one that was answered."""
        answer, ask = self.answer, self.ask
        return answer is not None and not (ask.is_new or answer.is_older_than(ask.message))

    @property
    def lasting_slip(self) -> Slip | None:
        """The slip, unless it is of a run that gave its key up: that run's lease is over."""
        return None if self.slip is not None and self.slip.is_run else self.slip


def claim(
    record: Record | None,
    ask: Claim,
    now_us: int,
    *,
    slip: Slip | None = None,
    awaited: Slip | None = None,
    queued: Reservation | None = None,
    left_ms: int = NEVER_MS,
    slip_left_ms: int = NEVER_MS,
) -> tuple[ClaimVerdict, Write | None]:
    """Decide what a delivery may do.

    Args:
        slip: the slip of the message's owner.
        awaited: the slip of the run that this caller waited for last.
        queued: the key's reservation, if this delivery has to end it.
        left_ms: for how long the record is still kept; ``slip_left_ms``: the slip.
    """
    it = _Asked(ask, now_us, record, slip, awaited, left_ms, slip_left_ms)
    if ask.latest and not ask.compensates_only:
        return _claim_latest(it, queued)
    verdict, write = _with_slip(it)
    if queued is not None and (isinstance(verdict, Claimed) or queued.owner == ask.candidate.owner):
        write = (Write(None) if write is None else write)._replace(drops_queued=True)
    return verdict, write


def _claim_latest(it: _Asked, queued: Reservation | None) -> tuple[ClaimVerdict, Write | None]:
    """Decide where only the newest of the calls that wait runs next: the reservation names it.

    The order in which calls came decides. When a call came is kept in its message, in its slip (a
    message that could not be put back comes again as it was), and in the record of its run.
    """
    ask, record, slip, now_ms, mine = it.ask, it.record, it.slip, it.now_ms, it.mine
    new = ask.candidate
    is_own = queued is not None and queued.owner == new.owner
    others_ms = 0 if queued is None or is_own else queued.since_ms
    runs_ms = 0 if record is None else record.came_ms
    is_first = not ask.came_ms
    # A call that takes over its own run keeps its place: calls that waited since are newer.
    came_ms = (runs_ms if mine else 0) or ask.came_ms or (0 if slip is None else slip.came_ms)
    if not came_ms:
        # Later than every known call, also within one millisecond, and if the clock goes back.
        came_ms = max(now_ms, runs_ms + 1, others_ms + 1)
    ask = ask._replace(came_ms=came_ms)
    verdict, write = _with_slip(it._replace(ask=ask))
    left = Write(None) if write is None else write
    came = Slip(token=came_ms)
    if isinstance(verdict, Claimed) and verdict.failed is None and left.record is not None:
        may_wait = not mine and now_ms < ask.refused_from_ms
        if may_wait and queued is not None and came_ms <= others_ms:
            ahead, waits_on = _let_go_first(queued, ask, it.now_us)
            if ahead is not None:
                return Busy(ahead, False, came_ms if is_first else now_ms), waits_on
        if queued is not None and queued.due_ms:
            # Other calls waited for this run before it began: its end has to be published.
            left = left._replace(record=left.record._replace(is_awaited=True))
        if ask.slip_key:
            left = left._replace(slip=came, slip_ttl_ms=ask.keep_ms)
        if queued is not None and (is_own or not mine):
            left = left._replace(drops_queued=True)
    elif (
        isinstance(verdict, Busy)
        and not verdict.mine
        and record is not None
        and now_ms < ask.refused_from_ms
    ):
        if came_ms > max(runs_ms, others_ms):
            waits = Reservation(new.owner, is_confirmed=True, since_ms=came_ms, waits=True)
            if is_own and queued is not None:
                waits = waits._replace(until_ms=queued.until_ms)
            if queued != waits or 2 * (waits.until_ms - now_ms) < ask.keep_ms:
                left = left._replace(queued=waits._replace(until_ms=now_ms + ask.keep_ms))
        elif is_own:
            left = left._replace(drops_queued=True)
        if is_first:
            verdict = verdict._replace(now_ms=came_ms)
            if slip is None and ask.slip_key:
                left = left._replace(slip=came, slip_ttl_ms=ask.keep_ms)
    elif is_own:
        left = left._replace(drops_queued=True)
    return verdict, None if left == Write(None) else left


def _let_go_first(
    queued: Reservation, ask: Claim, now_us: int
) -> tuple[Record | None, Write | None]:
    """Keep the free key for the call that is to run next, before calls that came before it.

    If it doesn't come within a lease, its message was lost, and the next one to come gets the key.

    Returns:
        Its run, which has not begun: the others wait for it. ``None``: it did not come in time.
    """
    now_ms = now_us // 1000
    until_ms = queued.due_ms or now_ms + ask.lease_ms
    if now_ms >= until_ms:
        return None, None
    label = Label(came=str(queued.since_ms)).text()
    token = max(now_us, queued.since_ms * 1000)
    ahead = Record(State.RUNNING, token, until_ms, owner=queued.owner, label=label)
    waits = None if queued.due_ms else Write(None, queued=queued._replace(due_ms=until_ms))
    return ahead, waits


def _with_slip(it: _Asked) -> tuple[ClaimVerdict, Write | None]:
    verdict, write = _decide(it)
    ttl_ms = it.ask.horizon_ms
    if it.slip is not None and it.slip_left_ms < ttl_ms and it.is_copy:
        # More copies may come after this one.
        if write is None:
            write = Write(None, slip=it.slip, slip_ttl_ms=ttl_ms)
        elif write.slip_ttl_ms == KEEP_TTL:  # else it is written for that long, or deleted
            write = write._replace(slip=write.slip or it.slip, slip_ttl_ms=ttl_ms)
    return verdict, write


def _decide(it: _Asked) -> tuple[ClaimVerdict, Write | None]:
    ask, _, record, slip, awaited, *_ = it
    now_ms, mine, answer, is_copy, noted = it.now_ms, it.mine, it.answer, it.is_copy, it.noted
    new = ask.candidate
    if ask.compensates_only and (record is None or record.state is not State.COMPENSATING):
        return Superseded(), None
    told = answer if mine and is_copy else None
    if slip is not None and not noted and _is_being_sent(slip, ask, now_ms):
        # Another delivery answers this call, or sends its callbacks: wait, whatever this would do.
        telling = slip.as_record(new.owner)._replace(until_ms=slip.sending_ms)
        return Busy(telling, True, now_ms), None
    if record is None:
        if answer is not None and is_copy:
            return _answer_again(it)
        return _take(it, 0)

    if new.nonce and record.nonce == new.nonce:
        # This is our own claim: its answer was lost on the wire, or we gave it up.
        if record.state is State.RUNNING:
            label = Label.of(record)
            token, count = record.token, record.interruptions
            return Claimed(
                token, count, origin=label.origin, came=label.came, cut_off=label.cut_off
            ), None
        if record.state is State.COMPENSATING and record.process:
            return Claimed(record.token, record.interruptions, record), None
        if record.is_done and record.until_ms:
            return Replay(record, mine, noted), None
        return _busy(it, record)
    if new.nonce and record.has_given_up(new.nonce):
        return _busy(it, record)

    # Runs that survived an outage may renew first. A lease that was ended has no nonce.
    live = now_ms < record.until_ms or (bool(record.nonce) and now_ms < ask.patient_until_ms)
    if record.state is State.RELEASED and not record.outcome:
        if mine and is_copy and answer is not None:
            return _answer_again(it)
        # The nonce stays after a claim was given up. Its body never ran, so the counts stand.
        if mine and record.nonce and new.retries < record.retries:
            return Superseded(), None
        if mine or not is_copy:
            cut_off = record.interruptions if record.nonce and (mine or not ask.in_turn) else 0
            return _take(it, cut_off)
    if not mine:
        is_kept = record.state in (State.SUCCEEDED, State.FAILED)
        if answer is not None and (is_copy or answer.outcome):
            if answer.outcome or not (answer.succeeded and is_kept):
                return _answer_again(it)
            return _replay_other(it, record)
        if awaited is not None and awaited.released:
            awaited = None  # a run that released its key answers its own call only
        if awaited is not None and awaited.answered and awaited.outcome and not is_kept:
            shared = Replay(awaited.as_record(ask.awaited), False, noted)
            return _told(it, record, shared, awaited.outcome)
        if ask.checked and record.fingerprint != new.fingerprint and not _is_free_for(record, ask):
            return _told(it, record, Mismatch(record))
    if record.state is State.RUNNING:
        if mine and new.retries < record.retries:
            return Superseded(), None
        if live:
            return _busy(it, record)
        if told is not None:  # the worker's parent has answered the call, and ended its run
            return _answer_again(it)
        if mine and new.retries > record.retries:
            return _take(it, 0)
        return _interrupted(it, record)
    if record.state is State.RETRYING:
        if mine and new.retries < record.retries:
            return Superseded(), None
        if told is not None:
            return _answer_again(it)
        if mine or now_ms >= record.until_ms + ask.lease_ms:
            return _take(it, 0)
        return _busy(it, record)
    if record.is_done:
        if mine:
            if now_ms < record.until_ms:
                return _busy(it, record)
            if answer is not None and is_copy and answer.outcome:
                return _answer_again(it)
            return _replay_mine(it, record)
        if record.state is State.RELEASED:
            shares = ask.awaited == record.owner
            if ask.latest:
                shares = ask.came_ms <= record.came_ms
            if not shares:
                return _take(it, 0)
            shared = Replay(record, False, noted)
            return _told(it, record, shared, record.outcome)
        return _replay_other(it, record)
    if record.state is State.COMPENSATING:
        if live:
            return _busy(it, record)
        return _compensate(it, record)
    if told is not None and told.released:
        return _answer_again(it)
    return _told(it, record, Unknown(record, noted))


def _busy(it: _Asked, record: Record) -> tuple[ClaimVerdict, Write | None]:
    """Return that the key is busy, and mark the record, so that the end of its run is published."""
    mine, now_ms, ask = it.mine, it.now_ms, it.ask
    if not mine and now_ms >= ask.refused_from_ms:
        return _told(it, record, Busy(record, mine, now_ms))
    if record.is_awaited or not _keeps_waiting(record, 0):
        return Busy(record, mine, now_ms), None
    marked = record._replace(is_awaited=True)
    return Busy(marked, mine, now_ms), Write(marked, only_marks=True)


def _is_free_for(record: Record, ask: Claim) -> bool:
    """Whether a call with other arguments may have a key that has no window."""
    if not ask.frees:
        return False
    return record.state is State.UNKNOWN or (
        record.state is State.RELEASED and ask.awaited != record.owner
    )


def _take(it: _Asked, interruptions: int) -> tuple[ClaimVerdict, Write | None]:
    ask, now_us, record, slip, *_ = it
    token = now_us if record is None else max(record.token + 1, now_us)
    now_ms = it.now_ms
    others, cut_off = _cut_off(record, ask)
    if slip is not None and slip.is_run and ask.candidate.retries <= slip.retries:
        # An earlier run had released its key before its end, and was cut off after that.
        cut_off = max(cut_off, slip.interruptions + 1)
    interruptions = max(interruptions, cut_off)
    if cut_off > ask.max_interruptions:
        label = _label(ask, "", "", others)
        left = ask.candidate._replace(token=token, label=label)
        if record is not None:
            left = left._replace(
                has_steps=record.has_steps,
                is_awaited=record.is_awaited,
                given_up=record.given_up,
            )
        return _become_unknown(it._replace(slip=None), left, interruptions)
    origin, came = _origin(record, ask), str(ask.came_ms) if ask.latest else ""
    taken = ask.candidate._replace(
        state=State.RUNNING,
        token=token,
        until_ms=now_ms + ask.lease_ms,
        interruptions=interruptions,
        has_steps=record is not None and record.has_steps,
        is_awaited=record is not None and record.is_awaited,
        given_up=b"" if record is None else still_given_up(record.given_up, now_ms),
        label=_label(ask, origin, came, others),
    )
    # The old answer belongs to an earlier attempt, which nobody asks for any more.
    slip_ttl_ms = KEEP_TTL if slip is None else 0
    claimed = Claimed(token, interruptions, origin=origin, came=came, cut_off=others)
    return claimed, Write(taken, ask.keep_ms, None, slip_ttl_ms)


def _label(ask: Claim, origin: str, came: str, cut_off: str) -> str:
    label = ask.candidate.label
    if origin or came or cut_off:
        label = Label.read(label)._replace(origin=origin, came=came, cut_off=cut_off).text()
    return label


def _cut_off(record: Record | None, ask: Claim) -> tuple[str, int]:
    """Return the calls whose runs were cut off, and how often that was this one's.

    The others' own messages may come again long after this run has ended. See
    :attr:`.Label.cut_off`.
    """
    if record is None:
        return "", 0
    counts = dict(_COUNTS.findall(Label.of(record).cut_off))
    owner = ask.candidate.owner
    gives_up = record.state is State.RELEASED and not record.outcome and record.nonce
    count = record.interruptions + (record.state is State.RUNNING)
    if count and record.owner not in (b"", owner) and (gives_up or record.state is State.RUNNING):
        counts.pop(record.owner.hex(), None)
        counts[record.owner.hex()] = str(min(count, 255))
    own = int(counts.pop(owner.hex(), 0))
    kept = [f"{call}:{times}" for call, times in counts.items()]
    return ",".join(kept[-_MOST_CUT_OFF:]), own


def _origin(record: Record | None, ask: Claim) -> str:
    """Return the owner that began the work which this claim continues.

    Empty: this call began it, or the key has a window.
    """
    if record is None or not ask.frees or ask.in_turn or not record.owner or record.is_done:
        return ""
    origin = Label.of(record).origin
    # A released key with a count: its claim was given up, and the run before that was cut off.
    cut_off = record.state is not State.RELEASED or (record.nonce and record.interruptions)
    if not origin and cut_off:
        origin = record.owner.hex()
    return "" if origin == ask.candidate.owner.hex() else origin


def _interrupted(it: _Asked, record: Record) -> tuple[ClaimVerdict, Write | None]:
    # Where calls run in turn, the interruption of another call's run counts for that call only.
    anothers = it.ask.in_turn and not it.mine
    interruptions = 1 if anothers else record.interruptions + 1
    if interruptions <= it.ask.max_interruptions:
        return _take(it, 0 if anothers else interruptions)
    return _become_unknown(it, record, interruptions)


def _compensate(it: _Asked, record: Record) -> tuple[ClaimVerdict, Write | None]:
    ask = it.ask
    # Without a process no run has begun: an operator asked for it, or a claim was given up.
    interruptions = record.interruptions + bool(record.process)
    if interruptions > ask.max_compensations:
        return _become_unknown(it, record, interruptions)
    # The owner stays: the failure belongs to its call, whichever delivery runs the compensation.
    taken = record._replace(
        token=max(record.token + 1, it.now_us),
        until_ms=it.now_ms + ask.lease_ms,
        interruptions=interruptions,
        process=ask.candidate.process,
        nonce=ask.candidate.nonce,
    )
    return Claimed(taken.token, interruptions, taken), Write(taken, ask.keep_ms)


def _become_unknown(it: _Asked, record: Record, interruptions: int) -> tuple[Unknown, Write | None]:
    # The token stays: the run may still be alive, and then its late completion settles the record.
    unknown = record._replace(
        state=State.UNKNOWN, until_ms=0, interruptions=interruptions, nonce=b""
    )
    write = Write(unknown, UNKNOWN_TTL_MS)
    if it.ask.slip_key:
        # While a copy tells its caller this, the run can't tell the caller anything else.
        write = _with_sending(it, write, it.lasting_slip)
    return Unknown(unknown), write


def _replay_mine(it: _Asked, record: Record) -> tuple[Replay, Write | None]:
    ask, slip, noted, write = it.ask, it.slip, it.noted, Write(None)
    if ask.slip_key and record.outcome and it.left_ms < ask.horizon_ms:
        # The record may be gone when the next copy of the message comes.
        kept = slip
        if kept is None or not kept.answered:
            kept = ask.message._replace(digests=b"" if slip is None else slip.digests)
        kept = kept._replace(answered=True, token=record.token, outcome=record.outcome)
        write = Write(None, slip=kept, slip_ttl_ms=ask.horizon_ms)
    if ask.callbacks and not noted:
        # It sends what its first delivery did not send, under a delivery lease.
        record = record._replace(
            until_ms=it.now_ms + ask.lease_ms,
            process=ask.candidate.process,
            nonce=ask.candidate.nonce,
        )
        write = write._replace(record=record)
    return Replay(record, True, noted), None if write == Write(None) else write


def _replay_other(it: _Asked, record: Record) -> tuple[ClaimVerdict, Write | None]:
    shared, slip, ttl_ms = Replay(record, False, it.noted), it.slip, it.ask.horizon_ms
    if record.outcome and (it.left_ms < ttl_ms or (slip is not None and slip.is_run)):
        # The record may be gone when the next copy of the message comes. Or the call's own run,
        # which gave its key up and lost its lease, may end: it finds that the call is answered.
        return _told(it, None, shared, record.outcome, ttl_ms)
    return _leased(it, shared)


def _answer_again(it: _Asked) -> tuple[ClaimVerdict, Write | None]:
    """Answer a call from its slip, whichever call has the key now."""
    assert it.answer is not None
    if not it.answer.outcome:
        return Superseded(), None
    record = it.answer.as_record(it.ask.candidate.owner)
    return _leased(it, Replay(record, True, it.noted, True))


def _leased(it: _Asked, verdict: ClaimVerdict) -> tuple[ClaimVerdict, Write | None]:
    """Return the verdict; if callbacks are unsent, take a lease on them in the message's slip."""
    if it.noted or not it.ask.callbacks or not it.ask.slip_key:
        return verdict, None
    return verdict, _with_sending(it, Write(None), it.lasting_slip)


def _told(
    it: _Asked,
    record: Record | None,
    verdict: ClaimVerdict,
    outcome: bytes = b"",
    ttl_ms: int = 0,
) -> tuple[ClaimVerdict, Write | None]:
    """Return a verdict that the slip keeps, because the record doesn't, or not for long.

    The next copy of the message gets the same ``outcome``. Where there is none yet, the caller
    makes an error, and has a lease for as long as that takes: meanwhile no copy of the message
    answers, and neither does a run of its call. The record is written as it is: what changes it
    at this moment comes before or after all of this.
    """
    ask, slip = it.ask, it.lasting_slip
    if not ask.slip_key:
        return verdict, None
    write = Write(record)
    is_told = slip is not None and slip.answered
    if outcome:
        told = ask.message._replace(answered=True, digests=b"", outcome=outcome)
        slip = told if slip is None else slip.merged(told)
        write = write._replace(slip=slip, slip_ttl_ms=ttl_ms or ask.keep_ms)
    if not it.noted if ask.callbacks else not (outcome or is_told):
        write = _with_sending(it, write, slip)
    return verdict, None if write.slip is None else write


def _is_being_sent(slip: Slip, ask: Claim, now_ms: int) -> bool:
    if now_ms >= slip.sending_ms:
        return False
    return not ask.candidate.nonce or slip.holder[:8] != ask.candidate.nonce.ljust(8, b"\0")


def _with_sending(it: _Asked, write: Write, slip: Slip | None) -> Write:
    ask = it.ask
    kept = ask.message._replace(digests=b"") if slip is None else slip
    until_ms = it.now_ms + ask.lease_ms
    sending = kept._replace(sending_ms=until_ms, holder=ask.candidate.holder)
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
                # The first answer was lost, and another run has the key now.
                return Recorded(token, _is_told_by_a_copy(slip, event, now_ms)), None
            if slip is None or not slip.answered:
                return Lost(record), None
            return Lost(record, True), _kept(slip, event)
        if record.state in (State.SUCCEEDED, State.FAILED):
            return Recorded(record.token), None
        if record.state is State.UNKNOWN and new.state is State.RUNNING:
            # An interrupt changes nothing, unless the call fails by it.
            if event.slip is None:
                return Recorded(record.token), None
            if answered and slip is not None:
                return Recorded(record.token, True), _kept(slip, event)
            return Recorded(record.token), _with_slip_of(event, Write(None), now_ms)
        if new.state is State.RETRYING and (
            (record.state is State.UNKNOWN and answered) or _is_ended(record, slip)
        ):
            # There is nothing left to retry.
            return Recorded(record.token, True), slip and _kept(slip, event)
    else:
        lost = _answered_since(new, slip)
        if lost is not None:
            return lost, slip and _kept(slip, event)
    # A copy can have answered the run's call only while the outcome was unknown. Else it was the
    # worker's parent, before it ended the run.
    answered = record is not None and (
        (answered and (record.state is State.UNKNOWN or record.state is State.COMPENSATING))
        or (_is_ended(record, slip) and (new.state is not State.RUNNING or event.slip is not None))
    )
    # Compensating is a run of its own, and only its own interruptions count.
    begins = new.state is State.COMPENSATING and (
        record is not None and record.state is not State.COMPENSATING
    )
    # A key that is released before the run's end has no lease: it is in the slip. Where a copy has
    # answered the call, nobody is told this outcome, and no delivery lease is needed.
    gives_up = event.slip is not None and event.slip.is_run
    timed = new.state in (State.RUNNING, State.RETRYING, State.COMPENSATING) or (
        event.delay_ms > 0 and not gives_up and not answered
    )
    # Who was cut off holds nothing more: what it may still send has its lease in the slip.
    delay_ms = 0 if new.state is State.RUNNING else event.delay_ms
    written = new._replace(
        token=token,
        until_ms=now_ms + delay_ms if timed else 0,
        interruptions=0 if record is None or begins else record.interruptions,
        has_steps=(new if record is None else record).has_steps and not event.clears_steps,
        given_up=b"" if record is None else record.given_up,
        is_awaited=(new if record is None else record).is_awaited,
    )
    write = Write(written, event.ttl_ms, drops_queued=releases and queued is not None)
    if answered and slip is not None:
        kept = _kept(slip, event)
        return Recorded(token, True), write._replace(slip=kept.slip, slip_ttl_ms=kept.slip_ttl_ms)
    return Recorded(token), _with_slip_of(event, write, now_ms)


def _with_slip_of(event: Settle, write: Write, now_ms: int) -> Write:
    """Write the slip that comes with the end of a run, and the lease on its callbacks."""
    if event.slip is None:
        return write
    sending_ms = now_ms + event.delay_ms if event.delay_ms else event.slip.sending_ms
    left = event.slip._replace(token=event.record.token, sending_ms=sending_ms)
    return write._replace(slip=left, slip_ttl_ms=event.slip_ttl_ms)


def _is_ended(record: Record, slip: Slip | None) -> bool:
    """Whether the worker's parent has answered the call of a run that it is about to end."""
    ends = slip is not None and slip.answered and slip.released
    return ends and record.state is State.RUNNING


def _settle_released(
    slip: Slip, event: Settle, now_ms: int
) -> tuple[Recorded | Lost, Write | None]:
    """Write the end of a run that had released its key: it answers its own call and no other."""
    new = event.record
    if event.slip is not None and event.slip.is_run:
        return Recorded(new.token + 1), None  # the answer to its release was lost
    if slip.answered:
        return Recorded(new.token), None  # ... or to its end
    if new.state is State.RUNNING and event.slip is None:
        return Recorded(new.token), Write(None, slip=slip._replace(sending_ms=now_ms))
    if new.state is State.RELEASED and not new.outcome and event.slip is None:
        return Recorded(new.token), Write(None, slip_ttl_ms=0)  # its message comes again
    outcome = b"" if new.state is State.RETRYING else new.outcome
    if event.slip is not None:
        outcome = event.slip.outcome
    delivers = event.delay_ms > 0 and bool(outcome)
    left = slip._replace(
        answered=True,
        outcome=outcome,
        sending_ms=now_ms + event.delay_ms if delivers else 0,
    )
    ttl_ms = max(event.slip_ttl_ms, event.ttl_ms)
    return Recorded(new.token), Write(None, slip=left, slip_ttl_ms=ttl_ms)


def _is_told_by_a_copy(slip: Slip | None, event: Settle, now_ms: int) -> bool:
    """Whether a copy of the message answers the call of a run that tells its end again."""
    if slip is None:
        return False
    own = b"" if event.slip is None else event.slip.holder
    is_telling = now_ms < slip.sending_ms and slip.holder != own
    return is_telling or (slip.answered and slip.token != event.record.token)


def _kept(slip: Slip, event: Settle) -> Write:
    """Keep the slip of a run whose call is answered by a copy of its message.

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
    record: Record | None, one: Renewal, now_us: int, *, slip: Slip | None = None
) -> tuple[Recorded | Lost, Write | None]:
    """Prolong the lease of a run, or the delivery lease of a finished one, by ``held.token``.

    Args:
        slip: the slip of the run's owner.
    """
    held, keep_ms = one.held, one.keep_ms
    until_ms = now_us // 1000 + one.lease_ms
    holds_no_key = record is None or record.token != held.token
    if slip is not None and slip.released and slip.token == held.token and holds_no_key:
        # The run has released its key: its lease is in the slip.
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
        # A copy has answered the call, or is about to: the slip is kept as long as the run lives.
        return Recorded(held.token, True), Write(None, slip=slip, slip_ttl_ms=keep_ms)
    return Recorded(held.token), None


def step(
    record: Record | None, one: Renewal, now_us: int, *, slip: Slip | None = None
) -> tuple[Recorded | Lost, Write | None]:
    """Accept a step of a run that holds its key; this prolongs its lease, too.

    Args:
        slip: the slip of the run's owner.
    """
    held = one.held
    if record is None:
        lost = _answered_since(held, slip)
        if lost is not None:
            return lost, None
        record = held
    elif record.token != held.token:
        return Lost(record), None
    if record.state in (State.RUNNING, State.COMPENSATING):
        record = record._replace(until_ms=now_us // 1000 + one.lease_ms)
    elif record.state is State.UNKNOWN:
        # It still waits to be resolved, and expires no later than before.
        return Recorded(held.token), Write(record._replace(has_steps=True), KEEP_TTL)
    else:
        return Lost(record), None
    return Recorded(held.token), Write(record._replace(has_steps=True), one.keep_ms)


def note(
    record: Record | None, event: Note, now_us: int = 0, *, slip: Slip | None = None
) -> Write | None:
    """Record that a message was answered, and end the delivery lease of its run."""
    write = Write(None)
    if record is not None and record.token == event.token and record.is_done and record.until_ms:
        write = Write(record._replace(until_ms=0, process=b"", nonce=b""), KEEP_TTL)
    if event.slip.answered:
        merged = event.slip if slip is None else slip.merged(event.slip)
        if event.sends_ms:
            merged = merged._replace(sending_ms=now_us // 1000 + event.sends_ms)
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
    compensates = record.state is State.COMPENSATING and bool(record.process)
    delivers = record.is_done and bool(record.until_ms)
    if record.state is State.RUNNING and holds:
        free = record._replace(
            state=State.RELEASED, token=record.token + 1, until_ms=0, process=b""
        )
        return undone(free, ttl_ms)
    if compensates and holds:
        free = record._replace(token=record.token + 1, until_ms=now_ms, process=b"")
        return undone(free, KEEP_TTL)
    if delivers and holds:
        return undone(record._replace(until_ms=0, process=b""), KEEP_TTL)
    if record.state is State.RUNNING or compensates or delivers:
        return undone(record, KEEP_TTL)  # another's claim, which stays as it is
    counted = record.interruptions if record.nonce or record.state is not State.RELEASED else 0
    return undone(record._replace(nonce=given_up.nonce, interruptions=counted), KEEP_TTL)


def forget(
    record: Record | None, ttl_ms: int, now_us: int, *, queued: Reservation | None = None
) -> Write | None:
    """Free a key for the next call. A higher token stays, so that a late run is refused.

    So do the claims that were given up: nobody would run their bodies.
    """
    if record is None:
        return None if queued is None else Write(None, drops_queued=True)
    given_up = still_given_up(record.given_up, now_us // 1000)
    freed = Record(State.RELEASED, max(record.token + 1, now_us), given_up=given_up)
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
    reserved = new._replace(
        due_ms=due_ms,
        expires_ms=expires_ms,
        is_confirmed=False,
        since_ms=now_ms,
        until_ms=now_ms + ask.hold_ms,
    )
    return Reserved(), Write(None, queued=reserved)


def _is_ahead(record: Record, ask: Reserve, now_ms: int) -> bool:
    """Whether the record's call will have an outcome that another call can get."""
    if not record.owner or record.owner in ask.over or not _is_alike(record.fingerprint, ask):
        return False
    if record.state in (State.RUNNING, State.RETRYING):
        return now_ms < record.until_ms and not Label.of(record).is_alone
    return record.state in (State.SUCCEEDED, State.FAILED)


def _is_alike(fingerprint: bytes, ask: Reserve) -> bool:
    """Whether the call that was found has the same arguments, where that is checked."""
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
        return Write(None, drops_queued=True)
    confirmed = queued._replace(is_confirmed=True, until_ms=now_us // 1000 + left_ms)
    return Write(None, queued=confirmed)


def unreserve(queued: Reservation | None, owner: bytes) -> Write | None:
    """Undo the reservation of a call that could not be published."""
    return Write(None, drops_queued=True) if queued and queued.owner == owner else None


def put(record: Record | None, new: Record, left_ms: int, ttl_ms: int, now_us: int) -> Write | None:
    """Write a record of another store, unless this store has a newer one."""
    if record is not None:
        is_older = record.token < new.token
        if not (is_older or (record.token == new.token and record.state is State.RUNNING)):
            return None
    until_ms = now_us // 1000 + left_ms if left_ms > 0 else 0
    # Those who wait for its run wait at the other store.
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


def rewind(
    record: Record | None, token: int, keeps_steps: bool, ttl_ms: int, now_us: int
) -> Write | None:
    """Free a key whose next run goes on after the steps that are kept, with a higher token.

    The label keeps the owner that began the work: the call's arguments are looked up by it.

    Args:
        token: the token that the record must have: a person has decided about that record.
    """
    if record is None or record.token != token or record.state is State.COMPENSATING:
        return None
    if now_us // 1000 < record.until_ms:
        return None  # somebody holds it, or is about to
    label = record.label
    if record.owner:
        label = Label.of(record)._replace(origin=record.owner.hex()).text()
    freed = record._replace(
        state=State.RELEASED,
        token=max(record.token + 1, now_us),
        until_ms=0,
        interruptions=0,
        owner=b"",  # as if forgotten: no copy was answered
        process=b"",
        nonce=b"",
        label=label,
        outcome=b"",
        has_steps=record.has_steps and keeps_steps,
    )
    return Write(freed, ttl_ms)


def with_mark(before: Record | None, write: Write | None, now_us: int) -> Write | None:
    """Return the write, with or without the mark that somebody waits for the record's run.

    It stays for as long as they have to wait: over renewals and a takeover, and over a retry, whose
    own message has to be woken. It is cleared when the run ends.
    """
    if write is None or before is None or not before.is_awaited or not _keeps_waiting(before, 0):
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
