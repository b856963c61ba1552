"""All checks, one after the other, on what an app and its servers say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from celery_idempotent.core.options import Settings
from celery_idempotent.errors import ConfigurationError, StoreError
from celery_idempotent.ops.doctor.beat import check_beat
from celery_idempotent.ops.doctor.findings import ERROR, WARNING, Finding, Patient, Task
from celery_idempotent.ops.doctor.store import check_clock, check_server, keeps_nothing
from celery_idempotent.ops.doctor.tenants import check_tenants
from celery_idempotent.ops.doctor.times import check_times
from celery_idempotent.ops.doctor.worker import check_worker
from celery_idempotent.ops.lookup import setups
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.base import Store, mask_url, store_from_url
from celery_idempotent.stores.redis.servers import AskableStore
from celery_idempotent.worker.boot import check_names

__all__ = ["check_results_server", "check_store", "examine"]


def examine(app: Any, *, pool: str | None = None) -> list[Finding]:
    """Check an app's configuration and its servers: what is wrong, the worst first.

    What ``idempotency_accept`` names is left out.

    Args:
        pool: the module of the pool's class, in a worker.

    Raises:
        ConfigurationError: it is so wrong that nothing can be examined.
    """
    check_names(app)
    environment = environment_of(app)
    tasks = [Task(task.name, task, setup) for task, setup in setups(app)]
    patient = Patient(app, environment, tasks, pool)
    settings = Settings.from_lookup(app.conf.get, "this app")
    found = [
        *check_store(environment.store, environment.where, settings.wait_replicas),
        *check_results_server(app, environment.where),
        *check_worker(patient),
        *check_times(patient),
        *check_beat(patient),
        *check_tenants(patient),
    ]
    kept = [finding for finding in found if finding.name not in settings.accept]
    return sorted(kept, key=lambda finding: finding.level != ERROR)


def check_store(store: Store, where: str, wait_replicas: int = 0) -> Iterator[Finding]:
    """Check the servers that hold the records, and their clock."""
    try:
        asked = time.time()
        now_s = store.now_ms() / 1000
        answered = time.time()
        servers = store.servers() if isinstance(store, AskableStore) else []
    except StoreError as exc:
        yield Finding(
            "store-away",
            ERROR,
            str(exc),
            "No key is granted while it is away: every task waits.",
            "Start it, or say where it is",
            f"idempotency_store_url, which is {where}",
        )
        return
    yield from check_clock(now_s - (asked + answered) / 2, (answered - asked) / 2, where)
    for server in servers:
        yield from check_server(server, where, wait_replicas)


def check_results_server(app: Any, store_where: str) -> Iterator[Finding]:
    """Check the server that holds the results, where it is a Redis other than the store's."""
    url = app.conf.result_backend
    if not isinstance(url, str) or not url.startswith(("redis://", "rediss://")):
        return
    where = mask_url(url)
    if _place(where) == _place(store_where):
        return
    try:
        store = store_from_url(url)
    except ConfigurationError:
        return  # Celery knows options here that a store doesn't
    try:
        servers = store.servers() if isinstance(store, AskableStore) else []
    except StoreError as exc:
        yield Finding(
            "result-backend-away",
            WARNING,
            f"the result backend does not answer: {exc}",
            "What tasks return can't be written, nor read.",
            "Start it, or say where it is",
            f"result_backend, which is {where}",
        )
        return
    finally:
        store.close()
    for server in servers:
        policy = server.info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" or keeps_nothing(server):
            does = f"evicts ({policy})" if policy != "noeviction" else "keeps nothing on disk"
            yield Finding(
                "forgetful-result-backend",
                WARNING,
                f"the result backend at {where} {does}",
                "Results may be gone while their keys are still done: who asks then waits for "
                "ever.",
                "Set, in that server's configuration",
                "maxmemory-policy noeviction and appendonly yes",
            )


def _place(url: str) -> tuple[str | None, int | None]:
    try:
        parts = urlsplit(url)
        return parts.hostname, parts.port or 6379
    except ValueError:
        return None, None
