"""What becomes of a delivery and of its run, told once: to the journal and to observers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any, Final

from celery_idempotent import observers
from celery_idempotent.core.record import (
    COMPENSATING,
    RETRYING,
    RUNNING,
    UNKNOWN,
    Label,
    Record,
    State,
)
from celery_idempotent.core.verdicts import Lost, Recorded
from celery_idempotent.run.claimant import Ending
from celery_idempotent.run.journal import Journal, Subject, UnsentEntry
from celery_idempotent.run.lease import Lease
from celery_idempotent.run.run import Run

#: The journal's word for each state in which a run ends.
_WORDS: Final = {state: str(state) for state in State}


@dataclass(slots=True)
class Telling:
    """One delivery, as it is told of."""

    journal: Journal
    subject: Subject
    #: The key, as operators read it; the journal keeps only the subject's label.
    readable: str
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
        heard = _is_heard(what)
        if not (heard or self.journal.most):
            return
        if held is not None:
            original = held.owner_id
        if self.shadow:
            details["shadow"] = True
        if self.journal.most:
            told = {**details, "original": original}
            self.journal.put(UnsentEntry(monotonic(), what, self.subject, told))
        if heard:
            if reason:
                details["reason"] = reason
            trace = None if held is None else Label.of(held).trace or None
            self.observe(what, original, trace=trace, **details)

    def lost(self, lease: Lease) -> None:
        """Tell that a run lost its key; it is not told of the delivery lease of an outcome."""
        if not lease.record.is_done:
            self.tell("lost", lease.lost, token=lease.record.token)

    def observe(self, what: str, original: str | None = None, **details: Any) -> None:
        """Notify the observers and the log only."""
        _, task, task_id, *_ = self.subject
        observers.notify(what, task, self.readable, task_id or "", original, self.sender, **details)

    def measure(self, what: str, began: float) -> None:
        """Notify observers how long the store took; ``began``: when, by ``time.perf_counter()``."""
        if observers.observers:
            self.observe(what, seconds=perf_counter() - began)


def _is_heard(what: str) -> bool:
    """Whether there is an observer, or a log, for it."""
    level = observers.LEVELS.get(what, logging.INFO)
    return bool(observers.observers) or observers.outcomes.isEnabledFor(level)


class ToldRun:
    """A run whose beginning and end are told; to make it tells that it begins."""

    __slots__ = ("_began", "_telling", "_token", "is_over", "run")

    def __init__(self, telling: Telling, run: Run) -> None:
        self._telling = telling
        self.run = run
        self._token = run.token
        self._began = monotonic()
        #: Whether its end was told.
        self.is_over = False
        telling.journal.begin(self)  # a short run gets no entry for its beginning
        follows = run.interruptions and not (run.failed or telling.shadow)
        if observers.observers or follows or observers.outcomes.isEnabledFor(logging.DEBUG):
            details = self._claim()
            if follows:
                details["cut_off"] = run.lease.record.cut_off_id
            telling.observe("claimed", trace=None, **details)

    @property
    def held(self) -> tuple[str, int]:
        """The key that it holds, and its token."""
        return self._telling.subject.key, self._token

    def claimed(self) -> UnsentEntry:
        """Make the journal's entry of its beginning."""
        return UnsentEntry(self._began, "claimed", self._telling.subject, self._claim())

    def end(self, ending: Ending, exc: BaseException | None = None) -> Recorded | Lost | None:
        """Record how it ended (``exc``: from its body), and tell that unless its key was lost."""
        telling, journal, state = self._telling, self._telling.journal, ending.state
        # A run that is still RUNNING at its end was cut off.
        what = "interrupted" if state is RUNNING else _WORDS[state]
        heard, details, at = _is_heard(what), self._details(), monotonic()
        details["took"] = at - self._began
        details["error"] = None if exc is None else type(exc).__name__
        if state is RETRYING:
            details["delay"] = ending.delay_ms / 1000
        elif state is UNKNOWN:
            details["interruptions"] = self.run.lease.record.interruptions
        began = perf_counter()
        verdict = self.run.end(ending)
        if observers.observers:
            telling.measure("complete", began)
        if isinstance(verdict, Lost):
            return verdict
        if verdict is None:
            details["unrecorded"] = True
        journal.ended(self, cut_off=verdict is None or state in (RUNNING, COMPENSATING))
        if journal.most:
            journal.put(UnsentEntry(at, what, telling.subject, details))
        self.is_over = True
        if heard:
            more = {"reason": f"could not record that it is {state}"} if verdict is None else {}
            telling.observe(what, trace=None, **details, **more)
        return verdict

    def let_go(self) -> None:
        """Stop keeping a run alive that was cut off before its end; tell that it began."""
        self.run.let_go()
        if not (self.is_over or self.run.is_elsewhere):
            journal = self._telling.journal
            if journal.ended(self, cut_off=self.run.lease.lost is None):
                journal.put(self.claimed())

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
