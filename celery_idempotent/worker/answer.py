"""The answer of a call whose run the worker's parent ends: no copy of its message runs after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery_idempotent.delivery.results import encode_failure
from celery_idempotent.delivery.waiting import is_answered
from celery_idempotent.run.run import write_answer
from celery_idempotent.settings import environment_of
from celery_idempotent.worker.standing import LEFT_ALONE_S, message_of


def keep_answer(request: Any, exc: BaseException | None) -> Callable[[], None]:
    """Write down that a call has its answer, before its caller is told.

    The answer is this call's alone: for every other one the run was cut off.

    Args:
        request: an :class:`.IdempotentRequest` whose message a process has begun.
        exc: what the call fails with; ``None``: it is revoked, and its copies are ignored.

    Returns:
        What writes down that the call's callbacks have gone out, too. Until then, for a lease at
        most, copies wait: they would send them as well.
    """
    task, context = request.task, request._context
    setup, key = task._setup(), request.record_name()
    if setup is None or setup.options.mode != "enforce" or key is None:
        return nothing
    environment = environment_of(request.app)
    owner, message = message_of(context)
    outcome = b""
    if exc is None:
        message = message._replace(digests=b"")
    # Where the run's own answer is stored already, the parent's is not stored over it.
    elif not is_answered(task, context):
        outcome = encode_failure(task.backend, exc, setup.options.max_result_size)
    return write_answer(
        environment.store,
        key,
        owner.slip_key(key),
        message._replace(outcome=outcome),
        int(environment.horizon * 1000),
        int(setup.options.lease * 1000),
        at_once=time.monotonic() - environment.store.failed_at >= LEFT_ALONE_S,
    )


def nothing() -> None:
    """Do nothing, where no callbacks are to be noted."""
