"""Shadow mode: every call runs, records are kept, and what would have happened is reported."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from celery.utils.log import get_logger

from celery_idempotent import signals
from celery_idempotent.core.record import State
from celery_idempotent.core.verdicts import (
    Busy,
    ClaimVerdict,
    Mismatch,
    Replay,
    Superseded,
    Unknown,
)
from celery_idempotent.delivery.attempt import Attempt
from celery_idempotent.delivery.callbacks import show_duplicate
from celery_idempotent.delivery.delivery import Delivery
from celery_idempotent.delivery.outcome import ending_of
from celery_idempotent.delivery.results import encode_result
from celery_idempotent.delivery.waiting import say_started
from celery_idempotent.errors import StoreError
from celery_idempotent.run.claim import claim_key
from celery_idempotent.run.claimant import Ending
from celery_idempotent.run.run import Run

__all__ = ["run_in_shadow"]

log = get_logger("celery_idempotent")

_WHY = "idempotency_mode is 'shadow'"

#: What the journal calls what would have become of a delivery.
_WOULD = {
    Replay: "deduplicated",
    Busy: "waiting",
    Mismatch: "mismatch",
    Unknown: "unknown",
    Superseded: "superseded",
}


def run_in_shadow(delivery: Delivery, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the body whatever the store says, and report what would have been done instead.

    The callbacks stay the tracer's, nothing waits, and nothing that goes wrong with the store
    reaches the task.
    """
    task = delivery.task
    delivery.show(why=_WHY)
    say_started(task, delivery.request)
    claimant = delivery.claimant._replace(callbacks=False, slip_key="", awaited=b"", awaited_key="")
    try:
        verdict = claim_key(claimant, 0.0, lambda lease: None)
    except StoreError as exc:
        log.warning("%s runs in shadow mode without a record: %s", delivery.name, exc)
        event = signals.StoreUnavailableEvent
        delivery.emit(signals.store_unavailable, event, None, str(exc), "run", shadow=True)
        return task.run(*args, **kwargs)
    if not isinstance(verdict, Run):
        _report(delivery, verdict)
        return task.run(*args, **kwargs)
    attempt = Attempt(delivery, verdict, shadow=True)
    try:
        return _recorded(attempt, args, kwargs)
    finally:
        attempt.let_go()


def _recorded(attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    delivery = attempt.delivery
    attempt.begin()
    try:
        result = delivery.task.run(*args, **kwargs)
    except BaseException as exc:
        _end(attempt, ending_of(delivery, exc), exc)
        raise
    packed = encode_result(delivery.task.backend, result, delivery.options.max_result_size)
    _end(attempt, Ending(State.SUCCEEDED, packed))
    return result


def _end(attempt: Attempt, ending: Ending, exc: BaseException | None = None) -> None:
    at = time.monotonic()
    attempt.run.end(ending)
    attempt.tell_end(ending, at, exc)


def _report(delivery: Delivery, verdict: ClaimVerdict) -> None:
    would, original = "be ignored, as an old copy of its message", None
    if isinstance(verdict, (Busy, Replay, Mismatch, Unknown)):
        original = verdict.record.owner_id
    delivery.tell(_WOULD[type(verdict)], original=original, shadow=True)
    emit = partial(delivery.emit, shadow=True)
    if isinstance(verdict, Replay):
        would = f"be answered with the outcome of {original}"
        if not verdict.mine:
            emit(signals.task_deduplicated, signals.Event, original)
            show_duplicate(delivery, verdict.record, shadow=True)
    elif isinstance(verdict, Busy):
        would = f"wait for {original}"
        emit(signals.task_waiting, signals.WaitingEvent, original, 0.0, verdict.mine)
    elif isinstance(verdict, Mismatch):
        would = f"fail: {original} had the key with other arguments"
        emit(signals.key_mismatch, signals.Event, original)
    elif isinstance(verdict, Unknown):
        would = f"fail: nobody knows how {original} ended"
        count = verdict.record.interruptions
        emit(signals.task_interrupted, signals.InterruptedEvent, original, count, True)
    log.warning(
        "shadow: %s[%s] with key %s would %s",
        delivery.task.name,
        delivery.request.id,
        delivery.name,
        would,
    )
