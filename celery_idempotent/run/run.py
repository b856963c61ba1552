"""A key that is held: by a run until its end is recorded, and then until its callbacks are sent."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final

from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import (
    COMPENSATING,
    FAILED,
    RELEASED,
    RETRYING,
    RUNNING,
    SUCCEEDED,
    UNKNOWN,
    Label,
    Record,
)
from celery_idempotent.core.slip import NO_SLIP, Slip
from celery_idempotent.core.step import steps_of
from celery_idempotent.core.verdicts import UNKNOWN_TTL_MS, Lost, Note, Recorded, Replay, Settle
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.run.claimant import Claimant, Ending
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.run.lease import Lease
from celery_idempotent.run.transaction import BodyTransaction
from celery_idempotent.stores.base import Store

log = logging.getLogger("celery_idempotent")

#: States that are an outcome, and those whose record names a process.
_WITH_OUTCOME: Final = (SUCCEEDED, FAILED)
_WITH_PROCESS: Final = (RUNNING, COMPENSATING, UNKNOWN)


class Run:
    """A key that is held: by a run, or, for a ``replay`` of its own outcome, for the delivery.

    Args:
        held: the record that was granted.
        on_lost: called with the lease when it is lost.
        asked: when it was asked for, on this process's monotonic clock: its lease runs from then.
    """

    _transaction: BodyTransaction | None = None

    def __init__(
        self, claimant: Claimant, held: Record, on_lost: Callable[[Lease], None], asked: float
    ) -> None:
        self.claimant = claimant
        #: The outcome of a body that failed for good, and whose steps are to be compensated.
        self.failed = held.outcome if held.state is COMPENSATING else b""
        #: How many earlier runs were cut off.
        self.interruptions = held.interruptions
        #: Who began what it goes on with: see :attr:`.Label.origin`.
        self.origin = Label.of(held).origin if claimant.terms.frees else ""
        #: What earlier runs of the key have finished.
        self.steps: Mapping[str, bytes] = {}
        #: Whether its body has given the key up.
        self.is_released = False
        #: Set where there is an outcome already, and only its callbacks have to be sent.
        self.replay: Replay | None = None
        #: What the names of its steps begin with in the store, where others' steps may be kept.
        self.steps_of = ""
        if claimant.terms.in_turn:
            self.steps_of = steps_of(held.owner)
        #: Whether it only compensates the run of another call, and its own call runs after that.
        self.is_for_another = claimant.terms.in_turn and held.owner != claimant.owner
        # Whether its callbacks went out; None until the tracer has returned.
        self._delivered: bool | None = None
        self._ending = False
        self._pid = os.getpid()
        #: Writes of steps that failed while the store was away: they come before the end.
        self.owed: list[Callable[[], object]] = []
        terms = claimant.terms
        self.lease = Lease(
            terms.store,
            claimant.key,
            held,
            terms.lease_ms,
            terms.keep_ms,
            on_lost,
            claimant.slip_key,
        )
        self.lease.renewed = asked

    @property
    def token(self) -> int:
        """The fencing token."""
        return self.lease.record.token

    @property
    def transaction(self) -> BodyTransaction:
        """What its body writes in the store's database; most bodies do not use it."""
        if self._transaction is None:
            made = BodyTransaction(self.lease, over=self._ending)
            # Where two threads make one at once, both get the first.
            self.__dict__.setdefault("_transaction", made)
        assert self._transaction is not None
        return self._transaction

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is a copy of the run, in a process that its body forked."""
        return self._pid != os.getpid()

    def end(self, ending: Ending) -> Recorded | Lost | None:
        """Record how the run ended. ``None``: the store is away, and the end is recorded later.

        A run that is known to have lost its key is told so, whether or not the store is away.

        Where the message has callbacks and there is an outcome, a delivery lease is held until
        :meth:`delivered`.

        Raises:
            NotCommitted, Exception: what the body wrote in its session was not committed.
        """
        self._ending = True
        if self.is_released and not self.claimant.slip_key:
            return Recorded(self.token)  # an eager call: there is nobody to be answered by a record
        event = self._settle(ending)
        transaction = self._transaction
        if transaction is not None:
            if ending.state is SUCCEEDED and transaction.is_open:
                self.owed.clear()  # nobody reads the steps of a finished key
                answer = transaction.commit(event)
                self._ended(event, answer)
                return answer
            transaction.rollback()
        try:
            settle = self.claimant.terms.store.settle
            answer = self._write_end(event) if self.owed else settle(self.claimant.key, event)
        except BaseException as exc:
            # A soft time limit, for instance: the body is done, and its outcome must not be lost.
            self._record_later(event, exc)
            if not isinstance(exc, Exception):
                raise
            lost = self.lease.lost  # what a renewal has told already
            return None if lost is None else Lost(lost)
        if isinstance(answer, Lost) or event.keeps_lease:
            self._ended(event, answer)
        else:
            heartbeat.drop(self.lease)
        return answer

    def release(self) -> None:
        """Free the key, while the body goes on; the lease moves to the run's slip.

        Raises:
            ClaimLost: another run has the key.
            StoreUnavailable: the store does not answer; the key may be free all the same.
        """
        claimant, terms, held = self.claimant, self.claimant.terms, self.lease.record
        count = min(held.interruptions, 255)
        cut_off = bytes((count,)) if count else b""
        slip = claimant.message._replace(
            digests=b"", holder=held.holder, outcome=cut_off, released=True
        )
        event = Settle(
            held._replace(state=RELEASED, process=b"", nonce=b"", outcome=b""),
            terms.lease_ms,
            terms.horizon_ms,
            slip if claimant.slip_key else None,
            max(terms.keep_ms, terms.horizon_ms),
            claimant.slip_key,
            queued_key=claimant.queued_key,
        )
        answer = terms.store.settle(claimant.key, event)
        if isinstance(answer, Lost):
            heartbeat.remove(self.lease)
            self.lease.lose(answer.record)
            return
        self.is_released = True
        # The store finds the lease by its token, and writes no record anew for it.
        self.lease.record = held._replace(state=RELEASED)
        if not claimant.slip_key:
            heartbeat.drop(self.lease)

    def pay(self, write: Callable[[], object]) -> None:
        """Write a step that is owed to the store, unless that is done."""
        if write in self.owed:
            write()
            with suppress(ValueError):  # the heartbeat thread may have written it, too
                self.owed.remove(write)

    def _write_end(self, event: Settle) -> Recorded | Lost:
        # A step that came after the end would be refused, and be done again by the next run.
        for write in list(self.owed):
            self.pay(write)
        return self.claimant.terms.store.settle(self.claimant.key, event)

    def _settle(self, ending: Ending) -> Settle:
        claimant = self.claimant
        state, terms, delay_ms = ending.state, claimant.terms, ending.delay_ms
        delivery = claimant.callbacks and _has_outcome(ending) and not self.is_for_another
        kept = delivery or state in _WITH_PROCESS
        if terms.frees and state in _WITH_OUTCOME:
            state = RELEASED  # with its outcome, for this call and those that waited for it
        if state in _WITH_OUTCOME:
            ttl_ms = terms.ttl_ms
        elif state is RETRYING:
            ttl_ms = delay_ms + terms.keep_ms
        elif state is UNKNOWN:
            ttl_ms = UNKNOWN_TTL_MS
        else:
            ttl_ms = terms.horizon_ms if state is RELEASED else terms.keep_ms
            if self.lease.record.has_steps and not terms.frees:
                # The next call within the window goes on after the finished steps.
                ttl_ms = max(ttl_ms, terms.ttl_ms)
        if delivery:
            delay_ms = terms.lease_ms
            ttl_ms = max(ttl_ms, delay_ms)
        held = self.lease.record
        answers = state is RELEASED and ending.answers
        is_over, label = terms.frees and answers, held.label
        if is_over:
            label = Label.read(label)._replace(origin="").text()
        record = Record(
            state,
            held.token,
            held.until_ms,
            ending.retries if state is RETRYING else held.retries,
            held.interruptions,
            held.owner,
            held.process if kept else b"",
            b"",  # only a claim has a nonce
            held.fingerprint,
            label,
            b"" if state is RUNNING else ending.outcome,
            held.has_steps,
        )
        slip: Slip | None = None
        slip_key, message = claimant.slip_key, claimant.message
        if slip_key and self.is_for_another:
            other = Owner.unpack(held.owner)
            slip_key, message = "" if other is None else other.slip_key(claimant.key), NO_SLIP
        if slip_key and (answers or (state in _WITH_OUTCOME and ttl_ms < terms.horizon_ms)):
            slip = message._replace(answered=True, digests=b"", outcome=ending.outcome)
            if delivery:
                slip = slip._replace(holder=held.holder)
        elif slip_key and state is RUNNING and ending.outcome:
            slip = told_alone(message, ending.outcome)
            delay_ms = terms.lease_ms if claimant.callbacks else 0
        # Nobody else writes steps while this run has the key.
        others = is_over and any(not name.startswith(self.steps_of) for name in self.steps)
        return Settle(
            record,
            delay_ms,
            ttl_ms,
            slip,
            terms.horizon_ms,
            slip_key,
            is_over and not others,
            self.steps_of if others else "",
            claimant.queued_key if state is RELEASED and terms.reserves else "",
        )

    def _ended(self, event: Settle, answer: Recorded | Lost) -> None:
        if isinstance(answer, Lost):
            heartbeat.remove(self.lease)
            self.lease.lose(answer.record)
        elif event.keeps_lease:
            self.lease.record = event.record._replace(token=answer.token)
        else:
            heartbeat.drop(self.lease)

    def _record_later(self, event: Settle, exc: BaseException) -> None:
        log.error(
            "could not record that %s is %s; trying again in the background: %s",
            self.claimant.key,
            event.record.state,
            exc,
        )

        def write() -> None:
            answer = self._write_end(event)
            self._ended(event, answer)
            if isinstance(answer, Recorded) and self._delivered is not None:
                # The tracer returned before there was a record.
                self.delivered(self._delivered)

        what = f"{self.claimant.key} is {event.record.state}"
        heartbeat.later(write, what, self.claimant.terms.keep_ms / 1000)

    def let_go(self) -> None:
        """Stop renewing the lease of a run that was cut off before its end."""
        if not self._ending:
            heartbeat.drop(self.lease)

    def delivered(self, sent: bool) -> None:
        """End the delivery lease, and note whether the message's callbacks were ``sent``."""
        self._delivered = sent
        if sent or self.lease.record.is_done:
            kept = self.lease.record.state in _WITH_OUTCOME
            slip = self.claimant.message._replace(answered=sent, succeeded=sent and kept)
            drop = partial(heartbeat.drop, self.lease)
            write_slip(self.claimant, slip, self.token, drop)


