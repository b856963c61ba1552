"""Shadow mode: every call runs, records are kept, and what would have happened is reported."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from celery.utils.log import get_logger

from celery_idempotent.core.record import State
from celery_idempotent.core.verdicts import (
    Busy,
    ClaimVerdict,
    Mismatch,
    Replay,
    Unknown,
)
from celery_idempotent.delivery.attempt import Attempt
from celery_idempotent.delivery.callbacks import show_duplicate
from celery_idempotent.delivery.delivery import Delivery
from celery_idempotent.delivery.outcome import as_retried, ending_of
from celery_idempotent.delivery.results import encode_result
from celery_idempotent.delivery.waiting import say_started
from celery_idempotent.errors import StoreError
from celery_idempotent.run.claim import claim_key
from celery_idempotent.run.claimant import Ending
from celery_idempotent.run.run import Run
from celery_idempotent.run.transaction import run_without_claim

log = get_logger("celery_idempotent")


def run_in_shadow(delivery: Delivery, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the body whatever the store says, and report what would have been done instead.

    The callbacks stay the tracer's, nothing waits, and nothing that goes wrong with the store
    reaches the task.
    """
    task = delivery.task
    delivery.state.context = partial(delivery.context_of, why="idempotency_mode is 'shadow'")
    say_started(task, delivery.request)
    claimant = replace(delivery.claimant, callbacks=False, slip_key="", awaited=b"", awaited_key="")
    try:
        verdict = claim_key(claimant, 0.0, delivery.telling.lost)
    except StoreError as exc:
        log.warning("%s runs in shadow mode without a record: %s", delivery.name, exc)
        delivery.telling.tell("store away", reason=str(exc), action="run")
        return run_without_claim(task.run, *args, **kwargs)
    if not isinstance(verdict, Run):
        _report(delivery, verdict)
        return run_without_claim(task.run, *args, **kwargs)
    attempt = Attempt(delivery, verdict)
    try:
        return _recorded(attempt, args, kwargs)
    finally:
        attempt.told.let_go()


def _recorded(attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    delivery = attempt.delivery
    try:
        result = run_without_claim(delivery.task.run, *args, **kwargs)
    except BaseException as exc:
        told = as_retried(delivery, exc)
        attempt.told.end(ending_of(delivery, told), told)
        raise
    if delivery.state.retry is not None:
        attempt.told.end(ending_of(delivery, delivery.state.retry), delivery.state.retry)
        return result
    packed = encode_result(delivery.task.backend, result, delivery.options.max_result_size)
    attempt.told.end(Ending(State.SUCCEEDED, packed))
    return result


def _report(delivery: Delivery, verdict: ClaimVerdict) -> None:
    tell, would = delivery.telling.tell, "be ignored, as an old copy of its message"
    if isinstance(verdict, Replay):
        would = f"be answered with the outcome of {verdict.record.owner_id}"
        tell("answered again" if verdict.mine else "deduplicated", verdict.record)
        if not verdict.mine:
            show_duplicate(delivery, verdict.record)
    elif isinstance(verdict, Busy):
        would = f"wait for {verdict.record.owner_id}"
        tell("waiting", verdict.record, delay=0.0, redelivery=verdict.mine)
    elif isinstance(verdict, Mismatch):
        would = f"fail: {verdict.record.owner_id} had the key with other arguments"
        tell("mismatch", verdict.record)
    elif isinstance(verdict, Unknown):
        would = f"fail: nobody knows how {verdict.record.owner_id} ended"
        tell("unknown", verdict.record, interruptions=verdict.record.interruptions)
    else:
        tell("superseded")
    log.warning(
        "shadow: %s[%s] with key %s would %s",
        delivery.task.name,
        delivery.request.id,
        delivery.name,
        would,
    )
