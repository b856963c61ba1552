"""A message's callbacks (link, chain, chord part, errbacks): sent once for each task id."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final, Protocol
from uuid import UUID, uuid5

from celery.canvas import Signature, group, maybe_signature
from celery.exceptions import Reject, SoftTimeLimitExceeded
from celery.utils.log import get_logger
from kombu.exceptions import EncodeError, OperationalError

from celery_idempotent.events import marked

__all__ = [
    "Delivered",
    "announce",
    "announced",
    "has_callbacks",
    "send_tail",
    "silence",
    "traced",
]

log = get_logger("celery_idempotent")

_LINKS: Final = UUID("6a1d7a3e-3b0c-4b86-9f0e-5f1f4b1d2c67")

#: Outcomes for which the tracer sends callbacks or errbacks. ``None``: success.
_FINAL = (None, "FAILURE")


class Delivered(Protocol):
    """Who wants to know how the tracer returned."""

    def delivered(self, *, sent: bool) -> None:
        """End the delivery lease; ``sent``: note that the callbacks went out."""


#: Who wants to know of the delivery that runs here; ``None``: no tracer of ours runs here.
announced: ContextVar[list[Delivered] | None] = ContextVar("idempotent_delivery", default=None)


def has_callbacks(request: Any) -> bool:
    """Whether anything hangs on this message's outcome."""
    return bool(request.callbacks or request.chain or request.chord or request.errbacks)


def silence(request: Any) -> None:
    """Let the tracer send nothing: all of it went out with an earlier copy of the message."""
    request.callbacks = request.chain = request.chord = request.errbacks = None


def send_tail(task: Any, request: Any, result: Any) -> None:
    """Send link and chain as the tracer would, and let it send them no more.

    The tracer turns a broker that is away into a FAILURE of the task, and the tail is lost. Here
    the message goes back to the broker, and its next delivery sends them.

    Raises:
        Reject: the broker is away.
    """
    callbacks, chain = request.callbacks, request.chain
    if not callbacks and not chain:
        return
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
    try:
        signatures = [
            _with_id(maybe_signature(callback, app=app), f"{request.id}/{position}")
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


def _with_id(callback: Any, source: str) -> Any:
    # A link's id is made when it is sent. Sent again, it is to be the same message, so that it can
    # be told from a second one (MESSAGE_ID). What hangs in a chain has its id from its producer.
    if type(callback) is Signature and not callback.options.get("task_id"):
        named = callback.clone(task_id=str(uuid5(_LINKS, source)))
        named["args"] = callback["args"]  # a clone has a tuple, and tools show what was sent
        return named
    return callback


def announce(delivered: Delivered) -> None:
    """Have ``delivered`` told when the tracer of this delivery has returned."""
    waiting = announced.get()
    if waiting is not None:
        waiting.append(delivered)


def traced(tracer: Any) -> Any:
    """Wrap a task's tracer: the note is set after it returned, for success and failure alike."""

    def trace(uuid: Any, args: Any, kwargs: Any, request: Any = None) -> Any:
        waiting: list[Delivered] = []
        token = announced.set(waiting)
        sent = False
        try:
            answer = tracer(uuid, args, kwargs, request)
            info = answer[1]
            sent = (None if info is None else info.state) in _FINAL
            return marked(answer, waiting) if waiting else answer
        finally:
            announced.reset(token)
            for delivered in waiting:
                _tell(delivered, sent)

    return trace


def _tell(delivered: Delivered, sent: bool) -> None:
    try:
        delivered.delivered(sent=sent)
    except Exception:
        # The task's outcome is out already: nothing here may turn it into another.
        log.exception("could not note that callbacks went out")
