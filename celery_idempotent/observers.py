"""Observers are called for what becomes of each delivery: metrics, traces, signals, log lines."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = [
    "LEVELS",
    "Observation",
    "OncePerSecond",
    "Observer",
    "name_spans",
    "observe",
    "observers",
    "outage_lines",
    "outcomes",
    "span_name",
    "stop_observing",
    "notify",
]

#: Lines for machines: the fields are on each log record as ``idempotency``, a dict.
outcomes: Final = logging.getLogger("celery_idempotent.outcomes")

#: What happens all the time is logged at level DEBUG only, what needs a person as a WARNING, all
#: else at INFO. A run that begins after one that was cut off (``details["cut_off"]``: the id of
#: that run's call) is logged as ``interrupted``, as a WARNING.
LEVELS: Final = {
    **dict.fromkeys(("claimed", "succeeded", "claim", "complete"), logging.DEBUG),
    "unknown": logging.WARNING,
}
#: What a line adds for a person.
_HINTS: Final = {"unknown": " (somebody has to settle it: docs/unknown-outcomes.rst)"}

log = logging.getLogger("celery_idempotent")


class OncePerSecond:
    """Lets one log line a second through in this process, and counts those that it leaves out.

    An outage of the store meets every delivery: a worker with hundreds of greenlets would write
    hundreds of lines a second, all of which say the same.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = -math.inf
        self._left_out = 0

    def turn(self) -> str | None:
        """Return what the line ends with; ``None``: leave this line out."""
        now = self._clock()
        if now < self._next:
            self._left_out += 1
            return None
        self._next = now + 1.0
        left_out, self._left_out = self._left_out, 0
        return f" (and {left_out} more like this before it)" if left_out else ""


#: For lines that say that the store is away.
outage_lines: Final = OncePerSecond()
_store_away: Final = OncePerSecond()


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing that became of a delivery.

    ``what`` is the journal's word for it: claimed, succeeded, failed, released, retrying,
    interrupted, unknown, compensating, deduplicated, answered again, waiting, dropped, refused,
    stopped, mismatch, superseded, store away, lost; and, for the time that the store took, claim
    and complete (``details["seconds"]``).
    """

    what: str
    #: The task's name.
    task: str
    #: The key, as operators read it.
    key: str
    task_id: str
    #: The call that holds the key, or whose outcome it is, where it is another.
    original_id: str | None
    details: Mapping[str, Any]
    #: The task itself; ``None`` for a request of the HTTP edge, whose task's name is "http".
    sender: Any = field(default=None, repr=False, compare=False)


Observer = Callable[[Observation], None]

#: All that are registered; as a rule there are none, and then no observation is made.
observers: list[Observer] = []


def observe(observer: Observer) -> None:
    """Register an observer: it is called for every delivery here and in processes forked later."""
    if observer not in observers:
        observers.append(observer)


def stop_observing(observer: Observer) -> None:
    """Remove an observer."""
    if observer in observers:
        observers.remove(observer)


#: Returns the name of the current span, which a record keeps; ``None``: no spans are made.
span_name: Callable[[], str] | None = None


def name_spans(name: Callable[[], str] | None) -> None:
    """Register what returns the name of the current span; ``None``: no spans are made."""
    global span_name
    span_name = name


def notify(
    what: str,
    task: str,
    key: str,
    task_id: str,
    original_id: str | None,
    sender: Any = None,
    **details: Any,
) -> None:
    """Call all observers, and write the log line; no error of theirs reaches the task."""
    outcome, level, original = what, LEVELS.get(what, logging.INFO), original_id
    if "cut_off" in details:
        outcome, level, original = "interrupted", logging.WARNING, details["cut_off"]
    end = _store_away.turn() if what == "store away" else _HINTS.get(what, "")
    if end is not None and outcomes.isEnabledFor(level):
        fields = {"outcome": outcome, "task": task, "key": key, "task_id": task_id}
        if original is not None:
            fields["original_id"] = original
        text = " ".join(f"{name}={str(value)!r}" for name, value in fields.items())
        text += end
        outcomes.log(level, "idempotency %s", text, extra={"idempotency": {**fields, **details}})
    if not observers:
        return
    observation = Observation(what, task, key, task_id, original_id, details, sender)
    for observer in tuple(observers):
        try:
            observer(observation)
        except Exception:
            log.exception("an observer of idempotency failed; the task goes on")
