"""What Celery's event stream says of keys and duplicates, so that an unmodified Flower shows them.

Only the worker's parent process may say that a task is a duplicate: after "succeeded", and in the
same stream, so that whoever counts successes still counts them all. From the process that ran the
task the parent gets no more than the result's repr. So the fact travels as the *type* of that
text, which no result can have: a repr is always plain text.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from celery.exceptions import Ignore
from celery.utils.log import get_logger

from celery_idempotent.core.keys import record_key
from celery_idempotent.core.message import read_own
from celery_idempotent.settings import environment_of

log = get_logger("celery_idempotent")

#: The state of a duplicate in whatever reads the events; the stored state is SUCCESS.
STATE: Final = "DEDUPLICATED"
#: The state of one that ran all the same, in shadow mode.
SHADOW_STATE: Final = "SHADOW_DUPLICATE"

#: In ``delivery_info``, which no message can bring along: whether the worker's parent sends events,
#: so that somebody looks at a mark. Unless that is said, it does.
SENT: Final = "task_events"


class Duplicate(NamedTuple):
    """A delivery that was answered with the outcome of another call."""

    #: The key, as operators read it.
    key: str
    #: The task id of the call whose outcome it is.
    original: str
    #: The name of the record in the store.
    record: str
    #: Whether it only would have been answered so: in shadow mode it ran.
    shadow: bool = False

    def event(self, result: str) -> tuple[str, dict[str, Any]]:
        """Return the event that is to follow "succeeded": its type and its fields."""
        kind, state = "task-deduplicated", STATE
        text = f"deduplicated key={self.key} original={self.original}"
        if self.shadow:
            kind, state = "task-shadow-duplicate", SHADOW_STATE
            text = f"would be {text} result={result}"
        fields = {
            # It has to be named: without it the state would stay SUCCESS.
            "state": state,
            "result": text,
            "idempotency_key": self.key,
            "idempotency_original": self.original,
            "idempotency_record": self.record,
        }
        return kind, fields


class Dropped(Ignore):  # type: ignore[misc, unused-ignore]
    """Leaves a duplicate that was dropped: its call has ended as REVOKED.

    It takes what its caller is told, and then the fields of the :class:`Duplicate`, for the events;
    none: nobody hears them.
    """

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the events of its end: their types and fields."""
        reason, *duplicate = self.args
        if not duplicate:
            return []
        kind, fields = Duplicate(*duplicate).event("")
        fields["result"] = reason
        revoked = {"terminated": False, "signum": None, "expired": False}
        return [("task-revoked", revoked), (kind, fields)]


class MarkedRepr(str):
    """The repr of a result that another call made; to code that knows no duplicates, plain text."""

    __slots__ = ("duplicate",)

    duplicate: Duplicate

    def __new__(cls, text: str, duplicate: Duplicate) -> MarkedRepr:
        made = super().__new__(cls, text)
        made.duplicate = duplicate
        return made

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        # Each class that is named costs the child and the parent some microseconds.
        return _marked_repr, (str(self), *self.duplicate)


def _marked_repr(text: str, *duplicate: Any) -> MarkedRepr:
    return MarkedRepr(text, Duplicate(*duplicate))


def mark(answer: Any, duplicate: Duplicate) -> Any:
    """Mark the repr in a tracer's answer as a duplicate's, if the task succeeded; never fail."""
    try:
        if answer.info is not None:
            return answer  # a stored failure is shown as the failure that it is
        retval, info, runtime, text = answer
        return type(answer)(retval, info, runtime, MarkedRepr(text, duplicate))
    except Exception:
        # The task succeeded, and an exception here would make a failure of it.
        log.debug("this version of Celery can't show duplicates as such", exc_info=True)
        return answer


def are_sent(eventer: Any) -> bool:
    """Whether this worker sends the events of its tasks: by ``-E``, or because it was told to."""
    if eventer is None or not eventer.enabled:
        return False
    groups = getattr(eventer, "groups", None)
    return not groups or "task" in groups


def name_key(request: Any, fields: dict[str, Any]) -> None:
    """Add the key to the fields of an event, where there is one and the message says it.

    Args:
        request: the worker's request. This never fails, whatever it lacks.
    """
    try:
        if not are_sent(request._eventer):
            return
        environment = environment_of(request._app)
        own = read_own(request._request_dict, request.id)
        if environment.events and own is not None and own[0] is not None:
            call_key = own[0]
            fields["idempotency_key"] = call_key.readable
            fields["idempotency_record"] = record_key(environment.prefix, call_key)
    except Exception:
        # What is wrong with the message or the settings is said where the task runs.
        log.debug("no key can be shown for this task", exc_info=True)


def follow_up(fields: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Take the mark off a ``task-succeeded``; return the event that is to follow it."""
    result = fields.get("result")
    if not isinstance(result, MarkedRepr):
        return None
    fields["result"] = str(result)  # plain text, whatever the events' serializer makes of types
    return result.duplicate.event(fields["result"])
