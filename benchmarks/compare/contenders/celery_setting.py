"""Celery's worker_deduplicate_successful_tasks, with late acks, without which it does nothing."""

from __future__ import annotations

from benchmarks.compare.shop import charge_order, make_app, sum_up

app = make_app("celery_setting")
app.conf.task_acks_late = True
app.conf.worker_deduplicate_successful_tasks = True

charge = app.task(bind=True, name="shop.charge")(charge_order)
summary = app.task(name="shop.summary")(sum_up)
