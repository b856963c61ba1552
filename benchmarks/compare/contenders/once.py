"""celery-once as its README shows it: QueueOnce, locking on one argument."""

from __future__ import annotations

from celery_once import QueueOnce  # type: ignore[import-untyped,import-not-found,unused-ignore]

from benchmarks.compare.shop import charge_order, make_app, sum_up

app = make_app("once")
app.conf.ONCE = {
    "backend": "celery_once.backends.Redis",
    "settings": {"url": app.conf.result_backend, "default_timeout": 60 * 60},
}

charge = app.task(base=QueueOnce, bind=True, name="shop.charge", once={"keys": ["order_id"]})(
    charge_order
)
summary = app.task(name="shop.summary")(sum_up)
