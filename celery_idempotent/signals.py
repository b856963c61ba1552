"""Celery signals that say what became of a delivery, each with one frozen event.

A receiver is called in the process that runs the task::

    @task_deduplicated.connect
    def on_deduplicated(sender, event, **kwargs):
        print(event.task, event.key, event.task_id, event.original_id)

``sender`` is the task. An exception in a receiver is logged by Celery, and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from celery.utils.dispatch import Signal

__all__ = [
    "ClaimLostEvent",
    "Event",
    "InterruptedEvent",
    "StoreUnavailableEvent",
    "WaitingEvent",
    "claim_lost",
    "key_mismatch",
    "store_unavailable",
    "task_deduplicated",
    "task_interrupted",
    "task_waiting",
]


@dataclass(frozen=True, slots=True)
class Event:
    """What every event tells."""

    #: The task's name.
    task: str
    #: The key, as operators read it.
    key: str
    #: The call that this is about.
    task_id: str
    #: The call that holds the key, or whose outcome it is; ``None`` where that isn't known.
    original_id: str | None
    #: Whether nothing was suppressed: ``idempotency_mode`` is ``"shadow"``, and this is what would
    #: have been.
    shadow: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class WaitingEvent(Event):
    """A delivery was put back, to come again."""

    #: After how many seconds.
    delay: float
    #: Whether it is the holder's own message, delivered again.
    redelivery: bool


@dataclass(frozen=True, slots=True)
class InterruptedEvent(Event):
    """A run of the key was cut off: this one runs again, or the key's outcome is unknown.

    Unknown, too: a run failed, and a finished step of it can't be undone.
    """

    #: How many runs have been cut off since the last retry, release or success.
    interruptions: int
    #: Whether the outcome is now unknown, and the body is not run.
    unknown: bool


@dataclass(frozen=True, slots=True)
class ClaimLostEvent(Event):
    """A run learned that it no longer holds its key: its outcome was, or will be, refused."""

    #: The fencing token which it held.
    token: int


@dataclass(frozen=True, slots=True)
class StoreUnavailableEvent(Event):
    """The store did not answer when a key was asked for, or when an outcome was to be recorded."""

    #: What it said, or did not.
    error: str
    #: What was done: ``"wait"``, ``"raise"``, ``"run"``, or ``"record later"``.
    action: str


#: A duplicate got the outcome of another call (:class:`Event`).
task_deduplicated = Signal(name="task_deduplicated", providing_args={"event"})
#: A delivery waits for its key (:class:`WaitingEvent`).
task_waiting = Signal(name="task_waiting", providing_args={"event"})
#: An earlier run was cut off (:class:`InterruptedEvent`).
task_interrupted = Signal(name="task_interrupted", providing_args={"event"})
#: A run lost its key (:class:`ClaimLostEvent`).
claim_lost = Signal(name="claim_lost", providing_args={"event"})
#: A key came with other arguments (:class:`Event`).
key_mismatch = Signal(name="key_mismatch", providing_args={"event"})
#: The store was away (:class:`StoreUnavailableEvent`).
store_unavailable = Signal(name="store_unavailable", providing_args={"event"})
