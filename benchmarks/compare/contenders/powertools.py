"""AWS Powertools' ``idempotent_function`` around a function that a Celery task calls."""

from __future__ import annotations

from typing import Any

import redis
from aws_lambda_powertools.utilities.idempotency import (  # type: ignore[import-not-found,unused-ignore]
    IdempotencyConfig,
    idempotent_function,
)
from aws_lambda_powertools.utilities.idempotency.persistence.cache import (  # type: ignore[import-not-found,unused-ignore]
    CachePersistenceLayer,
)

from benchmarks.compare.shop import VISIBILITY_S, charge_order, make_app, sum_up

app = make_app("powertools")
_client: Any = redis.Redis.from_url(app.conf.result_backend, decode_responses=True)
_layer = CachePersistenceLayer(client=_client)


class _Context:
    """What Lambda would pass: the time that a run has left, after which it counts as lost."""

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        return VISIBILITY_S * 1000


@app.task(bind=True, name="shop.charge")
def charge(self: Any, **call: Any) -> Any:
    """Charge an order, once for its number."""
    config = IdempotencyConfig(expires_after_seconds=24 * 60 * 60)
    config.register_lambda_context(_Context())  # type: ignore[arg-type,unused-ignore]

    @idempotent_function(data_keyword_argument="order_id", persistence_store=_layer, config=config)
    def charge_once(order_id: str, **more: Any) -> Any:
        return charge_order(self, order_id=order_id, **more)

    return charge_once(**call)


summary = app.task(name="shop.summary")(sum_up)