def write_slip(
    claimant: Claimant,
    slip: Slip,
    token: int = 0,
    then: Callable[[], object] | None = None,
    *,
    at_once: bool = True,
) -> None:
    """Record how a message was answered; where the store is away, until it is back.

    Args:
        token: of the run whose delivery lease ends.
        then: called once it is recorded.
        at_once: whether not to leave it to the background.
    """
    terms = claimant.terms
    note = Note(claimant.slip_key, slip, token, terms.horizon_ms)
    _write_note(terms.store, claimant.key, note, then, at_once=at_once)


def write_answer(
    store: Store,
    key: str,
    slip_key: str,
    answer: Slip,
    ttl_ms: int,
    lease_ms: int,
    *,
    at_once: bool = True,
) -> Callable[[bool], None]:
    """Record, before its caller is told, that a call fails whose run was cut off.

    The answer is this call's alone: for every other one the run was cut off.

    Args:
        answer: what distinguishes the message, the failure (without one, copies of the message
            are ignored), and the digest of the callbacks that are about to be sent.
        ttl_ms: for how long copies of the message may come.
        lease_ms: for how long they wait at most while the callbacks are sent.
        at_once: whether not to leave it to the background.

    Returns:
        To be called with whether it was told, so that the call's callbacks have gone out, too.
    """
    told = told_alone(answer, answer.outcome)
    note = Note(slip_key, told, 0, ttl_ms, lease_ms if answer.digests else 0)
    _write_note(store, key, note, at_once=at_once)
    if not answer.digests:
        return lambda sent: None

    def over(sent: bool) -> None:
        slip = told._replace(answered=sent, digests=answer.digests, outcome=b"")
        _write_note(store, key, Note(slip_key, slip, 0, ttl_ms), at_once=at_once)

    return over


def told_alone(message: Slip, outcome: bytes) -> Slip:
    """Return the slip of a call whose answer is its own alone: its run was cut off."""
    return message._replace(answered=True, released=True, digests=b"", outcome=outcome)


def _write_note(
    store: Store,
    key: str,
    note: Note,
    then: Callable[[], object] | None = None,
    *,
    at_once: bool,
) -> None:
    def write() -> None:
        store.note(key, note)
        if then is not None:
            then()

    if at_once:
        with suppress(StoreUnavailable):
            write()
            return
    what = f"the call with the key {key} was answered"
    heartbeat.later(write, what, note.ttl_ms / 1000)


def _has_outcome(ending: Ending) -> bool:
    return ending.state in _WITH_OUTCOME or (ending.state is RELEASED and bool(ending.outcome))
