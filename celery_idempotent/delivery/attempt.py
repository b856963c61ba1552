"""One attempt to run the body of a call whose key was granted."""

from __future__ import annotations

from functools import partial

from celery_idempotent.delivery.delivery import Delivery
from celery_idempotent.delivery.results import Codec
from celery_idempotent.run.run import Run
from celery_idempotent.run.steps import Steps
from celery_idempotent.run.telling import ToldRun


class Attempt:
    """One run of a key, for one delivery; to make it tells that it begins.

    Raises:
        RecordCorrupt: a step that an earlier run finished can't be read.
    """

    __slots__ = ("delivery", "run", "steps", "told")

    def __init__(self, delivery: Delivery, run: Run) -> None:
        self.delivery = delivery
        self.run = run
        options = delivery.options
        codec = Codec(delivery.task, options.max_result_size)
        # An eager call has no message that could come again.
        stops = options.stop_at_checkpoint and not delivery.eager
        self.steps = Steps(run, codec, stops=stops)
        if run.steps:
            self.steps.take(run.steps)
        if not (run.failed or delivery.telling.shadow):
            delivery.state.context = partial(delivery.context_of, run, self.steps)
        #: The same run, whose beginning and end are told.
        self.told = ToldRun(delivery.telling, run)
