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
from celery import Celery

from benchmarks.graveyard.adapters import LEASE_S, Adapter, Body, Spec


class _Context:
    """What Lambda would pass: the time that a run has left, after which it counts as lost."""

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        return LEASE_S * 1000


class Powertools(Adapter):
    """A record for each call of a function on Lambda."""

    title = "AWS Powertools"
    distribution = "aws-lambda-powertools"
    claims = frozenset({"window", "result", "again", "unlost"})
    refusals = frozenset({"IdempotencyAlreadyInProgressError"})

    def task(self, app: Celery, name: str, body: Body, spec: Spec, **celery: Any) -> Any:
        """The window is an hour, the documentation's default."""
        client: Any = redis.Redis.from_url(app.conf.result_backend, decode_responses=True)
        layer = CachePersistenceLayer(client=client)

        def task(self: Any, order: Any, data: Any = None) -> Any:
            config = IdempotencyConfig(expires_after_seconds=spec.seconds or 60 * 60)
            config.register_lambda_context(_Context())  # type: ignore[arg-type,unused-ignore]

            def charge(order: Any, data: Any = None) -> Any:
                return body(self, order, data)

            once = idempotent_function(
                charge, data_keyword_argument="order", persistence_store=layer, config=config
            )
            return once(order=order, data=data)

        return app.task(bind=True, name=name, **celery)(task)


ADAPTER = Powertools()
