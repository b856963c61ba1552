"""One attempt to run the body of a call whose key was granted."""

from __future__ import annotations

from celery_idempotent.delivery.delivery import Delivery
from celery_idempotent.delivery.results import Codec
from celery_idempotent.run.run import Run
from celery_idempotent.run.steps import Steps
from celery_idempotent.run.telling import ToldRun

__all__ = ["Attempt"]


class Attempt:
    """One run of a key, for one delivery."""

    __slots__ = ("delivery", "run", "steps", "told")

    def __init__(self, delivery: Delivery, run: Run) -> None:
        self.delivery = delivery
        self.run = run
        task = delivery.task
        self.steps = Steps(run, Codec(task, task.app, delivery.options.max_result_size))
        #: The same run, whose beginning and end are told.
        self.told = ToldRun(delivery.telling, run)

    def begin(self) -> None:
        """Take up the steps of earlier runs, and tell that this one begins.

        Raises:
            RecordCorrupt: a step that an earlier run finished can't be read.
        """
        if self.run.steps:
            self.steps.take(self.run.steps)
        self.told.begin()
