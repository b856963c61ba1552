"""What Celery's event stream says of keys and duplicates, so that an unmodified Flower shows them.

Only the worker's parent process may say that a task is a duplicate: after "succeeded", and in the
same stream, so that whoever counts successes still counts them all. From the process that ran the
task the parent gets no more than the result's repr. So the fact travels as the *type* of that
text, which no result can have: a repr is always plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from celery.utils.log import get_logger

from celery_idempotent.core.keys import record_key
from celery_idempotent.headers import read_own
from celery_idempotent.settings import environment_of

__all__ = ["DEDUPLICATED", "STATE", "Duplicate", "MarkedRepr", "follow_up", "marked", "name_key"]

log = get_logger("celery_idempotent")

#: The event that follows a duplicate's ``task-succeeded``.
DEDUPLICATED: Final = "task-deduplicated"
#: The state that it gives the task in whatever reads the events; the stored state is SUCCESS.
STATE: Final = "DEDUPLICATED"


class MarkedRepr(str):
    """The repr of a result which another call made; to whom it says nothing more, it is a text."""

    __slots__ = ("key", "original", "record")

    key: str
    original: str
    record: str

    def __new__(cls, text: str, key: str, original: str, record: str) -> MarkedRepr:
        made = super().__new__(cls, text)
        made.key = key
        made.original = original
        made.record = record
        return made

    def __reduce__(self) -> tuple[type[MarkedRepr], tuple[str, str, str, str]]:
        return MarkedRepr, (str(self), self.key, self.original, self.record)


class Duplicate:
    """Notes on a delivery that it was answered with the outcome of another call.

    Args:
        key: the key, as operators read it.
        original: the task id of the call whose outcome it is.
        record: the name of the record in the store.
    """

    def __init__(self, key: str, original: str, record: str) -> None:
        self._marks = key, original, record

    def delivered(self, *, sent: bool) -> None:
        """Nothing is left to do when the tracer has returned."""

    def mark(self, answer: Any) -> Any:
        """Give the tracer's answer with its repr marked, if the task succeeded."""
        if answer.info is not None:
            return answer  # a stored failure is shown as the failure that it is
        return answer._replace(retstr=MarkedRepr(answer.retstr, *self._marks))


def marked(answer: Any, notes: Sequence[object]) -> Any:
    """Mark a tracer's answer if its delivery was noted to be a duplicate; never fail."""
    try:
        for note in notes:
            if isinstance(note, Duplicate):
                return note.mark(answer)
    except Exception:
        # The task succeeded, and an exception here would make a failure of it.
        log.debug("this version of Celery can't show duplicates as such", exc_info=True)
    return answer


def name_key(request: Any, fields: dict[str, Any]) -> None:
    """Add the key to the fields of an event, where there is one and the message says it.

    Args:
        request: the worker's request. This never fails, whatever it lacks.
    """
    try:
        if not request._eventer.enabled:
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


def follow_up(fields: dict[str, Any]) -> dict[str, Any] | None:
    """Take the mark off a ``task-succeeded``; give the fields of the event that is to follow it."""
    result = fields.get("result")
    if not isinstance(result, MarkedRepr):
        return None
    fields["result"] = str(result)  # plain text, whatever the events' serializer makes of types
    return {
        # Said in so many words: without it the state would stay SUCCESS.
        "state": STATE,
        "result": f"deduplicated key={result.key} original={result.original}",
        "idempotency_key": result.key,
        "idempotency_original": result.original,
        "idempotency_record": result.record,
    }
