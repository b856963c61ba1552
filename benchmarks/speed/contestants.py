"""The libraries that ours is measured against, each with a no-op task as its README shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import redis

from benchmarks.speed.drive import Line
from celery_idempotent import IdempotentTask
from celery_idempotent.settings import environment_of

__all__ = ["CONTESTANTS", "DAY", "Contestant"]

DAY = 86_400


@dataclass(frozen=True)
class Contestant:
    """One library: how to make its task, and how it treats a duplicate."""

    name: str
    #: The distribution whose version is printed.
    distribution: str
    #: Makes a line with its task, from the URL of a database of its own.
    make: Callable[[str], Line]
    #: ``"worker"``: a duplicate is executed and answered by the worker; ``"enqueue"``: it isn't
    #: published while the first call is queued or runs (ours: or is done); ``""``: there are no
    #: duplicates.
    duplicate_at: str = ""
    #: The fate of a duplicate, in words.
    duplicate: str = ""
    #: Whether the outcome is kept for duplicates after the end of the run.
    keeps_outcome: bool = False
    #: How a run that lost its claim is kept from recording, if it is.
    fencing: str = "none"
    #: Remarks on its settings.
    note: str = ""
    #: The name of the exception that ``apply_async`` raises for a duplicate.
    raises: tuple[str, ...] = field(default=())


def _plain(url: str) -> Line:
    line = Line("plain")
    line.task()
    return line


def _ours(url: str) -> Line:
    return _guarded("ours", url)


def _attach(url: str) -> Line:
    return _guarded("attach", url, idempotency_on_enqueue="attach")


def _guarded(name: str, url: str, **options: Any) -> Line:
    line = Line(name)
    line.app.conf.idempotency_store_url = url
    line.task(base=IdempotentTask, idempotency_key="order:{order_id}", **options)
    # Else the journal would be written half a second later, during another contestant's turn.
    line.settle = environment_of(line.app).journal._send
    return line


def _once(url: str) -> Line:
    from celery_once import QueueOnce  # type: ignore[import-untyped,import-not-found,unused-ignore]

    line = Line("once")
    line.app.conf.ONCE = {
        "backend": "celery_once.backends.Redis",
        "settings": {"url": url, "default_timeout": DAY},
    }
    line.task(base=QueueOnce, once={"keys": ["order_id"]})
    return line


def _singleton(url: str) -> Line:
    from celery_singleton import Singleton  # type: ignore[import-untyped,import-not-found,unused-ignore]

    line = Line("singleton")
    line.app.conf.singleton_backend_url = url
    line.app.conf.singleton_lock_expiry = DAY
    line.task(base=Singleton, unique_on=["order_id"])
    return line


def _heimdall(url: str) -> Line:
    from celery_heimdall import HeimdallTask  # type: ignore[import-untyped,import-not-found,unused-ignore]

    class Task(HeimdallTask):  # type: ignore[misc,unused-ignore]
        abstract = True

        def setup_redis(self) -> Any:
            return redis.Redis.from_url(url)

    line = Line("heimdall")
    line.task(
        base=Task,
        heimdall={
            "unique": True,
            "unique_timeout": DAY,
            "unique_lock_blocking": False,
            "key": lambda args, kwargs: f"order:{kwargs['order_id']}",
        },
    )
    return line


def _fencekit(url: str) -> Line:
    from fencekit import DistributedLock, IdempotencyGuard, idempotency_key  # type: ignore[import-not-found,unused-ignore]
    from fencekit.celery import idempotent_task  # type: ignore[import-not-found,unused-ignore]

    client = redis.Redis.from_url(url, decode_responses=True)
    line = Line("fencekit")
    line.task(
        idempotent_task(
            IdempotencyGuard(client),
            DistributedLock(client),
            key=lambda order_id, amount: idempotency_key({"order_id": order_id}, namespace="bench"),
            lock_resource=lambda order_id, amount: f"order:{order_id}",
            idempotency_ttl=timedelta(seconds=DAY),
            lock_ttl=timedelta(minutes=5),
        )(line.body)
    )
    return line


def _idemkit(url: str) -> Line:
    from idemkit import MethodConfig, RedisBackend, idempotent_sync  # type: ignore[import-not-found,unused-ignore]

    line = Line("idemkit")
    config = MethodConfig(key_fields=["order_id"], scope=lambda _: "bench")
    line.task(idempotent_sync(backend=RedisBackend.from_url(url), config=config)(line.body))
    return line


class _Context:
    """The remaining time that Lambda passes to a function; it limits an unfinished run."""

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        return 30_000


def _powertools(url: str) -> Line:
    from aws_lambda_powertools.utilities.idempotency import (  # type: ignore[import-not-found,unused-ignore]
        IdempotencyConfig,
        idempotent_function,
    )
    from aws_lambda_powertools.utilities.idempotency.persistence.cache import (  # type: ignore[import-not-found,unused-ignore]
        CachePersistenceLayer,
    )

    client: Any = redis.Redis.from_url(url, decode_responses=True)
    context: Any = _Context()
    config = IdempotencyConfig(expires_after_seconds=DAY)
    config.register_lambda_context(context)
    line = Line("powertools")
    line.task(
        idempotent_function(
            data_keyword_argument="order_id",
            persistence_store=CachePersistenceLayer(client=client),
            config=config,
        )(line.body)
    )
    return line


CONTESTANTS = (
    Contestant("plain Celery", "celery", _plain),
    Contestant(
        "celery-idempotent",
        "celery-idempotent",
        _ours,
        "worker",
        "the worker answers with the stored outcome",
        keeps_outcome=True,
        fencing="a token with every claim, checked by every write to the record",
        note="its journal, which another thread writes half a second later, is written at the end "
        "of each of its turns, and timed",
    ),
    Contestant(
        "celery-idempotent, attach",
        "celery-idempotent",
        _attach,
        "enqueue",
        "apply_async gives the AsyncResult of the first call while that is queued or runs, and "
        "afterwards while its result is there (with a look into the result backend each time)",
        keeps_outcome=True,
        fencing="a token with every claim, checked by every write to the record",
        note="idempotency_on_enqueue='attach': a call that is published costs two commands more, "
        "one that reserves its key before that and one that confirms it after that",
    ),
    Contestant(
        "celery-once",
        "celery-once",
        _once,
        "enqueue",
        "apply_async raises AlreadyQueued while the first call is queued or runs; afterwards it "
        "runs again",
        raises=("AlreadyQueued",),
    ),
    Contestant(
        "celery-singleton",
        "celery-singleton",
        _singleton,
        "enqueue",
        "apply_async gives the AsyncResult of the first call while that is queued or runs; "
        "afterwards it runs again",
    ),
    Contestant(
        "celery-heimdall",
        "celery-heimdall",
        _heimdall,
        "enqueue",
        "apply_async gives the AsyncResult of the first call while that is queued or runs; "
        "afterwards it runs again",
        note="unique_lock_blocking=False: by default it waits a second for a lock that is taken, "
        "a run for its own too",
    ),
    Contestant(
        "fencekit",
        "fencekit",
        _fencekit,
        "worker",
        "the worker answers with the stored result",
        keeps_outcome=True,
        fencing="a token with every lock, the completion checked by owner (one a process)",
        note="its fence counter, one key a resource, has no expiry",
    ),
    Contestant(
        "idemkit",
        "idemkit",
        _idemkit,
        "worker",
        "the worker answers with the stored result",
        keeps_outcome=True,
        fencing="a random token with every claim, compared by the completion",
        note="idempotent_sync: its asyncio core on a thread of its own, the body on another",
    ),
    Contestant(
        "AWS Powertools",
        "aws-lambda-powertools",
        _powertools,
        "worker",
        "the worker answers with the stored result",
        keeps_outcome=True,
        note="its first record is written by SET NX, which a run holds for as long as Lambda would "
        "leave it; a completion is a bare SET: a run that lost its claim overwrites the winner's",
    ),
)
