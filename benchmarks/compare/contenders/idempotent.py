"""celery_idempotent, with a template for its key and the amount as the fingerprint."""

from __future__ import annotations

from benchmarks.compare.shop import VISIBILITY_S, charge_order, make_app, sum_up
from celery_idempotent import IdempotentTask

app = make_app("idempotent")
# The lease is as short as the other times here, so that a killed worker's key is free in seconds.
app.conf.idempotency_lease = VISIBILITY_S

charge = app.task(
    base=IdempotentTask,
    bind=True,
    name="shop.charge",
    idempotency_key="order:{order_id}",
    idempotency_fingerprint=("amount",),
)(charge_order)
summary = app.task(name="shop.summary")(sum_up)
