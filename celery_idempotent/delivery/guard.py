"""What the worker does with one delivery: each verdict of the store, in Celery's terms."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, NoReturn

from celery.exceptions import Ignore, Retry
from celery.utils.log import get_logger

from celery_idempotent import observers, signals
from celery_idempotent.core.keys import CallKey
from celery_idempotent.core.message import WaitState
from celery_idempotent.core.record import Owner, Record, State
from celery_idempotent.core.transitions import (
    NEVER_MS,
    Busy,
    ClaimVerdict,
    Mismatch,
    Replay,
    Unknown,
)
from celery_idempotent.delivery import callbacks
from celery_idempotent.delivery.celery_events import Duplicate, were_sent
from celery_idempotent.delivery.delivery import (
    awaiting,
    identity_of,
    is_redelivered,
    store_call,
    trace_of,
)
from celery_idempotent.delivery.execution import Execution
from celery_idempotent.delivery.origin import origin_of
from celery_idempotent.delivery.results import encode_failure, replay
from celery_idempotent.delivery.shadow import run_in_shadow
from celery_idempotent.delivery.waiting import (
    is_answered,
    pause_of,
    put_back,
    say_retry,
    say_started,
)
from celery_idempotent.errors import (
    IdempotencyError,
    IdempotencyInProgress,
    IdempotencyKeyMismatch,
    OutcomeUnknown,
    RecordTooNew,
    StoreError,
    StoreUnavailable,
)
from celery_idempotent.run.claim import ClaimAttempt
from celery_idempotent.run.claimant import Claimant
from celery_idempotent.run.context import RunContext
from celery_idempotent.run.journal import UnsentEntry
from celery_idempotent.run.lease import Lease
from celery_idempotent.run.run import Run, write_slip
from celery_idempotent.run.steps import Steps
from celery_idempotent.run.transaction import run_without_claim
from celery_idempotent.settings import Environment, TaskSetup

__all__ = ["Delivery"]

log = get_logger("celery_idempotent")

_PATIENCE_S = 1.0


class Delivery:
    """One delivery of a message whose call has a key.

    Args:
        task: the task instance; its ``run`` is the body.
        request: Celery's request of this delivery.
        call_key: the key of the call.
        waits: how the message has waited so far.
    """

    def __init__(
        self,
        task: Any,
        setup: TaskSetup,
        environment: Environment,
        request: Any,
        call_key: CallKey,
        waits: WaitState,
    ) -> None:
        self.task = task
        self.options = setup.options
        self.environment = environment
        self.request = request
        self.call_key = call_key
        self.waits = waits
        self.eager = bool(request.is_eager)
        self.call = store_call(
            task,
            setup,
            environment,
            request,
            call_key,
            waits,
        )

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer the delivery: run the body, replay an outcome, wait, or refuse."""
        if self.waits.to not in (None, self.request.hostname):
            raise Ignore("this copy is for another worker")
        if self.options.mode == "shadow":
            return run_without_claim(run_in_shadow, self, args, kwargs)
        awaited = self.waits.awaited
        call = self.call if awaited is None else awaiting(self.call, awaited)
        began = time.perf_counter()
        attempt = ClaimAttempt(call, self._on_lost)
        try:
            try:
                verdict = attempt.claim(_PATIENCE_S)
            except (StoreUnavailable, RecordTooNew) as exc:
                attempt.undo(exc)
                return self._store_away(exc, args, kwargs)
            if observers.observers:
                self.observe("claim", seconds=time.perf_counter() - began)
            if not isinstance(verdict, Run):
                return self._answer(verdict)
            if self.call.callbacks:
                callbacks.announce(verdict)
            if verdict.replay is not None:
                return self._replay(verdict.replay)
            return self._execute(Execution(self, verdict, attempt), args, kwargs)
        except BaseException as exc:
            if attempt.undo(exc) and isinstance(exc, Exception):
                self.leave_answer(exc)  # its body did not run, and its call fails all the same
            raise

    @staticmethod
    def _execute(execution: Execution, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return execution(args, kwargs)
        finally:
            if not execution.told:
                execution.let_go()

    def leave_answer(
        self, exc: BaseException | None = None, outcome: bytes = b"", *, at_once: bool = True
    ) -> None:
        """Have a slip written once the tracer has returned: this call is answered.

        Args:
            exc: what it fails with; ``outcome``: the same, packed.
            at_once: not in the background.
        """
        if not self.call.slip_key:
            return
        if exc is not None:
            outcome = encode_failure(self.task.backend, exc, self.options.max_result_size)
        callbacks.announce(Answer(self.call, outcome, at_once=at_once))

    def say_started(self, run: Run) -> None:
        """Store STARTED, where it is tracked and the run has still its lease."""
        lease = run.lease
        if time.monotonic() - lease.renewed < lease.lease_ms / 1000:
            say_started(self.task, self.request)

    @property
    def redelivered(self) -> bool:
        """Whether the broker says that it delivers the message again."""
        return is_redelivered(self.request)

    def show(self, run: Run | None = None, steps: Steps | None = None, why: str = "") -> None:
        """Let the body ask for ``self.idempotency``; it is made when it does.

        ``why`` says why there is no run.
        """
        # Nothing in it leads back to the request: each delivery would be a cycle, and wait for the
        # garbage collector.
        made = partial(_context, self.call_key, self.call, self.request.id, run, steps, why)
        self.request._idempotency = made

    # --- verdicts --------------------------------------------------------------------------------

    def _answer(self, verdict: ClaimVerdict) -> Any:
        if isinstance(verdict, Replay):
            return self._replay(verdict)
        if isinstance(verdict, Busy):
            return self._busy(verdict)
        if isinstance(verdict, Mismatch):
            self.tell("mismatch", verdict.record)
            self.emit(signals.key_mismatch, signals.Event, verdict.record)
            hint = ""
            if self.request.group or self.request.chord:
                hint = (
                    "; a key on a group or chord reaches every member: set it on the members, "
                    "task.s(...).set(idempotency_key=...)"
                )
            mismatch = IdempotencyKeyMismatch(
                f"the key {self.name} was used before, by task {verdict.record.owner_id}, for a "
                f"call of {self.task.name} with other arguments: this call was not run{hint}"
            )
            self.leave_answer(mismatch)
            raise mismatch
        if isinstance(verdict, Unknown):
            self.tell("unknown", verdict.record, interruptions=verdict.record.interruptions)
            self.emit_interrupted(verdict.record, unknown=True)
            if verdict.noted:
                callbacks.silence(self.request)
            unknown = OutcomeUnknown(
                f"a run of {self.name} (task {verdict.record.owner_id}) was cut off, or could not "
                "be undone, and nobody knows what it did: look there, then resolve the key, or "
                "forget it to run it again"
            )
            self.leave_answer(unknown)
            raise unknown
        self.tell("superseded")
        raise Ignore("superseded")

    def _replay(self, verdict: Replay) -> Any:
        if verdict.noted:
            callbacks.silence(self.request)
        self.tell("answered again" if verdict.mine else "deduplicated", verdict.record)
        if not verdict.mine:
            self.emit(signals.task_deduplicated, signals.Event, verdict.record)
            self.show_duplicate(verdict.record)
        kept = verdict.record.state in (State.SUCCEEDED, State.FAILED)
        terms = self.call.terms
        if not verdict.mine and kept and terms.ttl_ms >= terms.horizon_ms:
            # The record answers each copy; only what hangs on this one is to be written down.
            if self.call.callbacks:
                callbacks.announce(Answer(self.call, b"", in_record=True))
        elif not verdict.mine or (verdict.from_slip and self.call.callbacks):
            self.leave_answer(outcome=verdict.record.outcome)
        result = replay(self.task.backend, verdict.record.outcome, self.name)
        return self.hand_over(result)

    def show_duplicate(self, record: Record, *, shadow: bool = False) -> None:
        """Have the worker's events say whose duplicate it is, once it has succeeded."""
        # An eager call is inside another's tracer.
        if self.environment.events and not self.eager and were_sent(self.request):
            original = record.owner_id or ""
            callbacks.announce(Duplicate(self.call_key.readable, original, self.call.key, shadow))

    def hand_over(self, result: Any) -> Any:
        """Give a result to the tracer, its link and chain sent."""
        if self.call.callbacks:
            callbacks.send_tail(self.task, self.request, result)
        return result

    def _busy(self, verdict: Busy) -> NoReturn:
        record = verdict.record
        if self.eager:
            raise IdempotencyInProgress(
                f"{self.name} is being run by task {record.owner_id}, and an eager call can't wait"
            )
        left = (record.until_ms - verdict.now_ms) / 1000
        if left <= 0 and record.state in (State.RUNNING, State.COMPENSATING):
            left = self._be_patient(verdict.now_ms)
        if verdict.mine:
            self.wait_as_copy(left)
        first = not (self.call.retries or self.redelivered or self.waits.count)
        policy = self.options.on_running if first else "wait"
        if policy == "raise":
            self.tell("refused", record)
            self._refuse(f"is being run by task {record.owner_id}")
        if policy == "drop" and not self._is_awaited():
            self.tell("dropped", record)
            self.leave_answer()
            raise Ignore("dropped")
        since_ms = self.waits.since_ms or verdict.now_ms
        if verdict.now_ms - since_ms >= self.options.wait_timeout * 1000:
            self.tell("refused", record, waited=(verdict.now_ms - since_ms) / 1000)
            self._refuse(
                f"is still being run by task {record.owner_id} after "
                f"{self.options.wait_timeout:g} s (idempotency_wait_timeout)"
            )
        until = left + (self.options.lease if record.state is State.RETRYING else 0)
        self.wait(record, since_ms, until)

    def _be_patient(self, now_ms: int) -> float:
        """Leave the runs that lived through an outage time to renew; in seconds."""
        if not now_ms < self.waits.patient_until_ms < NEVER_MS:
            until_ms = now_ms + self.call.terms.lease_ms
            self.waits = replace(self.waits, patient_until_ms=until_ms)
        return (self.waits.patient_until_ms - now_ms) / 1000

    def _refuse(self, why: str) -> NoReturn:
        refused = IdempotencyInProgress(f"{self.name} {why}: this call was not run")
        self.leave_answer(refused)
        raise refused

    def _is_awaited(self) -> bool:
        request = self.request
        return bool(request.chord or request.chain or request.callbacks)

    def _store_away(self, exc: StoreError, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        policy = self.options.on_store_error
        if policy == "run" and isinstance(exc, RecordTooNew):
            policy = "retry"  # there is a record: running could be the second time
        if self.eager and policy == "retry":
            policy = "raise"
        copy = (self.redelivered or self.waits.redelivery) and not self.eager
        if policy == "raise" and copy:
            policy = "retry"  # its own run may be alive: a failure would be told over it
        action = "wait" if policy == "retry" else policy
        self.tell("store away", action=action)
        event = signals.StoreUnavailableEvent
        self.emit(signals.store_unavailable, event, None, str(exc), action)
        if policy == "raise":
            self.leave_answer(exc, at_once=False)
            raise exc
        if policy == "run":
            log.error("%s runs unprotected, as idempotency_on_store_error says: %s", self.name, exc)
            say_started(self.task, self.request)
            self.show(why="the store is away")
            return run_without_claim(self.task.run, *args, **kwargs)
        log.warning("%s waits, its body was not run: %s", self.name, exc)
        # The store can't say it, but the result backend may: the call has its answer.
        if copy or is_answered(self.task, self.request):
            self.wait_as_copy(None, outage=True)
        return self.wait(None, self.waits.since_ms, None, outage=True)

    # --- waiting ---------------------------------------------------------------------------------

    def wait(
        self,
        record: Record | None,
        since_ms: int,
        until: float | None,
        delay: float | None = None,
        *,
        outage: bool = False,
    ) -> NoReturn:
        """Put the message back; the caller's state becomes RETRY."""
        owner = None if record is None else Owner.unpack(record.owner)
        awaited = self.waits.awaited if owner is None else (owner.task_id, owner.nesting)
        busy = self._what_it_waits_for(record)
        say_retry(self.task, self.request, busy)
        delay, signature = self._put_back(
            self._again(since_ms=since_ms, awaited=awaited, outage=outage), until, delay
        )
        raise Retry(exc=busy, when=delay, sig=signature)

    def wait_as_copy(self, until: float | None, *, outage: bool = False) -> NoReturn:
        """Put back a copy of a message whose own run may be alive, and touch nobody's state."""
        self._put_back(self._again(redelivery=True, outage=outage), until)
        raise Ignore("a copy of this message is being run")

    def _again(self, *, outage: bool, **changes: Any) -> WaitState:
        message = self.call.message
        return self.waits.again(
            patient_until_ms=NEVER_MS if outage else self.waits.patient_until_ms,
            callbacks=message.digests,
            deaths=message.deaths,
            **changes,
        )

    def _put_back(
        self, waits: WaitState, until: float | None, delay: float | None = None
    ) -> tuple[float, Any]:
        natively = self.environment.whole_seconds
        origin = origin_of(self.task.app, self.request.delivery_info, natively)
        if waits.redelivery and origin.is_fanned_out:
            delay = until  # nobody waits for it: it is there for the case that the run dies
        delay = pause_of(self.environment, self.options.ttl, self.waits.count, until, delay)
        signature = put_back(self.task, self.request, self.call_key, waits, delay, origin)
        original = waits.awaited[0] if waits.awaited else None
        self.tell("waiting", original=original, delay=delay, redelivery=waits.redelivery)
        self.emit(
            signals.task_waiting,
            signals.WaitingEvent,
            self.request.id if waits.redelivery else original,
            delay,
            waits.redelivery,
        )
        return delay, signature

    def _what_it_waits_for(self, record: Record | None) -> IdempotencyError:
        if record is None:
            return StoreUnavailable(f"the store can't answer for {self.name} now, waiting")
        return IdempotencyInProgress(f"{self.name} is busy, waiting")

    def _on_lost(self, lease: Lease) -> None:
        if lease.record.is_done:
            return  # an outcome's delivery lease: the outcome was recorded
        self.tell("lost", lease.lost, token=lease.record.token)
        token = lease.record.token
        self.emit(signals.claim_lost, signals.ClaimLostEvent, lease.lost, token)

    # --- words -----------------------------------------------------------------------------------

    def tell(self, what: str, held: Record | None = None, **more: Any) -> None:
        """Say what becomes of this delivery; ``held``: whose the key is."""
        journal = self.environment.journal
        heard = observers.is_heard(what)
        if held is not None and (heard or journal.most):
            more["original"] = held.owner_id
        if journal.most:
            journal.put(self.event(what, time.monotonic(), more))
        if heard:
            trace = None if held is None else trace_of(held)
            self.observe(what, more.pop("original", None), trace=trace, **more)

    def event(self, what: str, at: float, more: Mapping[str, Any]) -> UnsentEntry:
        """Give what the journal says of this delivery.

        Args:
            at: when that happened, on this process's monotonic clock.
        """
        told = {
            "label": self.call_key.label,
            "node": self.request.hostname,
            "waits": self.waits.count,
            **more,
        }
        return UnsentEntry(at, what, self.call.key, self.task.name, self.request.id, told)

    def observe(self, what: str, original: str | None = None, **details: Any) -> None:
        """Tell metrics, traces and the log."""
        key = self.call_key.readable
        observers.tell(what, self.task.name, key, self.request.id, original, **details)

    @property
    def name(self) -> str:
        """The key, for messages."""
        return f"{self.call_key.namespace}:{self.call_key.readable}"

    def emit(
        self,
        signal: Any,
        make: type[signals.Event],
        held: Record | str | None,
        *fields: Any,
        shadow: bool = False,
    ) -> None:
        """Send a signal of this delivery, whose event is made only where somebody listens.

        Args:
            held: the record that another has, or its task id.
        """
        if signal.receivers:
            original = held.owner_id if isinstance(held, Record) else held
            key = self.call_key.readable
            event = make(self.task.name, key, self.request.id, original, *fields, shadow=shadow)
            signal.send(sender=self.task, event=event)

    def emit_interrupted(self, record: Record, *, unknown: bool) -> None:
        """Say that an earlier run was cut off."""
        event, count = signals.InterruptedEvent, record.interruptions
        self.emit(signals.task_interrupted, event, record, count, unknown)


def _context(
    call_key: CallKey,
    call: Claimant,
    task_id: str,
    run: Run | None,
    steps: Steps | None,
    why: str,
) -> RunContext:
    return RunContext(
        key=call_key.key,
        identity=identity_of(call_key),
        owner_id=task_id,
        retries=call.retries,
        run=run,
        steps=steps,
        why=why,
        store=lambda: call.terms.store,
    )


class Answer(NamedTuple):
    """The final answer of a message that held no key: a duplicate's, or a refused one's."""

    call: Claimant
    #: What it is answered with, packed; empty where that is not kept.
    outcome: bytes
    #: Whether the record keeps it.
    in_record: bool = False
    at_once: bool = True

    def delivered(self, *, sent: bool) -> None:
        """Write it down; not ``sent``: what hangs on it is still to be sent, by the next copy."""
        call = self.call
        ignored = not self.outcome and not self.in_record
        if not (sent or ignored) and not call.callbacks:
            return
        slip = call.message._replace(
            answered=sent or ignored, succeeded=self.in_record, outcome=self.outcome
        )
        write_slip(call, slip, at_once=self.at_once)
