"""A message that repairs its call: what later steps recorded is dropped before the claim."""

from __future__ import annotations

from celery_idempotent.core.step import cut
from celery_idempotent.delivery.delivery import Delivery


def rewound_ttl_ms(ttl_s: float, horizon_s: float) -> int:
    """Return for how long a record is kept that waits for its repair, in milliseconds."""
    return int(max(ttl_s, horizon_s) * 1000)


def prepare(delivery: Delivery, token: int, start: str) -> None:
    """Free the key behind the steps before ``start``, unless that is done, or the key has changed.

    Args:
        token: of the record as it was when the repair was decided.

    Raises:
        StoreUnavailable, RecordTooNew: the delivery must wait.
        RecordCorrupt: the record, or a step, can't be read.
    """
    store, key = delivery.environment.store, delivery.claimant.key
    found = cut(store.steps(key), start)
    if found.start:
        ttl_ms = rewound_ttl_ms(delivery.options.ttl, delivery.environment.horizon)
        store.rewind(key, token, found.kept, ttl_ms)
