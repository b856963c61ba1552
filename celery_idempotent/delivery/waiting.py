"""Waiting without holding a worker: a message is put back with a delay, and comes again."""

from __future__ import annotations

import math
import os
import random
import time
import traceback
from contextlib import suppress
from typing import Any, Final, NoReturn

from celery import Task
from celery.exceptions import Ignore, Reject, Retry
from celery.states import READY_STATES, STARTED
from celery.utils.log import get_logger
from kombu import serialization
from kombu.exceptions import EncodeError, OperationalError

from celery_idempotent.core.awaited import poll_s
from celery_idempotent.core.keys import Owner
from celery_idempotent.core.message import OWN, WaitState, own_header, sent_with
from celery_idempotent.core.record import Record
from celery_idempotent.core.verdicts import NEVER_MS
from celery_idempotent.delivery.body import Body, SameBody, body_of
from celery_idempotent.delivery.callbacks import after_trace
from celery_idempotent.delivery.delivery import Delivery, ignores_result
from celery_idempotent.delivery.origin import Origin, origin_of
from celery_idempotent.errors import IdempotencyError, IdempotencyInProgress, StoreUnavailable

log = get_logger("celery_idempotent")

#: The first pause of a message that waits for the store, and of one that the worker holds.
_FIRST_S: Final = 0.25
_HELD_S: Final = 1.0
#: In ``delivery_info``, which no message can bring along: whether the worker's parent holds the
#: messages that wait for a key.
HELD: Final = "task_held"
_SHORTEST_S: Final = 0.05
#: How long a message that can't be put back is held before it goes to the broker as it is.
_LONGEST_HOLD_S: Final = 1.0

# kombu has no types for it.
_registry: Any = serialization.registry


def wait(
    delivery: Delivery,
    record: Record | None,
    *,
    now_ms: int = 0,
    until: float | None = None,
    delay: float | None = None,
) -> NoReturn:
    """Requeue a message whose key is busy, or whose store is away: see :func:`say_waiting`.

    Args:
        record: whose run it waits for; ``None``: the store is away.
        now_ms: the store's clock, where a claim has found that run.
        until: when what it waits for ends by itself, in seconds from now, if that is known.
        delay: how long it should wait, in seconds, whatever it has waited before.
    """
    waits = delivery.waits
    since_ms, awaited, displaced = waits.since_ms or now_ms, waits.awaited, waits.displaced
    say_waiting(delivery, record)
    if record is not None:
        owner = Owner.unpack(record.owner)
        awaited = awaited if owner is None else (owner.task_id, owner.nesting)
        # Whether that run is of a call that came later, and answers this one.
        displaced = delivery.claimant.terms.latest and now_ms > 0 and since_ms <= record.came_ms
        if now_ms:
            delay = _pause_for_run(delivery, (now_ms - record.token / 1000) / 1000)
    changes = {"since_ms": since_ms, "awaited": awaited, "displaced": displaced}
    delay, signature = _requeue(delivery, until, delay, outage=record is None, **changes)
    raise Retry(exc=_what_it_waits_for(delivery, record), when=delay, sig=signature)


def wait_as_copy(delivery: Delivery, until: float | None, *, outage: bool = False) -> NoReturn:
    """Requeue a copy of a message whose own run may be alive; nobody's state is touched."""
    _requeue(delivery, until, outage=outage, redelivery=True)
    raise Ignore("a copy of this message is being run")


def _what_it_waits_for(delivery: Delivery, record: Record | None) -> IdempotencyError:
    if record is None:
        return StoreUnavailable(f"the store can't answer for {delivery.name} now, waiting")
    return IdempotencyInProgress(f"{delivery.name} is busy, waiting")


def _pause_for_run(delivery: Delivery, age_s: float) -> float:
    """Return how many seconds to wait for a run that has been under way for ``age_s``.

    Where the worker holds the message, it lets it go when the run is over, and holds it longer than
    that if need be: the pause is for the case that another kind of worker gets it. Elsewhere it is
    a poll.
    """
    held = (delivery.request.delivery_info or {}).get(HELD) is True
    if held and not delivery.environment.whole_seconds:
        return _HELD_S * 2.0 ** min(delivery.waits.count, 10)
    return poll_s(age_s)


