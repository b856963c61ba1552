"""celery-singleton as its README shows it: Singleton, unique on one argument."""

from __future__ import annotations

from celery_singleton import Singleton  # type: ignore[import-untyped,import-not-found,unused-ignore]

from benchmarks.compare.shop import charge_order, make_app, sum_up

app = make_app("singleton")

charge = app.task(base=Singleton, bind=True, name="shop.charge", unique_on=["order_id"])(
    charge_order
)
summary = app.task(name="shop.summary")(sum_up)
