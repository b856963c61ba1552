"""celery_idempotent: a lock as docs/migrating.rst shows it, a window as its defaults are."""

from __future__ import annotations

from typing import Any

from celery import Celery

from benchmarks.graveyard.adapters import LEASE_S, Adapter, Body, Spec
from celery_idempotent import IdempotentTask


class Idempotent(Adapter):
    """Ours."""

    title = "celery-idempotent"
    distribution = "celery-idempotent"
    claims = frozenset(
        {"lock", "window", "turn", "early", "result", "again", "onward", "forget", "unlost"}
    )

    def configure(self, app: Celery) -> None:
        """A lease of seconds, as the others get."""
        app.conf.idempotency_lease = LEASE_S

    def task(self, app: Celery, name: str, body: Body, spec: Spec, **celery: Any) -> Any:
        """A window of 0 is a lock; with ``"run"`` what waited runs in its turn."""
        options: dict[str, Any] = dict(celery)
        if spec.by == "order":
            options["idempotency_key"] = ("order",)
        if spec.kind == "lock":
            options |= {"idempotency_ttl": 0, "idempotency_on_enqueue": "attach"}
            if spec.seconds:
                options["idempotency_queued_ttl"] = spec.seconds
        elif spec.kind == "turn":
            options |= {"idempotency_ttl": 0, "idempotency_after_wait": "run"}
        elif spec.seconds:
            options["idempotency_ttl"] = spec.seconds

        def releasing(self: Any, order: Any, data: Any = None) -> Any:
            self.idempotency.release()
            return body(self, order, data)

        used = releasing if spec.early else body
        return app.task(base=IdempotentTask, bind=True, name=name, **options)(used)

    def forget(self, task: Any, order: str) -> None:
        """As ``celery idempotency forget`` does."""
        task.forget(order)


ADAPTER = Idempotent()
