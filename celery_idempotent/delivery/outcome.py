"""What the end of a run means: for the record, and for the caller."""

from __future__ import annotations

from typing import Any, NoReturn

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from celery.utils.log import get_logger

from celery_idempotent.core.record import State
from celery_idempotent.core.verdicts import Lost, Recorded
from celery_idempotent.delivery.attempt import Attempt
from celery_idempotent.delivery.callbacks import after_trace, hand_over
from celery_idempotent.delivery.delivery import Delivery
from celery_idempotent.delivery.results import encode_failure, encode_result, replay
from celery_idempotent.delivery.waiting import is_answered, say_retry, wait, wait_as_copy
from celery_idempotent.due import ms_until
from celery_idempotent.errors import (
    ConfigurationError,
    IdempotencyInProgress,
    OutcomeUnknown,
    StoppedAtCheckpoint,
    StoreUnavailable,
)
from celery_idempotent.run.claimant import Ending
from celery_idempotent.run.run import write_slip
from celery_idempotent.stores.base import NotCommitted

log = get_logger("celery_idempotent")


# --- what a body did, for its record -------------------------------------------------------------


def ending_of(delivery: Delivery, exc: BaseException) -> Ending:
    """Return what a body that raised ``exc`` means for its record."""
    if isinstance(exc, Retry):
        return Ending(State.RETRYING, b"", ms_until(exc.when) or 0, _retries_of(exc, delivery))
    if isinstance(exc, (Ignore, Reject)):
        return Ending(State.RELEASED, answers=not getattr(exc, "requeue", False))
    options = delivery.options
    left_unknown = options.on_interrupted == "unknown" and isinstance(exc, SoftTimeLimitExceeded)
    if not isinstance(exc, Exception) or (left_unknown and delivery.state.retry is not None):
        return Ending(State.RUNNING)  # a retry that is published is the call's next attempt
    outcome = encode_failure(delivery.task.backend, exc, options.max_result_size)
    return Ending(State.RUNNING if left_unknown else final_state(delivery, exc), outcome)


def as_retried(delivery: Delivery, exc: BaseException) -> BaseException:
    """Return what ends an attempt that raised ``exc``: its retry, if it has published one.

    The call gets one answer, and that is the next attempt's. This does not hold where the process
    ends, or where the body leaves with an ``Ignore`` or ``Reject`` of its own.
    """
    retry = delivery.state.retry
    if retry is None or isinstance(exc, (Retry, Ignore, Reject, ConfigurationError)):
        return exc
    if ending_of(delivery, exc).state is State.RUNNING:
        return exc  # it was cut off
    again: BaseException = Retry(exc=exc, when=retry.when, sig=retry.sig)
    again.__cause__, again.__traceback__ = exc, exc.__traceback__
    return again


def final_state(delivery: Delivery, exc: BaseException) -> State:
    """Return the state of a record whose call failed: FAILED keeps the failure for duplicates."""
    if isinstance(exc, ConfigurationError):
        return State.RELEASED  # it says nothing of the call
    stored = delivery.options.store_failures
    if stored is True or (isinstance(stored, tuple) and isinstance(exc, stored)):
        return State.FAILED
    return State.RELEASED


# --- ... and for its caller ----------------------------------------------------------------------


class SessionRefused(Exception):
    """The database refused what a body wrote in its session, so that its run failed."""

    def __init__(self, why: Exception) -> None:
        super().__init__(str(why))
        self.why = why


def returned(attempt: Attempt, result: Any) -> Any:
    """Record what a body returned, and answer its caller.

    Raises:
        SessionRefused: nothing is recorded yet.
    """
    delivery, run = attempt.delivery, attempt.run
    if run.steps:
        attempt.steps.tell_unasked()

    def record() -> Recorded | Lost | None:
        packed = encode_result(delivery.task.backend, result, delivery.options.max_result_size)
        return attempt.told.end(Ending(State.SUCCEEDED, packed))

    try:
        verdict = record()
    except NotCommitted as exc:
        return begin_anew(attempt, exc)
    except Exception as exc:
        if run.transaction.undone or not isinstance(exc, SoftTimeLimitExceeded):
            raise SessionRefused(exc) from exc
        verdict = record()  # it came once, and too late: the body is done
    if isinstance(verdict, Lost):
        return lost(attempt, verdict, None, result)
    if verdict is None or verdict.answered:
        leave_if_answered(attempt, verdict)
    return hand_over(delivery, result) if delivery.claimant.callbacks else result


