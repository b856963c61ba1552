"""idemkit as its README shows it: ``idempotent_sync`` in a task, keyed by one argument."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from celery import Celery
from idemkit import MethodConfig, RedisBackend, idempotent_sync  # type: ignore[import-not-found,unused-ignore]

from benchmarks.graveyard.adapters import LEASE_S, Adapter, Body, Spec


class _Again(Exception):
    """The body wants to be retried: it runs on a thread where Celery knows no request."""


def _again(**options: Any) -> Exception:
    return _Again(options)


class Idemkit(Adapter):
    """A record for each call of a function, with a lease that is renewed."""

    title = "idemkit"
    distribution = "idemkit"
    claims = frozenset({"window", "result", "again", "unlost"})

    def task(self, app: Celery, name: str, body: Body, spec: Spec, **celery: Any) -> Any:
        """The window is the documentation's default."""
        more: dict[str, Any] = {"expires_after_seconds": spec.seconds} if spec.seconds else {}
        guard = idempotent_sync(
            backend=RedisBackend.from_url(app.conf.result_backend),
            config=MethodConfig(
                key_fields=["order"], scope=lambda _: name, lease_ttl_seconds=LEASE_S, **more
            ),
        )

        def task(self: Any, order: Any, data: Any = None) -> Any:
            request = SimpleNamespace(id=self.request.id, retries=self.request.retries)
            attempt = SimpleNamespace(request=request, retry=_again)

            def charge(order: Any, data: Any = None) -> Any:
                return body(attempt, order, data)

            try:
                return guard(charge)(order=order, data=data)
            except _Again as exc:
                raise self.retry(**exc.args[0]) from exc

        return app.task(bind=True, name=name, **celery)(task)


ADAPTER = Idemkit()
