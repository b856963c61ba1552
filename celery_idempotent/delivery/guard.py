"""What the worker does with one delivery, each verdict of the store in Celery's terms: start here.

The way down: :func:`guard` claims the key, :func:`.execute` runs the body under a lease,
:mod:`.outcome` records its end and answers the caller.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any, Final, NoReturn

from celery.exceptions import Ignore
from celery.utils.log import get_logger

from celery_idempotent import observers
from celery_idempotent.core.message import WaitState
from celery_idempotent.core.record import FAILED, SUCCEEDED, Record, State
from celery_idempotent.core.verdicts import (
    NEVER_MS,
    Busy,
    ClaimVerdict,
    Mismatch,
    Replay,
    Unknown,
)
from celery_idempotent.delivery.attempt import Attempt
from celery_idempotent.delivery.callbacks import (
    AFTER_TRACE,
    after_trace,
    duplicate_of,
    hand_over,
    show_duplicate,
    silence,
)
from celery_idempotent.delivery.celery_events import Dropped
from celery_idempotent.delivery.delivery import Delivery
from celery_idempotent.delivery.execution import execute
from celery_idempotent.delivery.outcome import ending_of, leave_answer, leave_to_answer, what_to_do
from celery_idempotent.delivery.repair import prepare
from celery_idempotent.delivery.results import replay
from celery_idempotent.delivery.shadow import run_in_shadow
from celery_idempotent.delivery.waiting import (
    is_answered,
    say_revoked,
    say_started,
    say_waiting,
    wait,
    wait_as_copy,
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
from celery_idempotent.observers import outage_lines
from celery_idempotent.run.claim import ClaimAttempt
from celery_idempotent.run.run import Run
from celery_idempotent.run.transaction import run_without_claim

log = get_logger("celery_idempotent")

#: How long the store is asked again for a key while it does not answer.
_PATIENCE_S: Final = 1.0


def guard(delivery: Delivery, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Answer a delivery: run the body, replay an outcome, wait, or refuse.

    Raises:
        Retry: the message is requeued, and waits for its key.
        Ignore: nothing is stored for this delivery.
        IdempotencyError: the call is refused.
    """
    is_shadow = delivery.options.mode == "shadow"
    ignore_what_is_not_to_run(delivery.request, delivery.waits, undoes=not is_shadow)
    if is_shadow:
        return run_in_shadow(delivery, args, kwargs)
    began = time.perf_counter()
    claim = ClaimAttempt(delivery.claimant, delivery.telling.lost)
    try:
        try:
            if delivery.waits.resumes is not None:
                prepare(delivery, *delivery.waits.resumes)
            verdict = claim.claim(_PATIENCE_S)
            if isinstance(verdict, Busy) and _says_that_it_waits(delivery, verdict, began):
                # Meanwhile a copy of the message may have answered the call. Then RETRY was stored
                # over that answer, and this delivery stores the answer again.
                began = time.perf_counter()
                verdict = claim.claim(_PATIENCE_S)
        except (StoreUnavailable, RecordTooNew) as exc:
            claim.undo(exc)
            return _store_away(delivery, exc, args, kwargs)
        if observers.observers:
            delivery.telling.measure("claim", began)
        if not isinstance(verdict, Run):
            return _answer(delivery, verdict, began)
        if delivery.claimant.callbacks:
            after_trace().on_return.append(verdict.delivered)
        if verdict.replay is not None:
            return _replay(delivery, verdict.replay)
        attempt = Attempt(delivery, verdict)
        try:
            return execute(attempt, claim, args, kwargs)
        finally:
            if not attempt.told.is_over:
                attempt.told.let_go()
    except BaseException as exc:
        if claim.undo(exc) and isinstance(exc, Exception):
            leave_answer(delivery, exc)  # its body did not run, and its call fails all the same
        raise
    finally:
        after = AFTER_TRACE.get()
        comes_again = delivery.task.acks_late and not (delivery.eager or delivery.state.is_open)
        if after is not None and comes_again:
            after.answered = delivery


def ignore_what_is_not_to_run(request: Any, waits: WaitState, *, undoes: bool = False) -> None:
    """Ignore a message whose body is not to run here, whatever the store says, or is not asked.

    Args:
        undoes: whether steps are undone here. If not, the next call with the key undoes them, once
            ``idempotency_mode`` is ``"enforce"`` again.

    Raises:
        Ignore: it is another worker's copy, or was made only to undo the steps of a call.
    """
    if waits.to not in (None, request.hostname):
        raise Ignore("this copy is for another worker")
    if waits.compensates_only and not undoes:
        log.warning(
            "%s[%s] was to undo the steps of a call, and is ignored: idempotency_mode is not "
            "'enforce', in which the next call with the key undoes them",
            request.task,
            request.id,
        )
        raise Ignore("it was made to undo steps")


# --- verdicts ------------------------------------------------------------------------------------


