"""celery-heimdall as its README shows it: a unique task with a key of its own and a timeout."""

from __future__ import annotations

from typing import Any

from celery_heimdall import HeimdallTask  # type: ignore[import-untyped,import-not-found,unused-ignore]

from benchmarks.compare.shop import charge_order, make_app, sum_up

app = make_app("heimdall")


def order_key(args: Any, kwargs: Any) -> str:
    """Return the lock's name, one for each order."""
    return f"order:{kwargs['order_id']}"


charge = app.task(
    base=HeimdallTask,
    bind=True,
    name="shop.charge",
    heimdall={"unique": True, "unique_timeout": 60 * 60, "key": order_key},
)(charge_order)
summary = app.task(name="shop.summary")(sum_up)
