"""What is done around Celery's tracer: callbacks are sent once, and its return is waited for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid5

from billiard.einfo import ExceptionInfo
from celery.canvas import group, maybe_signature
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.states import IGNORED, REJECTED
from celery.utils.log import get_logger
from kombu.exceptions import EncodeError, OperationalError

from celery_idempotent.core.record import Record
from celery_idempotent.delivery.celery_events import SENT, Duplicate, mark
from celery_idempotent.delivery.delivery import Delivery

log = get_logger("celery_idempotent")

_LINKS: Final = UUID("6a1d7a3e-3b0c-4b86-9f0e-5f1f4b1d2c67")

#: Outcomes for which the tracer sends callbacks or errbacks. ``None``: success.
_FINAL = (None, "FAILURE")


@dataclass(slots=True)
class AfterTrace:
    """What is to be done once the tracer of a delivery has returned."""

    #: Whether the tracer must not store RETRY: it is stored already, or must not be stored.
    stores_no_retry: bool = False
    #: The delivery, once it has an answer which its message's next delivery finds in the store.
    answered: Delivery | None = None
    #: Whose duplicate the delivery was, for Celery's events.
    duplicate: Duplicate | None = None
    #: Each is called with whether the tracer returned a final answer, so that what hangs on it was
    #: sent.
    on_return: list[Callable[[bool], object]] = field(default_factory=list)


class Untold(BaseException):
    """Leaves Celery's tracer, which takes each ``Exception`` for the answer of the call.

    Args:
        left: how the message is left.
        sent: whether what hangs on the call has gone out.
    """

    def __init__(self, left: Ignore | Reject, *, sent: bool) -> None:
        super().__init__(left)
        self.left = left
        self.sent = sent

    def answer(self) -> Any:
        """Return what the tracer returns of a body that leaves so."""
        from celery.app.trace import TraceInfo, trace_ok_t  # a producer does not need it

        state = REJECTED if isinstance(self.left, Reject) else IGNORED
        try:
            raise self.left
        except (Ignore, Reject) as exc:
            return trace_ok_t(ExceptionInfo(internal=True), TraceInfo(state, exc), None, None)


#: What is done after the tracer that runs here; ``None``: no tracer of ours runs.
AFTER_TRACE: Final[ContextVar[AfterTrace | None]] = ContextVar("idempotent_delivery", default=None)


def after_trace() -> AfterTrace:
    """Return what is done after the tracer that runs here; without one, nobody does it."""
    return AFTER_TRACE.get() or AfterTrace()


def silence(request: Any) -> None:
    """Let the tracer send nothing: all of it went out with an earlier copy of the message."""
    request.callbacks = request.chain = request.chord = request.errbacks = None


def show_duplicate(delivery: Delivery, record: Record) -> None:
    """Let the worker's events name the original of a duplicate, once the duplicate succeeded."""
    after_trace().duplicate = duplicate_of(delivery, record)


def duplicate_of(delivery: Delivery, record: Record) -> Duplicate | None:
    """Return what the worker's events say of a duplicate; ``None``: nobody hears them."""
    are_sent = (delivery.request.delivery_info or {}).get(SENT) is not False
    # An eager call is inside another's tracer.
    if delivery.eager or not (delivery.environment.events and are_sent):
        return None
    original, key = record.owner_id or "", delivery.call_key.readable
    return Duplicate(key, original, delivery.claimant.key, delivery.telling.shadow)


