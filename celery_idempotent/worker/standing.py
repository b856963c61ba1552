"""What a run that its worker's parent ends is to its call, and the answer that the parent gives."""

from __future__ import annotations

import enum
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from celery.utils.log import get_logger

from celery_idempotent.core.keys import Owner
from celery_idempotent.core.message import read_request
from celery_idempotent.core.record import HELD, Process, Record, State
from celery_idempotent.core.slip import Slip
from celery_idempotent.delivery.delivery import ignores_result
from celery_idempotent.delivery.results import encode_failure
from celery_idempotent.delivery.waiting import is_answered
from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.run.process import BOOT_ID
from celery_idempotent.run.run import write_answer
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.base import Store

log = get_logger("celery_idempotent")

#: For so long after it did not answer, the store is not asked by the parent: each time it would
#: wait for the store, and so would all that the worker does.
_LEFT_ALONE_S: Final = 10.0


class Standing(enum.Enum):
    """What a run is to its call."""

    #: Its end is the call's answer: it has the key, or nobody has it.
    HOLDS = "holds"
    #: The call has its answer, from another delivery or from the run itself.
    ANSWERED = "answered"
    #: So it has, as the result backend says; the store has forgotten it, and would run it again.
    TOLD = "told"
    #: Another delivery of the call is going to answer it.
    COPIED = "copied"
    #: Another call has the key; its outcome is the answer, once it has one.
    OVERTAKEN = "overtaken"


def standing_of(request: Any) -> Standing:
    """Ask the store what the run of a request's process is to its call.

    Args:
        request: an :class:`.IdempotentRequest` whose message a process has begun.
    """
    task, context = request.task, request._context
    setup = task._setup()
    if setup is None or setup.options.mode != "enforce":
        return Standing.HOLDS
    try:
        key = request.record_name()
        if key is None:
            return Standing.HOLDS
        store = environment_of(request.app).store
        if _is_left_alone(store):
            raise StoreUnavailable("the store did not answer just now")
        _, owner, message, _ = read_request(context)
        # In this order: a copy writes its slip when it has the record already.
        record, slip = store.get(key), store.slip(owner.slip_key(key))
    except StoreError as exc:
        log.warning("could not ask whether task %s still has its key: %s", request.id, exc)
        return Standing.ANSWERED if is_answered(task, context) else Standing.HOLDS
    # A greenlet has a number of its own, which is no process's: its body ran in this process.
    pids = (request.worker_pid or 0, os.getpid())
    processes = [Process(socket.gethostname(), pid, BOOT_ID).pack() for pid in pids]
    named = (b"" if record is None else record.process, b"" if slip is None else slip.holder[8:])
    process = next((it for it in processes if it in named), b"")
    # Where bodies run in this process, another one of this key may: it has a lease here.
    is_here = any(lease.key == key for lease in heartbeat.leases())
    in_turn = setup.options.after_wait in ("run", "last")
    if record is None and slip is None and is_answered(task, context):
        return Standing.TOLD
    return stands(record, slip, owner, b"" if is_here else process, message, in_turn=in_turn)


def _is_left_alone(store: Store) -> bool:
    return time.monotonic() - store.failed_at < _LEFT_ALONE_S


