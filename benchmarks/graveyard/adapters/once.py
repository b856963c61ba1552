"""celery-once as its README shows it: QueueOnce with a default timeout of an hour."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery_once import QueueOnce  # type: ignore[import-untyped,import-not-found,unused-ignore]

from benchmarks.graveyard.adapters import Adapter, Body, Spec


class Once(Adapter):
    """A lock that is taken when a task is queued."""

    title = "celery-once"
    distribution = "celery-once"
    claims = frozenset({"lock", "early"})
    refusals = frozenset({"AlreadyQueued"})

    def configure(self, app: Celery) -> None:
        """The backend of the README."""
        app.conf.ONCE = {
            "backend": "celery_once.backends.Redis",
            "settings": {"url": app.conf.result_backend, "default_timeout": 60 * 60},
        }

    def task(self, app: Celery, name: str, body: Body, spec: Spec, **celery: Any) -> Any:
        """Its options are one dictionary."""
        once: dict[str, Any] = {"keys": ["order"]} if spec.by == "order" else {}
        if spec.seconds:
            once["timeout"] = spec.seconds
        if spec.early:
            once["unlock_before_run"] = True
        return app.task(base=QueueOnce, bind=True, name=name, once=once, **celery)(body)


ADAPTER = Once()
