"""One attempt to run the body of a call whose key was granted, and what is told of it."""

from __future__ import annotations

import time
from typing import Any

from celery_idempotent import observers
from celery_idempotent.core.record import State
from celery_idempotent.delivery.delivery import Delivery
from celery_idempotent.delivery.results import Codec
from celery_idempotent.run.claimant import Ending
from celery_idempotent.run.journal import UnsentEntry
from celery_idempotent.run.run import Run
from celery_idempotent.run.steps import Steps

__all__ = ["Attempt"]


class Attempt:
    """One run of a key, for one delivery.

    Args:
        shadow: the body would have run without us, too.
    """

    __slots__ = ("_began", "_token", "delivery", "run", "shadow", "steps", "told")

    def __init__(self, delivery: Delivery, run: Run, *, shadow: bool = False) -> None:
        self.delivery = delivery
        self.run = run
        task = delivery.task
        self.steps = Steps(run, Codec(task, task.app, delivery.options.max_result_size))
        self.shadow = shadow
        #: Whether its end was told.
        self.told = False
        self._token = run.token
        self._began = time.monotonic()

    def begin(self) -> None:
        """Take up the steps of earlier runs, and tell that this one begins.

        Raises:
            RecordCorrupt: a step that an earlier run finished can't be read.
        """
        if self.run.steps:
            self.steps.take(self.run.steps)
        self.delivery.environment.journal.begin(self)
        if observers.is_heard("claimed"):
            self.delivery.observe("claimed", trace=None, **self._claim())

    def claimed(self) -> UnsentEntry:
        """Make the journal's entry of its beginning."""
        return self.delivery.event("claimed", self._began, self._claim())

    def _claim(self) -> dict[str, Any]:
        claim = self._details()
        claim["interruptions"] = self.run.interruptions
        claim["compensates"] = bool(self.run.failed)
        return claim

    def _details(self) -> dict[str, Any]:
        details: dict[str, Any] = {
            "token": self._token,
            "attempt": self.delivery.claimant.retries + 1,
        }
        if self.shadow:
            details["shadow"] = True
        return details

    def tell_end(
        self, ending: Ending, at: float, exc: BaseException | None, *, unrecorded: bool = False
    ) -> None:
        """Tell how this run ended.

        Args:
            at: when, on this process's monotonic clock.
            exc: what it raised.
            unrecorded: the store is told later.
        """
        details = self._details()
        details["took"] = at - self._began
        details["error"] = None if exc is None else type(exc).__name__
        if ending.state is State.RETRYING:
            details["delay"] = ending.delay_ms / 1000
        if unrecorded:
            details["unrecorded"] = True
        what = "interrupted" if ending.state is State.RUNNING else str(ending.state)
        journal = self.delivery.environment.journal
        journal.ended(self)
        if journal.most:
            journal.put(self.delivery.event(what, at, details))
        self.told = True
        if observers.is_heard(what):
            self.delivery.observe(what, trace=None, **details)

    def let_go(self) -> None:
        """Stop keeping a run alive that was cut off before its end, and tell that it began."""
        self.run.let_go()
        if not self.run.is_elsewhere:
            self.delivery.environment.journal.ended(self, silently=True)