def _answer(delivery: Delivery, verdict: ClaimVerdict, asked: float) -> Any:
    if isinstance(verdict, Replay):
        return _replay(delivery, verdict)
    stale = _is_stale(delivery, asked)
    if isinstance(verdict, Busy):
        return _busy(delivery, verdict, stale)
    if stale and isinstance(verdict, Mismatch | Unknown) and not delivery.eager:
        wait_as_copy(delivery, None)  # the lease under which this would be told may be over
    if isinstance(verdict, Mismatch):
        return _mismatch(delivery, verdict)
    if isinstance(verdict, Unknown):
        return _unknown(delivery, verdict)
    if _may_be_published_again(delivery):
        wait_as_copy(delivery, None)
    delivery.telling.tell("superseded")
    raise Ignore("superseded")


def _may_be_published_again(delivery: Delivery) -> bool:
    """Whether a message of an earlier attempt may be a second publication of its task id.

    The record does not tell which publication its run is of. As nothing says that this one is an
    old copy, it waits for the end, and is answered then: whatever hangs on it would be lost. It
    does not wait for an attempt that is overdue, whose message may be lost.
    """
    claimant, store = delivery.claimant, delivery.claimant.terms.store
    if delivery.redelivered or delivery.eager or claimant.compensates_only:
        return False
    try:
        record = store.get(claimant.key)
        if record is None or record.owner != claimant.owner:
            return False
        return store.now_ms() < record.until_ms + claimant.terms.lease_ms
    except StoreError:
        return True


def _is_stale(delivery: Delivery, asked: float) -> bool:
    """Whether this process stood still, so that a copy of the message may have answered."""
    return time.perf_counter() - asked > delivery.options.lease / 3


def _says_that_it_waits(delivery: Delivery, verdict: Busy, asked: float) -> bool:
    """Store RETRY for a call that has to wait, unless an earlier delivery has; whether it did."""
    waits = delivery.waits
    if delivery.eager:
        return False
    # Where it was delivered again it may have run since, and be STARTED.
    if waits.since_ms and not (delivery.redelivered or waits.redelivery):
        # Stored again, RETRY could be stored over what a copy has answered since.
        after_trace().stores_no_retry = True
        return False
    if verdict.mine or delivery.policy != "wait" or _is_stale(delivery, asked):
        return False
    refused = verdict.now_ms >= delivery.claimant.refused_from_ms
    return not refused and say_waiting(delivery, verdict.record)


def _replay(delivery: Delivery, verdict: Replay) -> Any:
    """Answer with the outcome of an earlier run."""
    claimant, record = delivery.claimant, verdict.record
    if verdict.noted:
        silence(delivery.request)
    delivery.telling.tell("answered again" if verdict.mine else "deduplicated", record)
    why = "its body did not run: the call has an outcome already"
    delivery.state.context = partial(delivery.context_of, why=why, replayed=True)
    if not verdict.mine:
        show_duplicate(delivery, record)
    kept = record.state in (SUCCEEDED, FAILED)
    if not verdict.mine and kept:
        # Copies are answered from the record, or from the slip that the claim left. What is left to
        # write down is that this message's callbacks have gone out.
        if claimant.callbacks:
            leave_answer(delivery, in_record=True)
    elif not verdict.mine or (verdict.from_slip and claimant.callbacks):
        leave_answer(delivery, outcome=record.outcome)
    return hand_over(delivery, replay(delivery.task.backend, record.outcome, delivery.name))


def _busy(delivery: Delivery, verdict: Busy, stale: bool) -> NoReturn:
    """Wait for the run that has the key, or refuse, as ``idempotency_on_running`` says.

    Args:
        stale: whether the verdict is so old that it may not hold any more.
    """
    record, options = verdict.record, delivery.options
    if delivery.eager:
        delivery.telling.tell("refused", record)
        raise IdempotencyInProgress(
            f"{delivery.name} is being run by task {record.owner_id}, and an eager call can't wait"
        )
    left = (record.until_ms - verdict.now_ms) / 1000
    if left <= 0 and record.state in (State.RUNNING, State.COMPENSATING):
        left = _be_patient(delivery, verdict.now_ms)
    refused = verdict.now_ms >= delivery.claimant.refused_from_ms
    if verdict.mine or (stale and (refused or is_answered(delivery.task, delivery.request))):
        wait_as_copy(delivery, left)
    policy = delivery.policy
    if policy == "raise":
        delivery.telling.tell("refused", record)
        _refuse(delivery, f"is being run by task {record.owner_id}")
    if policy == "drop":
        _drop(delivery, record)
    if refused and policy == "wait":
        waited = (verdict.now_ms - (delivery.waits.since_ms or verdict.now_ms)) / 1000
        delivery.telling.tell("refused", record, waited=waited)
        _refuse(
            delivery,
            f"is still being run by task {record.owner_id} after "
            f"{options.wait_timeout:g} s (idempotency_wait_timeout)",
        )
    until = left + (options.lease if record.state is State.RETRYING else 0)
    wait(delivery, record, now_ms=verdict.now_ms, until=until)


