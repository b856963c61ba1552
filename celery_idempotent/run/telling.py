"""What becomes of a delivery and of its run, told once: to the journal and to observers."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any

from celery_idempotent import observers
from celery_idempotent.core.record import Label, Record, State
from celery_idempotent.core.transitions import Lost, Recorded
from celery_idempotent.run.claimant import Ending
from celery_idempotent.run.journal import Journal, UnsentEntry
from celery_idempotent.run.lease import Lease
from celery_idempotent.run.run import Run

__all__ = ["Telling", "ToldRun"]


@dataclass(slots=True)
class Telling:
    """One delivery, as it is told of."""

    journal: Journal
    #: The task's name, and the call's id.
    task: str
    task_id: str
    #: The record's name.
    key: str
    #: The key, as operators read it; the journal keeps only its ``label``.
    readable: str
    label: str
    #: The worker.
    node: str | None = None
    #: How often the message has waited.
    waits: int = 0
    #: The task, for Celery's signals; ``None``: it is no task that is run.
    sender: Any = None
    #: Whether nothing is suppressed: what is told is what would have been done.
    shadow: bool = False

    def tell(
        self,
        what: str,
        held: Record | None = None,
        *,
        original: str | None = None,
        reason: str = "",
        **details: Any,
    ) -> None:
        """Tell what becomes of the delivery.

        Args:
            what: the word of the journal for it.
            held: the record of the call that has the key; or ``original``: that call's id.
            reason: what went wrong, in words; the journal does not keep it.
        """
        heard = observers.is_heard(what)
        if not (heard or self.journal.most):
            return
        trace = None
        if held is not None:
            original, trace = held.owner_id, Label.of(held).trace or None
        if self.shadow:
            details["shadow"] = True
        if self.journal.most:
            self.journal.put(self.entry(what, monotonic(), {**details, "original": original}))
        if heard:
            if reason:
                details["reason"] = reason
            self.observe(what, original, trace=trace, **details)

    def lost(self, lease: Lease) -> None:
        """Tell that a run lost its key; it is not told of the delivery lease of an outcome."""
        if not lease.record.is_done:
            self.tell("lost", lease.lost, token=lease.record.token)

    def entry(self, what: str, at: float, details: dict[str, Any]) -> UnsentEntry:
        """Make an entry of the journal.

        Args:
            at: when it happened, on this process's monotonic clock.
        """
        told = {"label": self.label, "node": self.node, "waits": self.waits, **details}
        return UnsentEntry(at, what, self.key, self.task, self.task_id, told)

    def observe(self, what: str, original: str | None = None, **details: Any) -> None:
        """Notify the observers and the log only."""
        observers.notify(
            what, self.task, self.readable, self.task_id, original, self.sender, **details
        )

    def measure(self, what: str, began: float) -> None:
        """Notify observers how long the store took; ``began``: when, by ``time.perf_counter()``."""
        if observers.observers:
            self.observe(what, seconds=perf_counter() - began)


class ToldRun:
    """A run whose beginning and end are told."""

    __slots__ = ("_began", "_telling", "_token", "is_over", "run")

    def __init__(self, telling: Telling, run: Run) -> None:
        self._telling = telling
        self.run = run
        self._token = run.token
        self._began = monotonic()
        #: Whether its end was told.
        self.is_over = False

    def begin(self) -> None:
        """Tell that it begins; the journal asks for that only if the run is not a short one."""
        self._telling.journal.begin(self)
        if observers.is_heard("claimed"):
            self._telling.observe("claimed", trace=None, **self._claim())

    def claimed(self) -> UnsentEntry:
        """Make the journal's entry of its beginning."""
        return self._telling.entry("claimed", self._began, self._claim())

    def end(self, ending: Ending, exc: BaseException | None = None) -> Recorded | Lost | None:
        """Record how it ended as :meth:`.Run.end` does, and tell that unless its key was lost.

        Args:
            exc: what its body raised.
        """
        telling, at, began = self._telling, monotonic(), perf_counter()
        verdict = self.run.end(ending)
        telling.measure("complete", began)
        if isinstance(verdict, Lost):
            return verdict
        state = ending.state
        # A run that ends without an end was cut off.
        what = "interrupted" if state is State.RUNNING else str(state)
        details = self._details()
        details["took"] = at - self._began
        details["error"] = None if exc is None else type(exc).__name__
        if state is State.RETRYING:
            details["delay"] = ending.delay_ms / 1000
        elif state is State.UNKNOWN:
            details["interruptions"] = self.run.lease.record.interruptions
        if verdict is None:
            details["unrecorded"] = True
        telling.journal.ended(self)
        if telling.journal.most:
            telling.journal.put(telling.entry(what, at, details))
        self.is_over = True
        if observers.is_heard(what):
            if verdict is None:
                details["reason"] = f"could not record that it is {state}"
            telling.observe(what, trace=None, **details)
        return verdict

    def let_go(self) -> None:
        """Stop keeping a run alive that was cut off before its end; tell that it began."""
        self.run.let_go()
        if not (self.is_over or self.run.is_elsewhere):
            self._telling.journal.ended(self, silently=True)

    def _claim(self) -> dict[str, Any]:
        details = self._details()
        details["interruptions"] = self.run.interruptions
        details["compensates"] = bool(self.run.failed)
        return details

    def _details(self) -> dict[str, Any]:
        details: dict[str, Any] = {"token": self._token, "attempt": self.run.claimant.retries + 1}
        if self._telling.shadow:
            details["shadow"] = True
        return details
