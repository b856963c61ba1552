"""What a worker checks when it starts, and finishes when it stops."""

from __future__ import annotations

from typing import Any, Final

from celery import bootsteps, signals

from celery_idempotent.errors import ConfigurationError
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.memory import MemoryStore

__all__ = ["IdempotencyStep", "install"]

#: How long a process that ends goes on telling the store what it could not take before.
_FLUSH_S: Final = 5.0
#: Named and not imported: it looks at everything, from above.
_CHECK_UP: Final = "celery_idempotent.ops.startup:CheckUpStep"


class IdempotencyStep(bootsteps.StartStopStep):
    """Refuses to start a worker that has no store: its tasks could only wait."""

    requires = ("celery.worker.components:Pool",)

    def create(self, parent: Any) -> None:
        """Find the store; nothing is connected yet.

        Raises:
            ConfigurationError: there is none, or it can't serve this pool.
        """
        environment = environment_of(parent.app)
        pool = getattr(parent.pool_cls, "__module__", "")
        if isinstance(environment.store, MemoryStore) and pool.endswith("prefork"):
            raise ConfigurationError(
                "idempotency_store_url is memory://, which the processes of a prefork pool can't "
                "share: use Redis, or the pool 'solo' or 'threads'"
            )

    def stop(self, parent: Any) -> None:
        """Tell the store what it still has to know."""
        _flush()


def install(app: Any) -> None:
    """Have the app's workers take the step, and their pool's processes flush when they end."""
    app.steps["worker"].add(IdempotencyStep)
    app.steps["worker"].add(_CHECK_UP)
    signals.worker_process_shutdown.connect(_flush, dispatch_uid="celery-idempotent-flush")


def _flush(**_: Any) -> None:
    heartbeat.flush(_FLUSH_S)