def _be_patient(delivery: Delivery, now_ms: int) -> float:
    """Leave the runs that lived through an outage time to renew; in seconds."""
    waits = delivery.waits
    if not now_ms < waits.patient_until_ms < NEVER_MS:
        until_ms = now_ms + delivery.claimant.terms.lease_ms
        delivery.waits = replace(waits, patient_until_ms=until_ms)
    return (delivery.waits.patient_until_ms - now_ms) / 1000


def _drop(delivery: Delivery, record: Record) -> None:
    """End a call as revoked, with its reason; where that can't be stored, it has to wait instead.

    Raises:
        Ignore: the call has ended as revoked.
    """
    reason = f"dropped: {delivery.name} is being run by task {record.owner_id}"
    if not say_revoked(delivery.task, delivery.request, reason):
        leave_answer(delivery, told=False)
        return
    delivery.telling.tell("dropped", record)
    leave_answer(delivery)
    raise Dropped(reason, *(duplicate_of(delivery, record) or ()))


def _refuse(delivery: Delivery, why: str) -> NoReturn:
    _fail(delivery, IdempotencyInProgress(f"{delivery.name} {why}: this call was not run"))


def _mismatch(delivery: Delivery, verdict: Mismatch) -> NoReturn:
    request, record = delivery.request, verdict.record
    delivery.telling.tell("mismatch", record)
    hint = ""
    if request.group or request.chord:
        hint = (
            "; a key on a group or chord reaches every member: set it on the members, "
            "task.s(...).set(idempotency_key=...)"
        )
    text = (
        f"the key {delivery.name} was used before, by task {record.owner_id}, for a "
        f"call of {delivery.task.name} with other arguments: this call was not run{hint}"
    )
    _fail(delivery, IdempotencyKeyMismatch(text))


def _unknown(delivery: Delivery, verdict: Unknown) -> NoReturn:
    record = verdict.record
    delivery.telling.tell("unknown", record, interruptions=record.interruptions)
    if verdict.noted:
        silence(delivery.request)
    or_stuck = ", or its finished steps could not be undone" if record.has_steps else ""
    text = (
        f"a run of {delivery.name} (task {record.owner_id}) was cut off{or_stuck}, and nobody "
        f"knows what it did: {what_to_do(delivery)}"
    )
    _fail(delivery, OutcomeUnknown(text))


def _fail(delivery: Delivery, error: IdempotencyError) -> NoReturn:
    """Fail a call that is not run; its copies fail with the same error."""
    leave_answer(delivery, error)
    raise error


# --- the store is away ---------------------------------------------------------------------------


def _store_away(
    delivery: Delivery, exc: StoreError, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Wait, fail or run unprotected, as ``idempotency_on_store_error`` says."""
    task, request = delivery.task, delivery.request
    policy = delivery.options.on_store_error
    if policy == "run" and isinstance(exc, RecordTooNew):
        policy = "retry"  # there is a record: the body may have run already
    if delivery.eager and policy == "retry":
        policy = "raise"
    copy = (delivery.redelivered or delivery.waits.redelivery) and not delivery.eager
    # The store can't say whether the call has its answer, but the result backend may.
    answered = not delivery.eager and is_answered(task, request)
    if answered or (policy == "raise" and copy):
        policy = "retry"  # its own run may be alive, and a failure be stored over its end
    action = "wait" if policy == "retry" else policy
    delivery.telling.tell("store away", reason=str(exc), action=action)
    if policy == "raise":
        leave_answer(delivery, exc, at_once=False)
        raise exc
    if policy == "run":
        log.error("%s runs unprotected, as idempotency_on_store_error says: %s", delivery.name, exc)
        say_started(task, request)
        delivery.state.context = partial(delivery.context_of, why="the store is away")
        return _run_open(delivery, args, kwargs)
    end = outage_lines.turn()
    if end is not None:
        log.warning("%s waits, its body was not run: %s%s", delivery.name, exc, end)
    if copy or answered:
        wait_as_copy(delivery, None, outage=True)
    return wait(delivery, None)


def _run_open(delivery: Delivery, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the body without a claim.

    If a copy has answered the call by then, that answer stays. Otherwise the body's own end is the
    answer: the store is told so as soon as it is back, and no leftover copy runs. The outcome is
    not stored, since no other call may get the outcome of a run that was not accepted.
    """
    task, request = delivery.task, delivery.request
    delivery.state.is_open = True

    def give_way() -> None:
        if not delivery.eager and is_answered(task, request):
            # The store may have forgotten that by now, and would run what is put back.
            leave_answer(delivery, at_once=False, notes=False)
            leave_to_answer(delivery, recorded=False)

    try:
        result = run_without_claim(task.run, *args, **kwargs)
    except Exception as exc:
        give_way()
        ending = ending_of(delivery, exc)
        if ending.state in (State.FAILED, State.RELEASED) and ending.answers:
            leave_answer(delivery, at_once=False)
        raise
    give_way()
    leave_answer(delivery, at_once=False)
    return result
