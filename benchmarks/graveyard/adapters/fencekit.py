"""fencekit as its README shows it: ``idempotent_task`` under a bound task that retries if busy."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import redis
from celery import Celery
from fencekit import (  # type: ignore[import-not-found,unused-ignore]
    DistributedLock,
    IdempotencyGuard,
    idempotency_key,
)
from fencekit.celery import idempotent_task  # type: ignore[import-not-found,unused-ignore]

from benchmarks.graveyard.adapters import LEASE_S, Adapter, Body, Spec


class Fencekit(Adapter):
    """A guard and a lock around the function under a task."""

    title = "fencekit"
    distribution = "fencekit"
    claims = frozenset({"window", "result", "again", "unlost"})

    def task(self, app: Celery, name: str, body: Body, spec: Spec, **celery: Any) -> Any:
        """The window is a day, as in the README."""
        client = redis.Redis.from_url(app.conf.result_backend, decode_responses=True)

        def key(order: Any, data: Any = None) -> str:
            return str(idempotency_key({"order": str(order)}, namespace=name))

        def resource(order: Any, data: Any = None) -> str:
            return f"{name}:{order}"

        window = timedelta(seconds=spec.seconds) if spec.seconds else timedelta(hours=24)
        guarded = idempotent_task(
            IdempotencyGuard(client),
            DistributedLock(client),
            key=key,
            lock_resource=resource,
            idempotency_ttl=window,
            lock_ttl=timedelta(seconds=LEASE_S),
            retry_on_in_progress=True,
        )(body)
        return app.task(bind=True, name=name, **celery)(guarded)


ADAPTER = Fencekit()
