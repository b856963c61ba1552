"""All checks, one after the other, on what an app and its servers say."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator
from typing import Any, Final

from redis.exceptions import AuthenticationError, ResponseError

from celery_idempotent.core.options import Settings
from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.ops.doctor.beat import check_beat
from celery_idempotent.ops.doctor.broker import CelerysServers, check_broker
from celery_idempotent.ops.doctor.findings import (
    ERROR,
    LEVELS,
    NAMES,
    WARNING,
    Finding,
    Patient,
    Task,
)
from celery_idempotent.ops.doctor.keys import check_keys
from celery_idempotent.ops.doctor.prefix import prefix_of, with_prefix
from celery_idempotent.ops.doctor.store import check_clock, check_server, keeps_nothing
from celery_idempotent.ops.doctor.tenants import check_tenants
from celery_idempotent.ops.doctor.times import check_times
from celery_idempotent.ops.doctor.trial import Refusal, told_of_refusals, try_run
from celery_idempotent.ops.doctor.worker import check_worker
from celery_idempotent.ops.lookup import setups
from celery_idempotent.settings import Environment, environment_of
from celery_idempotent.stores.base import Store
from celery_idempotent.stores.urls import mask_url
from celery_idempotent.worker.boot import check_names

#: What the servers tell of themselves, and what a trial run meets too.
_ONCE: Final = frozenset(("replica", "cluster-incomplete", "cluster-node", "server-not-seen"))


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
    servers = CelerysServers(environment.where)
    found = [
        # A starting worker looks only: its first delivery tries the store.
        *check_store(environment, settings.wait_replicas, tries=pool is None),
        *check_results_server(app, servers),
        *check_broker(patient, servers),
        *check_worker(patient),
        *check_keys(patient),
        *check_times(patient),
        *check_beat(patient),
        *check_tenants(patient),
    ]
    kept = [finding for finding in found if finding.name not in settings.accept]
    kept += [_no_such(name) for name in settings.accept if name not in NAMES]
    kept.sort(key=lambda finding: LEVELS.index(finding.level))
    prefix = prefix_of(app)
    return [with_prefix(finding, prefix) for finding in _without_doubles(kept)]


def _no_such(name: str) -> Finding:
    near = difflib.get_close_matches(name, sorted(NAMES), n=1)
    return Finding(
        "no-such-finding",
        WARNING,
        f"idempotency_accept has {name!r}, and there is no finding of that name",
        "It accepts nothing.",
        "Did you mean" if near else "Take it out, or name one of those on the page",
        near[0] if near else "docs/doctor.rst",
    )


def _without_doubles(findings: list[Finding]) -> list[Finding]:
    """Leave out what a server says of itself once more by refusing a trial run."""
    names: set[str] = set()
    kept = []
    for finding in findings:
        if finding.name not in _ONCE or finding.name not in names:
            kept.append(finding)
        names.add(finding.name)
    return kept


def check_store(
    environment: Environment, wait_replicas: int = 0, *, tries: bool = True
) -> Iterator[Finding]:
    """Check the servers that hold the records, their clock, and that a run gets through.

    Args:
        tries: whether to make a trial run, which writes to the store.
    """
    store, where = environment.store, environment.where
    try:
        told = list(_servers_of(store, where, wait_replicas, tries))
        yield from told
        names = {finding.name for finding in told}
        for finding in try_run(environment) if tries else ():
            # A replica that comes back at this moment is late; how many there are was asked for.
            if finding.name != "too-few-replicas" or "server-not-seen" in names:
                yield finding
    except StoreError as exc:
        if isinstance(exc.__cause__, ResponseError) or getattr(exc, "is_refusal", False):
            yield from told_of_refusals(environment, [Refusal("use the store", exc, True)])
        else:
            yield _away(exc, where)


def _servers_of(store: Store, where: str, wait_replicas: int, tries: bool) -> Iterator[Finding]:
    if store.askable is not None:
        for server in store.askable.servers():
            yield from check_server(server, where, wait_replicas)
    asked = time.time()
    try:
        now_s = store.now_ms() / 1000
    except StoreError as exc:
        if tries and isinstance(exc.__cause__, ResponseError):
            return  # the trial says what is refused
        raise
    answered = time.time()
    yield from check_clock(now_s - (asked + answered) / 2, (answered - asked) / 2, where)


def _away(error: StoreError, where: str) -> Finding:
    if isinstance(error.__cause__, AuthenticationError):
        return Finding(
            "login-refused",
            ERROR,
            f"the store refuses the login ({where}): {error.__cause__}",
            "No key is granted: every task waits.",
            "Write the right user and password into the URL",
            'idempotency_store_url = "redis://user:password@host:6379/2"',
        )
    if isinstance(error, StoreUnavailable) and error.to_run:
        return Finding(
            "no-tables",
            ERROR,
            str(error),
            "No key is granted until they are made: every task waits.",
            "Make them",
            error.to_run,
        )
    return Finding(
        "store-away",
        ERROR,
        str(error),
        "No key is granted while it is away: every task waits.",
        "Start it, or say where it is",
        f"idempotency_store_url, which is {where}",
    )


def check_results_server(app: Any, servers: CelerysServers) -> Iterator[Finding]:
    """Check the server that holds the results, where it is a Redis other than the store's."""
    url = app.conf.result_backend
    if not isinstance(url, str) or not url.startswith(("redis://", "rediss://")):
        return
    where = mask_url(url)
    try:
        found = servers.at(url, app.conf.redis_backend_use_ssl)
    except StoreError as exc:
        yield Finding(
            "result-backend-away",
            WARNING,
            f"the result backend can't be used: {exc}",
            "What tasks return can't be written, nor read.",
            "Start it, or say where it is",
            f"result_backend, which is {where}",
        )
        return
    for server in found:
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
