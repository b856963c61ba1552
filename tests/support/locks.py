"""Tasks whose bases lock as a call is enqueued, in front of IdempotentTask: other packages' and one
that is made at home."""

from __future__ import annotations

from typing import Any, ClassVar

import redis
from celery import Celery, Task
from celery_heimdall import HeimdallTask  # type: ignore[import-untyped]
from celery_once import QueueOnce  # type: ignore[import-untyped]
from celery_singleton import Singleton  # type: ignore[import-untyped]

from celery_idempotent import IdempotentTask
from tests.support.ledger import Ledger

#: The tasks ``shop.locked_<name>``.
LOCKS = ("once", "singleton", "heimdall", "home_made")


class Once(QueueOnce, IdempotentTask):
    """celery-once; it says nothing where it publishes nothing."""

    abstract = True
    once: ClassVar = {"graceful": True, "keys": ["order"]}


class Single(Singleton, IdempotentTask):
    """celery-singleton."""

    abstract = True
    unique_on = "order"


class Heimdall(HeimdallTask, IdempotentTask):
    """celery-heimdall, whose own call would pass by the guard."""

    abstract = True
    heimdall: ClassVar = {"unique": True, "key": lambda args, kwargs: f"order:{args[0]}"}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return IdempotentTask.__call__(self, *args, **kwargs)


class HomeMade(Task):
    """A lock for each order: taken as a call is enqueued, given back as it ends."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        if self._locks.set(f"lock:{args[0]}", "taken", nx=True, ex=3600):
            return super().apply_async(args, kwargs, **options)
        return None

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self._locks.delete(f"lock:{args[0]}")

    @property
    def _locks(self) -> Any:
        return redis.Redis.from_url(self.app.conf.result_backend)


class Locked(HomeMade, IdempotentTask):
    """The one that is made at home."""

    abstract = True


def define(app: Celery, ledger: Ledger) -> None:
    """Give an app the tasks."""
    url = app.conf.result_backend
    app.conf.ONCE = {"backend": "celery_once.backends.Redis", "settings": {"url": url}}
    app.conf.singleton_backend_url = url
    for name, base in zip(LOCKS, (Once, Single, Heimdall, Locked), strict=True):
        app.task(
            name=f"shop.locked_{name}",
            base=base,
            bind=True,
            shared=False,
            idempotency_key="order:{order}",
            max_retries=5,
        )(_charge(ledger))


def _charge(ledger: Ledger) -> Any:
    def charge(self: Any, order: Any, fails: int = 0) -> Any:
        """Ask for a retry so many times, then charge."""
        ledger.write("start", name=self.name, key=order, id=self.request.id)
        if self.request.retries < fails:
            raise self.retry(countdown=0.1)
        ledger.write("effect", name=self.name, key=order, id=self.request.id)
        return {"order": order, "id": self.request.id}

    return charge