def _requeue(
    delivery: Delivery,
    until: float | None,
    delay: float | None = None,
    *,
    outage: bool,
    **changes: Any,
) -> tuple[float, Any]:
    message, natively = delivery.claimant.message, delivery.environment.whole_seconds
    origin = origin_of(delivery.task.app, delivery.request.delivery_info, natively)
    waits = delivery.waits.again(
        to=delivery.request.hostname if origin.reaches_all else None,
        patient_until_ms=NEVER_MS if outage else delivery.waits.patient_until_ms,
        callbacks=message.digests,
        deaths=message.deaths,
        **changes,
    )
    if waits.redelivery and origin.is_fanned_out:
        delay = until  # nobody waits for this copy: it is needed only if the run dies
    delay = _pause(delivery, until, delay)
    signature = put_back(delivery, waits, delay, origin)
    original = waits.awaited[0] if waits.awaited else None
    delivery.telling.tell("waiting", original=original, delay=delay, redelivery=waits.redelivery)
    return delay, signature


def _pause(delivery: Delivery, until: float | None, wanted: float | None) -> float:
    """Return how many seconds to wait: few at first, more each time, with jitter.

    Args:
        until: when what it waits for ends by itself, in seconds from now, if that is known.
        wanted: how long it should be, whatever it has waited before.
    """
    environment, ttl = delivery.environment, delivery.options.ttl
    # A wait of more than half of the window could miss the outcome. With a window of 0 that is kept
    # for who waits, however long that is.
    most = min(environment.longest_wait, ttl / 2) if ttl else environment.longest_wait
    grown = _FIRST_S * 2.0 ** min(delivery.waits.count, 10) if wanted is None else wanted
    grown = min(most, grown) * random.uniform(0.75, 1.0)
    if until is not None:
        # Not past the end of a lease: a key that nobody holds any more is free then.
        grown = min(grown, until + _SHORTEST_S)
    pause = max(_SHORTEST_S, min(grown, most))
    return float(math.ceil(pause)) if environment.whole_seconds else pause


def say_started(task: Any, request: Any) -> None:
    """Store STARTED where ``track_started`` asks for it: once it is known that the body runs.

    Celery's tracer would store it before that, over the answer that a call may have.
    """
    # Read from the class: to the tracer, the task itself says no.
    if request.is_eager or not type(task).track_started or ignores_result(task, request):
        return
    meta = {"pid": os.getpid(), "hostname": request.hostname}
    try:
        task.backend.store_result(request.id, meta, STARTED, request=request)
    except Exception as exc:
        log.warning("%s[%s]: could not store that it has begun: %s", task.name, request.id, exc)


class StartedLater:
    """A ``track_started`` that the tracer doesn't see: :func:`say_started` stores STARTED."""

    def __get__(self, task: Any, owner: type | None = None) -> bool:
        # Celery 5.5 asks when it makes the tracer, later releases at each delivery: both ask the
        # task. What was set is found on its class.
        return task is None


def say_waiting(delivery: Delivery, record: Record | None) -> bool:
    """Store RETRY, once, for a call whose message has to wait; whether it was to be stored.

    Where a copy of the message may be refused or dropped meanwhile, the state stays as it is: RETRY
    would be stored over that answer. No slip keeps REVOKED for the next delivery to store it again.
    """
    after = after_trace()
    if after.stores_no_retry:
        return False
    if delivery.may_be_refused(record is None):
        after.stores_no_retry = True
        return False
    return say_retry(delivery.task, delivery.request, _what_it_waits_for(delivery, record))


def say_retry(task: Any, request: Any, why: Exception, retry: Retry | None = None) -> bool:
    """Store RETRY as the state of a call whose message is put back, or whose key is given up.

    Celery's tracer stores it afterwards, when the message may have been answered by another worker:
    RETRY over an answer would have its caller wait for ever. So the tracer then finds a
    :class:`WithoutRetry`. Returns whether it was to be stored: somebody may get the call's result.

    Args:
        why: what it waits for, or what its attempt failed with.
        retry: what a body raised to be retried.
    """
    if request.is_eager or (
        ignores_result(task, request) and not task.store_errors_even_if_ignored
    ):
        return False
    shown = why if retry is None else retry
    text = "".join(traceback.format_exception(type(shown), shown, shown.__traceback__))
    try:
        task.backend.mark_as_retry(request.id, why, text, request=request)
    except Exception as exc:
        log.warning("%s[%s]: could not store that it waits: %s", task.name, request.id, exc)
    after_trace().stores_no_retry = True
    return True


