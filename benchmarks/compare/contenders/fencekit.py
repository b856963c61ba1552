"""fencekit as its README shows it: ``idempotent_task`` under a bound task that retries if busy."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import redis
from fencekit import (  # type: ignore[import-not-found,unused-ignore]
    DistributedLock,
    IdempotencyGuard,
    idempotency_key,
)
from fencekit.celery import idempotent_task  # type: ignore[import-not-found,unused-ignore]

from benchmarks.compare.shop import VISIBILITY_S, charge_order, make_app, sum_up

app = make_app("fencekit")
client = redis.Redis.from_url(app.conf.result_backend, decode_responses=True)


def _key(order_id: str, **more: Any) -> str:
    return str(idempotency_key({"order_id": order_id}, namespace="charge"))


def _resource(order_id: str, **more: Any) -> str:
    return f"order:{order_id}"


charge = app.task(bind=True, name="shop.charge")(
    idempotent_task(
        IdempotencyGuard(client),
        DistributedLock(client),
        key=_key,
        lock_resource=_resource,
        idempotency_ttl=timedelta(hours=24),
        lock_ttl=timedelta(seconds=VISIBILITY_S),
        retry_on_in_progress=True,
    )(charge_order)
)
summary = app.task(name="shop.summary")(sum_up)
