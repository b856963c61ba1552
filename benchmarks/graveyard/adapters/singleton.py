"""celery-singleton as its README shows it, its locks cleared when a worker starts."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.signals import worker_ready
from celery_singleton import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    Singleton,
    clear_locks,
)

from benchmarks.graveyard.adapters import Adapter, Body, Spec


class OnlyOne(Adapter):
    """A lock that is taken when a task is queued; a duplicate gets the first call's result."""

    title = "celery-singleton"
    distribution = "celery-singleton"
    claims = frozenset({"lock", "result", "forget"})
    refusals = frozenset({"DuplicateTaskError"})

    def configure(self, app: Celery) -> None:
        """Its README's advice against locks that outlive a crash."""
        worker_ready.connect(lambda **_: clear_locks(app), weak=False)

    def task(self, app: Celery, name: str, body: Body, spec: Spec, **celery: Any) -> Any:
        """Its options are those of the task."""
        options: dict[str, Any] = dict(celery)
        if spec.by == "order":
            options["unique_on"] = ["order"]
        if spec.seconds:
            options["lock_expiry"] = spec.seconds
        return app.task(base=Singleton, bind=True, name=name, **options)(body)

    def forget(self, task: Any, order: str) -> None:
        """All locks of the app."""
        clear_locks(task.app)


ADAPTER = OnlyOne()