def say_revoked(task: Any, request: Any, reason: str) -> bool:
    """Store REVOKED as the final state of a call that is dropped; whether that could be done."""
    keeps = not ignores_result(task, request) or task.store_errors_even_if_ignored
    try:
        task.backend.mark_as_revoked(request.id, reason, request=request, store_result=keeps)
    except Exception as exc:
        log.warning("%s[%s]: could not store that it is dropped: %s", task.name, request.id, exc)
        return False
    return True


def is_answered(task: Any, request: Any) -> bool:
    """Whether the result backend has the answer of this call: RETRY must not be stored over it."""
    if request.is_eager or ignores_result(task, request):
        return False
    try:
        return task.backend.get_state(request.id) in READY_STATES
    except Exception:
        return False  # it is away, too, or keeps nothing


class WithoutRetry:
    """A result backend that stores no RETRY: see :func:`say_retry` and :func:`wait`."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def mark_as_retry(self, *_: Any, **__: Any) -> None:
        """Store nothing."""


def put_back(delivery: Delivery, waits: WaitState, delay: float, origin: Origin) -> Any:
    """Publish the message again, to come in ``delay`` seconds, and give its signature.

    It is the same message: its id, retries, callbacks, headers, key and arguments stay, whatever
    its body did with those. A copy of a message whose run is alive does not expire: if that run
    dies, it is all there is.

    Raises:
        Reject: it could not be published; the message goes back to the broker as it is. Where it
            was acknowledged early (``acks_late = False``), the error itself: the call fails.
    """
    task, request = delivery.task, delivery.request
    headers = sent_with(request)
    headers[OWN] = own_header(request.id, delivery.call_key, waits)
    options: dict[str, Any] = {"expires": None} if waits.redelivery else {}
    options.update(origin.route)
    # How its sender wants its arguments to be shown: it may hide some.
    shown = {name: request.__dict__.get(name) for name in ("argsrepr", "kwargsrepr")}
    options.update((name, text) for name, text in shown.items() if text is not None)
    try:
        body = body_of(task.app, request)
        came = {} if body is None else {"args": body.args, "kwargs": body.kwargs, **body.options}
        signature = task.signature_from_request(
            request,
            countdown=delay,
            retries=request.retries,
            headers=headers,
            add_to_parent=False,
            **options,
            **came,
        )
        _publish(task, signature, body)
    except Exception as exc:
        log.warning(
            "%s[%s] has to wait and could not be published again: it goes back to the broker as "
            "it is: %s",
            task.name,
            request.id,
            exc,
        )
        if not task.acks_late:
            raise  # it is acknowledged already, and would be lost without a word
        raise back_to_broker(exc, delay) from exc
    return signature


def publish_again(task: Any, args: Any, kwargs: Any, **options: Any) -> Any:
    """Publish a call that is enqueued already, by Celery's own ``apply_async``.

    A base class that lets each call into the queue once would take this one for a duplicate of
    itself, publish nothing, and the call would be lost.
    """
    return Task.apply_async(task, args, kwargs, **options)


def back_to_broker(exc: BaseException, delay: float) -> Reject:
    """Give what returns a message as it is, after a moment: it comes again at once."""
    time.sleep(min(delay, _LONGEST_HOLD_S))
    return Reject(exc, requeue=True)


def broker_is_away(exc: object) -> bool:
    """Whether publishing failed for want of a broker, and not for what was to be published."""
    return isinstance(exc, (OperationalError, OSError)) and not isinstance(exc, EncodeError)


def _publish(task: Any, signature: Any, body: Body | None) -> None:
    try:
        if body is None:
            signature.apply_async()
        else:
            with task.app.producer_or_acquire() as producer:
                options = {**signature.options, "producer": SameBody(producer, body)}
                publish_again(task, signature.args, signature.kwargs, **options)
    except EncodeError:
        # It came by another serializer than the task's own; only the worker's parent knows which.
        content = task.app.conf.accept_content
        names = {_registry.type_to_name.get(name, name) for name in content}
        for serializer in sorted(names - {task.serializer}):
            with suppress(EncodeError):
                signature.apply_async(serializer=serializer)
                return
        raise