def failed(attempt: Attempt, ending: Ending, exc: BaseException) -> Any:
    """Record the end of a body that raised, and fail as it did."""
    if isinstance(exc, Retry) and not attempt.delivery.eager:
        if attempt.run.lease.is_unbroken:
            # Before the key is given up: from then on its next attempt may be answered.
            say_retry(attempt.delivery.task, attempt.delivery.request, exc.exc, exc)
        else:
            # A copy may have answered the call, or be about to: nothing is stored over that.
            after_trace().stores_no_retry = True
    verdict = attempt.told.end(ending, exc)
    if isinstance(verdict, Lost):
        return lost(attempt, verdict, exc)
    if isinstance(exc, Exception):
        leave_if_answered(attempt, verdict)
    doubtful = verdict is None and attempt.run.lease.is_doubtful
    if doubtful and isinstance(exc, Retry) and not attempt.delivery.eager:
        # The next attempt may have answered, and RETRY be stored over that: a copy repeats it.
        wait_as_copy(attempt.delivery, None, outage=True)
    raise exc


def unknown(attempt: Attempt, why: BaseException, text: str) -> Any:
    """Leave the outcome to a person, and fail with ``text``."""
    delivery = attempt.delivery
    verdict = attempt.told.end(Ending(State.UNKNOWN))
    if isinstance(verdict, Lost):
        return lost(attempt, verdict, why)
    leave_if_answered(attempt, verdict)
    unknown = OutcomeUnknown(text)
    leave_answer(delivery, unknown)
    raise unknown from why


def what_to_do(delivery: Delivery) -> str:
    """Say what a person has to do about a key whose outcome is unknown."""
    return (
        "look in the log of its worker and at the service that it called, find out whether the "
        f"effect happened, then settle the key {delivery.telling.readable} with `celery "
        "idempotency resolve` (--rerun runs it again): docs/unknown-outcomes.rst"
    )


def begin_anew(attempt: Attempt, exc: NotCommitted | StoppedAtCheckpoint) -> Any:
    """Put the message back: its body wrote nothing, or stopped at a checkpoint."""
    delivery = attempt.delivery
    log.warning("%s has to begin anew: %s", delivery.name, exc)
    if getattr(exc, "sure", True):
        attempt.told.end(Ending(State.RELEASED, answers=False), exc)
    if delivery.eager:
        # Not the same error: the body that made this eager call would take it for its own.
        raise StoreUnavailable(str(exc)) from exc
    wait_as_copy(delivery, None)


