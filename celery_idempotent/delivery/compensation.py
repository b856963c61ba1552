"""Undoes the finished steps of a body that failed for good, the last one first."""

from __future__ import annotations

from typing import Any, Final

from celery.canvas import maybe_signature
from celery.utils.log import get_logger

from celery_idempotent.core.record import State
from celery_idempotent.core.step import Step, StepState
from celery_idempotent.core.unfinished import is_awaitable
from celery_idempotent.core.verdicts import Lost
from celery_idempotent.delivery.attempt import Attempt
from celery_idempotent.delivery.callbacks import after_trace
from celery_idempotent.delivery.outcome import failed, final_state, leave_if_answered, lost, unknown
from celery_idempotent.delivery.results import replay
from celery_idempotent.delivery.waiting import say_waiting, wait
from celery_idempotent.errors import ClaimLost, ConfigurationError
from celery_idempotent.run.claimant import Ending

log = get_logger("celery_idempotent")

_FIRST_PAUSE_S: Final = 2.0


def compensate(attempt: Attempt, failure: bytes, exc: BaseException | None = None) -> Any:
    """Undo the finished steps in reverse, then fail as the body did.

    Args:
        failure: what the body failed with, packed; ``exc``: the same, where it failed just now.
    """
    delivery, run, stuck = attempt.delivery, attempt.run, []
    try:
        for name, step in attempt.steps.to_compensate():
            if attempt.steps.can_undo(name, step):
                _undo(attempt, name, step)
            else:
                stuck.append(name)  # the others are undone all the same
    except ClaimLost as problem:
        if run.lease.lost is None:
            raise
        return lost(attempt, Lost(run.lease.lost), exc or problem)
    except BaseException as problem:
        goes_on = isinstance(problem, Exception) and not delivery.eager
        if goes_on and run.lease.is_unbroken:
            say_waiting(delivery, run.lease.record)  # as long as no other delivery can answer
        elif goes_on:
            after_trace().stores_no_retry = True
        # Its lease ends at once; the next delivery goes on where this one stopped.
        verdict = attempt.told.end(Ending(State.COMPENSATING, failure))
        if not goes_on:
            raise
        if isinstance(verdict, Lost):
            return lost(attempt, verdict, exc or problem)
        leave_if_answered(attempt, verdict)
        log.exception("%s: a compensation failed, it is tried again", delivery.name)
        pause = _FIRST_PAUSE_S * 4.0 ** min(run.interruptions, 5)
        return wait(delivery, run.lease.record, delay=pause)
    if exc is None:
        try:
            replay(delivery.task.backend, failure, delivery.name)
        except Exception as stored:
            exc = stored
    assert exc is not None
    if stuck:
        return unknown(attempt, exc, _what_is_left(attempt, stuck, exc))
    ending = Ending(final_state(delivery, exc), failure)
    if run.is_for_another and not delivery.eager:
        verdict = attempt.told.end(ending, exc)
        if isinstance(verdict, Lost):
            return lost(attempt, verdict, exc)
        return wait(delivery, run.lease.record, delay=0.0)
    return failed(attempt, ending, exc)


def _what_is_left(attempt: Attempt, stuck: list[str], exc: BaseException) -> str:
    names = ", ".join(map(repr, stuck))
    text = (
        f"{attempt.delivery.name} failed ({type(exc).__name__}), and what can be undone is "
        f"undone; not undone: {names}, whose compensation takes a result that was not kept. "
        f"Undo that by hand, then settle the key {attempt.delivery.telling.readable} with `celery "
        "idempotency resolve --failed`: docs/unknown-outcomes.rst"
    )
    log.error("%s", text)
    return text


def _undo(attempt: Attempt, name: str, step: Step) -> None:
    app = attempt.delivery.task.app
    undo = maybe_signature(attempt.steps.compensation_of(step), app=app)
    if not undo.immutable:
        undo = undo.clone(args=(attempt.steps.result_of(name, step),))
    if is_awaitable(app.tasks[undo.task](*undo.args, **undo.kwargs)):
        raise ConfigurationError(f"the compensation {undo.task} is async, and was not run")
    attempt.steps.record(name, Step(StepState.COMPENSATED, step.order, step.outcome))