def hand_over(delivery: Delivery, result: Any) -> Any:
    """Return a result to the tracer, once its link and chain are sent as the tracer would.

    The tracer turns a broker that is away into a FAILURE of the task, and the tail is lost. Here
    the message goes back to the broker, and its next delivery sends them.

    Raises:
        Reject: the broker is away.
    """
    task, request, publication = delivery.task, delivery.request, delivery.waits.publication
    callbacks, chain = request.callbacks, request.chain
    if not delivery.claimant.callbacks or not (callbacks or chain):
        return result
    app = task.app
    options = {
        "parent_id": request.id,
        "root_id": request.root_id or request.id,
        "priority": (
            (request.delivery_info or {}).get("priority")
            if app.conf.task_inherit_parent_priority
            else None
        ),
    }
    # The same task id may be published again, and what hangs on that call is not what hung on the
    # first one.
    source = f"{request.id}/{publication}" if publication else request.id
    try:
        signatures = [
            _with_ids(maybe_signature(callback, app=app), f"{source}/{position}")
            for position, callback in enumerate(callbacks or ())
        ]
        plain = [signature for signature in signatures if not isinstance(signature, group)]
        for signature in signatures:
            # A group keeps a trail of its own; several plain ones become a group, for one trail.
            if isinstance(signature, group) or len(plain) == 1:
                signature.apply_async((result,), **options)
        if len(plain) > 1:
            group(plain, app=app).apply_async((result,), **options)
        if chain:
            head = maybe_signature(chain[-1], app=app)
            head.apply_async((result,), chain=chain[:-1], **options)
    except EncodeError:
        raise  # as in plain Celery: this result can't be sent, and the task fails
    except (OperationalError, OSError, SoftTimeLimitExceeded) as exc:
        log.warning(
            "%s[%s] is done, but its callbacks could not be sent; its message goes back to the "
            "broker, and its next delivery sends them: %s",
            task.name,
            request.id,
            exc,
        )
        if not task.acks_late:
            raise  # acknowledged already: as in plain Celery, the task fails
        raise Reject(exc, requeue=True) from exc
    request.callbacks = request.chain = None
    return result


def _with_ids(hanging: Any, source: str) -> Any:
    """Give a signature, or what is composed of some, with ids that are derived from ``source``.

    Celery makes them as it sends. Sent again, it is to be the same message, so that it can be told
    from a second one (MESSAGE_ID). What has its id from its producer keeps it.
    """
    named = hanging.clone()
    named["args"] = hanging["args"]  # a clone has a tuple, and tools show what was sent
    _give_ids(named, source)
    return named


def _give_ids(signature: Any, source: str) -> None:
    if not isinstance(signature, Mapping) or "options" not in signature:
        return
    signature["options"].setdefault("task_id", str(uuid5(_LINKS, source)))
    parts = signature.get("kwargs") or {}
    for name in ("tasks", "header"):
        within = parts.get(name) or ()
        if isinstance(within, Mapping):  # a chord's header, as a group
            _give_ids(within, f"{source}/{name}")
            continue
        for position, one in enumerate(within):
            _give_ids(one, f"{source}/{name}/{position}")
    if parts.get("body") is not None:
        _give_ids(parts["body"], f"{source}/body")


def traced(tracer: Any) -> Any:
    """Wrap a task's tracer: what waits for its return is done for success and failure alike."""

    def trace(uuid: Any, args: Any, kwargs: Any, request: Any = None) -> Any:
        after = AfterTrace()
        token = AFTER_TRACE.set(after)
        sent = False
        try:
            answer = tracer(uuid, args, kwargs, request)
            info = answer[1]
            sent = (None if info is None else info.state) in _FINAL
            return answer if after.duplicate is None else mark(answer, after.duplicate)
        except Untold as untold:
            sent = untold.sent
            return untold.answer()
        finally:
            AFTER_TRACE.reset(token)
            for on_return in after.on_return:
                _call(on_return, sent)

    return trace


def without_frames(tracer: Any) -> Any:
    """Wrap a worker's tracer: of what a delivery raised, only the traceback's text is left.

    All handlers have seen its frames by then. They hold the exception, which holds them, until
    garbage is collected: hundreds of kB since Python 3.11. And what a process tells its parent of a
    message that waits would be more than fits into a pipe. If the connection to the broker breaks
    while the parent reads that, Celery forgets the half that it has read, and uses that process no
    more.
    """

    def trace(uuid: Any, args: Any, kwargs: Any, request: Any = None) -> Any:
        answer = tracer(uuid, args, kwargs, request)
        raised, info = answer[:2]
        if info is not None and isinstance(info.retval, BaseException):
            info.retval.__traceback__ = None
        if isinstance(raised, ExceptionInfo):
            raised = copy(raised)  # a handler may have kept it
            raised.tb = None
            return answer._replace(retval=raised)
        return answer

    return trace


def _call(on_return: Callable[[bool], object], sent: bool) -> None:
    for _ in range(2):
        try:
            on_return(sent)
            return
        except SoftTimeLimitExceeded:
            continue  # it comes once, and too late: what was cut off by it is done again
        except Exception:
            # The task's outcome is out already: nothing here may turn it into another.
            log.exception("could not write down that a message was answered")
            return