def lost(attempt: Attempt, verdict: Lost, exc: BaseException | None, result: Any = None) -> Any:
    """Leave a run whose key is another's now: its caller gets what holds, not what it made.

    Args:
        exc: what the body raised; ``result``: what it returned.
    """
    delivery, record = attempt.delivery, verdict.record
    if exc is not None and not isinstance(exc, Exception):
        raise exc  # its process ends
    log.warning(
        "%s: task %s lost its key %s to %s: its outcome is refused",
        delivery.task.name,
        delivery.request.id,
        delivery.name,
        record.owner_id or "nobody (it was forgotten)",
    )
    if record.owner == delivery.claimant.owner and not delivery.eager:
        if isinstance(exc, Retry) and not (record.is_done or verdict.answered):
            raise Ignore("a copy of this message took over")  # its successor is out already
        # Where the call is answered, RETRY may have been stored over that: the copy repeats it.
        wait_as_copy(delivery, None)
    # A renewal told it, or a copy is about to answer: then the result backend may know more.
    if not delivery.eager and (verdict.answered or is_answered(delivery.task, delivery.request)):
        leave_to_answer(delivery)
    if attempt.run.is_for_another:
        return wait(delivery, record)
    in_turn = delivery.claimant.terms.in_turn
    if in_turn or (record.state is State.RELEASED and not record.outcome):
        if exc is None and attempt.run.transaction.undone and not delivery.eager:
            wait_as_copy(delivery, None)  # forgotten, and nothing of it happened: it runs again
        # No record keeps what its caller gets: without a slip, a copy of its message would run.
        if exc is None:
            most = delivery.options.max_result_size
            packed = encode_result(delivery.task.backend, result, most)
            ending = Ending(State.SUCCEEDED, packed)
        else:
            ending = ending_of(delivery, exc)
        if ending.state is not State.RETRYING and ending.answers:
            leave_answer(delivery, outcome=ending.outcome, token=record.token)
        if exc is not None:
            raise exc
        return hand_over(delivery, result)
    if isinstance(exc, Retry):
        raise Ignore("another call took over")
    if record.is_done and not delivery.claimant.callbacks:
        terms = delivery.claimant.terms
        if record.state is State.RELEASED or terms.ttl_ms < terms.horizon_ms:
            # The record answers its own call only, or not for long: without a slip, copies of this
            # message would run.
            leave_answer(delivery, outcome=record.outcome)
        return replay(delivery.task.backend, record.outcome, delivery.name)
    # With callbacks, the slip has to be read first: a copy of the message may have sent them.
    if delivery.eager:
        raise IdempotencyInProgress(f"{delivery.name} was taken over by {record.owner_id}")
    return wait(delivery, record)


def leave_answer(
    delivery: Delivery,
    exc: BaseException | None = None,
    outcome: bytes = b"",
    *,
    in_record: bool = False,
    told: bool = True,
    at_once: bool = True,
    notes: bool = True,
    token: int = 0,
) -> None:
    """Write a slip once the tracer has returned: this call is answered, without a run of its own.

    Args:
        exc: what it fails with; ``outcome``: its answer, packed; empty where that is not kept.
        in_record: the record keeps the answer.
        told: whether it gets that answer; if not, only the claim's lease on telling it ends.
        at_once: not in the background.
        notes: whether its callbacks have gone out, too.
        token: of the record that it is newer than: the key may have been forgotten before.
    """
    claimant = delivery.claimant
    message = claimant.message if notes else claimant.message._replace(digests=b"")
    if not claimant.slip_key:
        return
    if exc is not None:
        outcome = encode_failure(delivery.task.backend, exc, delivery.options.max_result_size)
    ignored = told and not outcome and not in_record

    def write(sent: bool) -> None:
        # If they were not sent, the next copy sends what hangs on the call.
        slip = message._replace(
            answered=sent or ignored, succeeded=in_record, outcome=outcome, token=token
        )
        write_slip(claimant, slip, at_once=at_once)

    after_trace().on_return.append(write)


def leave_if_answered(attempt: Attempt, verdict: Recorded | None) -> None:
    """Leave a run whose end is recorded, where a copy of its message has answered its call.

    Args:
        verdict: ``None``: the store can't say it now, but the result backend may.
    """
    delivery = attempt.delivery
    if is_answered(delivery.task, delivery.request) if verdict is None else verdict.answered:
        leave_to_answer(delivery)


def leave_to_answer(delivery: Delivery, *, recorded: bool = True) -> NoReturn:
    """Leave a run whose call a copy of its message has answered: that answer stands.

    Args:
        recorded: whether the run's own end is in the store: not of a body that held no claim.
    """
    log.warning(
        "%s: a copy of task %s has answered its call meanwhile: its own end is %s, and "
        "the answer stays",
        delivery.name,
        delivery.request.id,
        "recorded" if recorded else "told nobody",
    )
    # Not only Ignore: the copy may be unable to send its callbacks, and share our delivery.
    wait_as_copy(delivery, None)


def _retries_of(exc: Retry, delivery: Delivery) -> int:
    """Return which attempt the next message is: a Retry that was made by hand may spend none."""
    coming = None if exc.sig is None else exc.sig.options.get("retries")
    return coming if isinstance(coming, int) and coming >= 0 else delivery.claimant.retries
