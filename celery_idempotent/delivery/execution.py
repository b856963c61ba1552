"""Runs the body of a call whose key was granted, and hands on how it ended."""

from __future__ import annotations

import time
from inspect import signature
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

from celery_idempotent.core.options import RERUN, UNKNOWN
from celery_idempotent.core.record import State
from celery_idempotent.core.unfinished import is_awaitable
from celery_idempotent.core.verdicts import Lost
from celery_idempotent.delivery.attempt import Attempt
from celery_idempotent.delivery.compensation import compensate
from celery_idempotent.delivery.delivery import Delivery
from celery_idempotent.delivery.outcome import (
    ending_of,
    failed,
    lost,
    not_committed,
    record_result,
    returned,
    unknown,
)
from celery_idempotent.delivery.task_checks import refuse_unfinished
from celery_idempotent.delivery.waiting import say_started
from celery_idempotent.run.claim import ClaimAttempt
from celery_idempotent.run.claimant import Ending
from celery_idempotent.run.run import Run
from celery_idempotent.stores.base import NotCommitted

__all__ = ["execute"]


def execute(
    attempt: Attempt, claim: ClaimAttempt, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run the body and record its outcome; or go on with a compensation, and fail as the body did.

    Args:
        claim: undoes the claim, as long as the body has not begun.
    """
    delivery, run = attempt.delivery, attempt.run
    task = delivery.task
    attempt.begin()
    if run.failed:
        claim.keep()
        return compensate(attempt, run.failed)
    _say_started(delivery, run)
    delivery.show(run, attempt.steps)
    try:
        if delivery.environment.store.opens_with_body:
            run.transaction.open_with_body()
    except NotCommitted as exc:
        claim.keep()
        return not_committed(attempt, exc)
    claim.keep()
    try:
        if run.interruptions and delivery.options.reconcile is not None:
            result = _reconcile(attempt, args, kwargs)
        else:
            result = task.run(*args, **kwargs)
        refuse_unfinished(task, result)
    except _NobodyKnows as exc:
        return unknown(
            attempt,
            exc,
            f"a run of {delivery.name} was cut off, and {exc}: look there, then resolve the "
            "key, or forget it to run it again",
        )
    except BaseException as exc:
        if run.is_elsewhere:
            raise  # a process that the body forked ends, and not the run
        return _failed(attempt, exc)
    if run.is_elsewhere:
        return result
    try:
        verdict = record_result(attempt, result)
    except NotCommitted as exc:
        return not_committed(attempt, exc)
    except Exception as exc:
        if run.transaction.undone or not isinstance(exc, SoftTimeLimitExceeded):
            return _failed(attempt, exc)  # the database refused what the body wrote
        verdict = record_result(attempt, result)  # it came once, and too late: the body is done
    return returned(attempt, verdict, result)


def _say_started(delivery: Delivery, run: Run) -> None:
    """Store STARTED, where it is tracked and the run has still its lease."""
    lease = run.lease
    if time.monotonic() - lease.renewed < lease.lease_ms / 1000:
        say_started(delivery.task, delivery.request)


def _failed(attempt: Attempt, exc: BaseException) -> Any:
    """Compensate the finished steps of a body that failed for good; else fail as it did."""
    ending = ending_of(attempt.delivery, exc)
    final = ending.state is State.FAILED or bool(ending.outcome)
    if not final or not any(attempt.steps.to_compensate()):
        return failed(attempt, ending, exc)
    lease_ms = attempt.delivery.claimant.terms.lease_ms
    verdict = attempt.told.end(Ending(State.COMPENSATING, ending.outcome, lease_ms), exc)
    if isinstance(verdict, Lost):
        return lost(attempt, verdict, exc)
    return compensate(attempt, ending.outcome, exc)


def _reconcile(attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Ask whether the effect happened, and run the body only if it didn't."""
    task, reconcile = attempt.delivery.task, attempt.delivery.options.reconcile
    assert reconcile is not None
    first = (task,) if next(iter(signature(reconcile).parameters), "") == "self" else ()
    try:
        answer = reconcile(*first, *args, **kwargs)
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
