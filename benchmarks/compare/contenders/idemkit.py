"""idemkit as its README shows it: ``idempotent_sync`` under ``app.task``, keyed by one argument."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from idemkit import MethodConfig, RedisBackend, idempotent_sync  # type: ignore[import-not-found,unused-ignore]

from benchmarks.compare.shop import VISIBILITY_S, charge_order, make_app, sum_up

app = make_app("idemkit")


class _Again(Exception):
    """The body wants to be retried."""


class _Attempt:
    """What the body gets as its task: idemkit runs it on a thread where Celery knows no request."""

    def __init__(self, request: Any) -> None:
        self.request = SimpleNamespace(id=request.id, retries=request.retries)

    @staticmethod
    def retry(**options: Any) -> Exception:
        return _Again(options)


@app.task(bind=True, name="shop.charge")
def charge(self: Any, **call: Any) -> Any:
    """Charge an order, once for its number."""
    attempt = _Attempt(self.request)

    def charge_once(order_id: str, amount: int = 100, work: float = 0.0, refusals: int = 0) -> Any:
        return charge_order(attempt, order_id=order_id, amount=amount, work=work, refusals=refusals)

    try:
        return _guarded(charge_once)(**call)
    except _Again as exc:
        raise self.retry(**exc.args[0]) from exc


_guarded = idempotent_sync(
    backend=RedisBackend.from_url(app.conf.result_backend),
    config=MethodConfig(
        key_fields=["order_id"], scope=lambda _: "shop", lease_ttl_seconds=VISIBILITY_S
    ),
)
summary = app.task(name="shop.summary")(sum_up)
