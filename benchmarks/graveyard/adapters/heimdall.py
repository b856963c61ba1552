"""celery-heimdall as its README shows it: a unique task, and one that waits for its expiry."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery_heimdall import HeimdallTask  # type: ignore[import-untyped,import-not-found,unused-ignore]

from benchmarks.graveyard.adapters import Adapter, Body, Spec


class Heimdall(Adapter):
    """A lock that is taken at the call and looked at again by the worker."""

    title = "celery-heimdall"
    distribution = "celery-heimdall"
    claims = frozenset({"lock", "window", "result"})
    refusals = frozenset({"AlreadyQueuedError"})

    def task(self, app: Celery, name: str, body: Body, spec: Spec, **celery: Any) -> Any:
        """The lock's time is an hour, as in the README."""
        heimdall: dict[str, Any] = {"unique": True, "unique_timeout": spec.seconds or 60 * 60}
        if spec.kind == "window":
            heimdall["unique_wait_for_expiry"] = True
        if spec.by == "order":
            heimdall["key"] = lambda args, kwargs: f"{name}:{args[0]}"
        return app.task(base=HeimdallTask, bind=True, name=name, heimdall=heimdall, **celery)(body)


ADAPTER = Heimdall()
