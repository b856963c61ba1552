"""Plain Celery."""

from __future__ import annotations

from benchmarks.compare.shop import charge_order, make_app, sum_up

app = make_app("plain")

charge = app.task(bind=True, name="shop.charge")(charge_order)
summary = app.task(name="shop.summary")(sum_up)
