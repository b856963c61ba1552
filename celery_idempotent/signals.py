"""Celery signals for what becomes of a delivery, each with one frozen event.

A receiver is called in the process that runs the task::

    @task_deduplicated.connect
    def on_deduplicated(sender, event, **kwargs):
        print(event.task, event.key, event.task_id, event.original_id)

``sender`` is the task. An exception in a receiver is logged by Celery, and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from celery.utils.dispatch import Signal

from celery_idempotent.observers import Observation, observe

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


class _DeliverySignal(Signal):
    """A signal that is sent for what observers are called for, once it has a receiver."""

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        """Register a receiver."""
        observe(_send_signals)
        return super().connect(*args, **kwargs)


#: A duplicate got the outcome of another call (:class:`Event`).
task_deduplicated = _DeliverySignal(name="task_deduplicated", providing_args={"event"})
#: A delivery waits for its key (:class:`WaitingEvent`).
task_waiting = _DeliverySignal(name="task_waiting", providing_args={"event"})
#: An earlier run was cut off (:class:`InterruptedEvent`).
task_interrupted = _DeliverySignal(name="task_interrupted", providing_args={"event"})
#: A run lost its key (:class:`ClaimLostEvent`).
claim_lost = _DeliverySignal(name="claim_lost", providing_args={"event"})
#: A key came with other arguments (:class:`Event`).
key_mismatch = _DeliverySignal(name="key_mismatch", providing_args={"event"})
#: The store was away (:class:`StoreUnavailableEvent`).
store_unavailable = _DeliverySignal(name="store_unavailable", providing_args={"event"})


def _send_signals(seen: Observation) -> None:
    what, details = seen.what, seen.details
    reason = details.get("reason", "")
    if details.get("unrecorded"):
        _send(store_unavailable, StoreUnavailableEvent, seen, reason, "record later")
    if what == "deduplicated":
        _send(task_deduplicated, Event, seen)
    elif what == "waiting":
        if details["redelivery"]:  # it waits for its own run
            seen = replace(seen, original_id=seen.task_id)
        _send(task_waiting, WaitingEvent, seen, details["delay"], details["redelivery"])
    elif what == "mismatch":
        _send(key_mismatch, Event, seen)
    elif what == "lost":
        _send(claim_lost, ClaimLostEvent, seen, details["token"])
    elif what == "store away":
        _send(store_unavailable, StoreUnavailableEvent, seen, reason, details["action"])
    elif what in ("claimed", "unknown"):
        count, is_unknown = details["interruptions"], what == "unknown"
        runs_again = count and not (details.get("compensates") or details.get("shadow"))
        if is_unknown or runs_again:
            if seen.original_id is None:  # the run that has the key tells it
                seen = replace(seen, original_id=seen.task_id)
            _send(task_interrupted, InterruptedEvent, seen, count, is_unknown)


def _send(signal: Signal, make: type[Event], seen: Observation, *fields: Any) -> None:
    if seen.sender is None or not signal.receivers:
        return
    shadow = bool(seen.details.get("shadow"))
    event = make(seen.task, seen.key, seen.task_id, seen.original_id, *fields, shadow=shadow)
    signal.send(sender=seen.sender, event=event)
