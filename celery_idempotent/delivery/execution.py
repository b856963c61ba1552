"""Runs the body of a call whose key was granted, and hands on how it ended."""

from __future__ import annotations

from typing import Any

from celery_idempotent.core.options import RERUN, UNKNOWN
from celery_idempotent.core.record import State
from celery_idempotent.core.unfinished import FINISHED, is_awaitable
from celery_idempotent.core.verdicts import Lost
from celery_idempotent.delivery.attempt import Attempt
from celery_idempotent.delivery.compensation import compensate
from celery_idempotent.delivery.outcome import (
    SessionRefused,
    as_retried,
    begin_anew,
    ending_of,
    failed,
    lost,
    returned,
    unknown,
    what_to_do,
)
from celery_idempotent.delivery.task_checks import refuse_unfinished
from celery_idempotent.delivery.waiting import say_started
from celery_idempotent.errors import StoppedAtCheckpoint
from celery_idempotent.run.claim import ClaimAttempt
from celery_idempotent.run.claimant import Ending
from celery_idempotent.stores.base import NotCommitted

#: The tasks whose bodies this process runs under a claim, in whichever thread.
_under_way: dict[Attempt, Any] = {}


def is_under_way(task: Any) -> bool:
    """Whether a thread of this process runs the body of this task under a claim."""
    return task in _under_way.copy().values()


def execute(
    attempt: Attempt, claim: ClaimAttempt, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run the body and record its outcome; or go on with a compensation, and fail as the body did.

    Args:
        claim: undoes the claim, as long as the body has not begun.
    """
    delivery, run = attempt.delivery, attempt.run
    task = delivery.task
    if run.failed:
        claim.may_hold = False
        return compensate(attempt, run.failed)
    if type(task).track_started and run.lease.is_live:
        say_started(task, delivery.request)
    if delivery.environment.store.opens_with_body:
        try:
            run.transaction.open_with_body()
        except NotCommitted as exc:
            claim.may_hold = False
            return begin_anew(attempt, exc)
    _under_way[attempt] = task
    claim.may_hold = False
    try:
        if run.interruptions and delivery.options.reconcile is not None:
            result = _reconcile(attempt, args, kwargs)
        else:
            result = task.run(*args, **kwargs)
        if type(result) not in FINISHED:
            refuse_unfinished(task, result)
    except _NobodyKnows as exc:
        return unknown(
            attempt,
            exc,
            f"a run of {delivery.name} was cut off, and {exc}: {what_to_do(delivery)}",
        )
    except BaseException as exc:
        if run.is_elsewhere:
            raise  # a process that the body forked ends, and not the run
        if isinstance(exc, (StoppedAtCheckpoint, NotCommitted)):
            return begin_anew(attempt, exc)
        return _failed(attempt, as_retried(delivery, exc))
    finally:
        _under_way.pop(attempt, None)
    if run.is_elsewhere:
        return result
    if delivery.state.retry is not None:
        return _failed(attempt, delivery.state.retry)
    try:
        return returned(attempt, result)
    except SessionRefused as refused:
        return _failed(attempt, refused.why)


def _failed(attempt: Attempt, exc: BaseException) -> Any:
    """Compensate the finished steps of a body that failed for good; else fail as it did."""
    ending = ending_of(attempt.delivery, exc)
    final = ending.state in (State.FAILED, State.RELEASED) and bool(ending.outcome)
    if not final or not any(attempt.steps.to_compensate()):
        return failed(attempt, ending, exc)
    lease_ms = attempt.delivery.claimant.terms.lease_ms
    verdict = attempt.told.end(Ending(State.COMPENSATING, ending.outcome, lease_ms), exc)
    if isinstance(verdict, Lost):
        return lost(attempt, verdict, exc)
    return compensate(attempt, ending.outcome, exc)


def _reconcile(attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Ask whether the effect happened, and run the body only if it didn't."""
    task = attempt.delivery.task
    try:
        answer = task._setup().reconcile.answer(args, kwargs, task)
    except Exception as exc:
        raise _NobodyKnows(f"idempotency_reconcile failed ({exc!r})") from exc
    if is_awaitable(answer):
        raise _NobodyKnows("idempotency_reconcile is async, and was not run")
    if answer is UNKNOWN:
        raise _NobodyKnows("idempotency_reconcile couldn't tell")
    if answer is RERUN:
        return task.run(*args, **kwargs)
    return answer


class _NobodyKnows(Exception):
    """It can't be told whether the effect of a run that was cut off happened."""
