"""A message's callbacks (link, chain, chord part, errbacks): sent once for each task id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final, Protocol
from uuid import UUID, uuid5

from celery.canvas import group, maybe_signature
from celery.exceptions import Reject, SoftTimeLimitExceeded
from celery.utils.log import get_logger
from kombu.exceptions import EncodeError, OperationalError

from celery_idempotent.core.slip import DIGEST
from celery_idempotent.delivery.celery_events import marked

__all__ = [
    "Delivered",
    "announce",
    "announced",
    "digest_of",
    "has_callbacks",
    "send_tail",
    "silence",
    "traced",
    "with_ids",
]

log = get_logger("celery_idempotent")

_LINKS: Final = UUID("6a1d7a3e-3b0c-4b86-9f0e-5f1f4b1d2c67")

#: Outcomes for which the tracer sends callbacks or errbacks. ``None``: success.
_FINAL = (None, "FAILURE")


class Delivered(Protocol):
    """Who wants to know how the tracer returned."""

    def delivered(self, *, sent: bool) -> None:
        """Learn how; ``sent``: with a final answer, so that what hangs on it was sent."""


#: Who wants to know of the delivery that runs here; ``None``: no tracer of ours runs here.
announced: ContextVar[list[Delivered] | None] = ContextVar("idempotent_delivery", default=None)


def has_callbacks(request: Any) -> bool:
    """Whether anything hangs on this message's outcome."""
    return bool(request.callbacks or request.chain or request.chord or request.errbacks)


def digest_of(request: Any) -> bytes:
    """Give a digest of what hangs on this message's outcome: names, arguments and ids."""
    hanging = (
        request.callbacks,
        request.errbacks,
        request.chain,
        request.chord,
        request.group if request.chord else None,
    )
    text = json.dumps(_told(hanging), sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST).digest()


def _told(hanging: Any) -> Any:
    # Without stamps and other options: they may differ from one publishing to the next.
    if isinstance(hanging, Mapping):
        if "task" in hanging and "options" in hanging:
            options = hanging.get("options") or {}
            named = ("task", "args", "kwargs")
            told = {name: _told(hanging.get(name)) for name in named}
            told.update({name: _told(options.get(name)) for name in ("task_id", "link")})
            return told
        return {str(name): _told(value) for name, value in hanging.items()}
    if isinstance(hanging, (list, tuple)):
        return [_told(item) for item in hanging]
    return hanging


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
            with_ids(maybe_signature(callback, app=app), f"{request.id}/{position}")
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


def with_ids(hanging: Any, source: str) -> Any:
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
    for _ in range(2):
        try:
            return delivered.delivered(sent=sent)
        except SoftTimeLimitExceeded:
            continue  # it comes once, and too late: what was cut off by it is told again
        except Exception:
            # The task's outcome is out already: nothing here may turn it into another.
            log.exception("could not write down that a message was answered")
            return None
    return None