def standing_of_copy(request: Any, *, goes_on: bool = False) -> Standing:
    """Ask the store what a message is to its call that no process has begun, and nobody wants.

    Args:
        request: an :class:`.IdempotentRequest`.
        goes_on: whether a run that was cut off goes on: its message has only expired since then.

    Returns:
        ``COPIED``: a run of its call is under way, or a delivery answers it; ``ANSWERED``: its call
        has its answer; ``HOLDS``: neither.
    """
    setup, key = request.task._setup(), request.record_name()
    if setup is None or setup.options.mode != "enforce" or key is None:
        return Standing.HOLDS
    store = environment_of(request.app).store
    if _is_left_alone(store):
        return Standing.HOLDS
    _, owner, message, _ = read_request(request._context)
    (record, now_ms), slip = store.peek(key), store.slip(owner.slip_key(key))
    if slip is not None and now_ms < slip.sending_ms:
        return Standing.COPIED
    if record is not None and not record.owner:
        return Standing.HOLDS  # it was forgotten
    mine = record if record is not None and record.owner == owner.pack() else None
    is_copy = mine is not None and message.retries <= mine.retries
    told = _is_told(slip, message)
    if told and slip is not None and slip.released and not slip.outcome:
        # It was revoked as it ran. If Celery could not tell that, the result backend was away.
        task, context = request.task, request._context
        knows = ignores_result(task, context) or is_answered(task, context)
        return Standing.ANSWERED if knows else Standing.HOLDS
    is_held = mine is not None and mine.state in HELD
    is_live = mine is not None and now_ms < mine.until_ms
    if is_copy and is_held and (is_live or (goes_on and not told)):
        return Standing.COPIED
    return Standing.ANSWERED if told else Standing.HOLDS


def _is_told(slip: Slip | None, message: Slip) -> bool:
    """Whether the call of a message has its answer by that slip."""
    return slip is not None and slip.answered and not slip.is_older_than(message)


def stands(
    record: Record | None,
    slip: Slip | None,
    owner: Owner,
    process: bytes,
    message: Slip,
    *,
    in_turn: bool = False,
) -> Standing:
    """Decide it by the record of the key and the slip of the call.

    Args:
        process: the packed process of the run; empty: another run of the key is in that process.
        message: what distinguishes the message from others of its owner.
        in_turn: whether the outcome of another call is no answer.
    """
    if slip is not None and slip.is_run and process and slip.holder[8:] == process:
        return Standing.HOLDS  # its body gave the key up
    is_forgotten = record is None or not record.owner
    mine = record is not None and record.owner == owner.pack()
    own = record if mine and process and record is not None and record.process == process else None
    if own is not None and own.state in HELD:
        return Standing.HOLDS
    if _is_told(slip, message) and (record is None or not is_forgotten):
        return Standing.ANSWERED
    if slip is not None and slip.holder and not slip.released and slip.holder[8:] != process:
        return Standing.COPIED  # it makes an error, or sends what hangs on the call
    if record is None or is_forgotten or (own is not None and own.state is State.UNKNOWN):
        return Standing.HOLDS
    if record.state is State.RELEASED and not record.outcome:
        return Standing.HOLDS
    if mine:
        return Standing.ANSWERED if record.is_done else Standing.COPIED
    return Standing.HOLDS if in_turn else Standing.OVERTAKEN


def keep_answer(request: Any, exc: BaseException | None) -> Callable[[bool], None]:
    """Write down that a call has its answer, before its caller is told: see :func:`.write_answer`.

    Args:
        request: an :class:`.IdempotentRequest` whose message a process has begun.
        exc: what the call fails with; ``None``: it is revoked, and its copies are ignored.
    """
    task, context = request.task, request._context
    setup, key = task._setup(), request.record_name()
    if setup is None or setup.options.mode != "enforce" or key is None:
        return nothing
    environment = environment_of(request.app)
    _, owner, message, _ = read_request(context)
    outcome = b""
    if exc is None:
        message = message._replace(digests=b"")
    # Where the run's own answer is stored already, the parent's is not stored over it.
    elif not is_answered(task, context):
        outcome = encode_failure(task.backend, exc, setup.options.max_result_size)
    at_once = not _is_left_alone(environment.store)
    then = write_answer(
        environment.store,
        key,
        owner.slip_key(key),
        message._replace(outcome=outcome),
        int(environment.horizon * 1000),
        int(setup.options.lease * 1000),
        at_once=at_once,
    )
    if at_once and (exc is None or outcome):
        why = "revoked" if exc is None else type(exc).__name__
        environment.journal.write(
            "ended", key, task.name, request.id, node=request.hostname, error=why
        )
    return then


def nothing(_: bool, /) -> None:
    """Do nothing, where no callbacks are to be noted."""
