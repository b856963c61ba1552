"""What a worker checks when it starts, and completes when it stops."""

from __future__ import annotations

from typing import Any, Final

from celery import Task, bootsteps, signals
from kombu.utils.imports import symbol_by_name

from celery_idempotent.core.options import check_plain
from celery_idempotent.errors import ConfigurationError
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.run.shutdown import shutdown
from celery_idempotent.settings import check_conf, environment_of

# kombu has no types for it.
_resolve: Any = symbol_by_name

#: How long a process that ends tries to write what the store did not take before, in seconds.
_STOPPED_S: Final = 5.0
#: The same for a pool process that is replaced after its number of tasks: nobody waits for it.
_RECYCLED_S: Final = 30.0
#: By name: the module is in a layer above this one, which must not import it.
_CHECK_UP: Final = "celery_idempotent.ops.check_up:CheckUpStep"


class NamesStep(bootsteps.StartStopStep):
    """Refuses to start a worker where one of our options is set but nothing reads it."""

    requires = ("celery.worker.components:Pool",)

    def create(self, parent: Any) -> None:
        """Check the names of settings and of tasks' options.

        Raises:
            ConfigurationError: there is such an option.
        """
        check_names(parent.app)


def check_names(app: Any) -> None:
    """Check that every name that looks like one of our options is one that is read.

    Raises:
        ConfigurationError: a setting is misspelt, or a plain task has an option of ours.
    """
    check_conf(app)
    for name in sorted(app.tasks):
        kind = type(app.tasks[name])
        if not _is_ours(kind) and not name.startswith("celery."):
            names = {it for klass in kind.__mro__ if klass is not Task for it in vars(klass)}
            check_plain(names, f"task {name!r}")


def _is_ours(kind: type) -> bool:
    return hasattr(kind, "_idempotency")


class IdempotencyStep(bootsteps.StartStopStep):
    """Refuses to start a worker whose tasks could only wait, or would not be guarded."""

    requires = ("celery.worker.components:Pool",)

    def create(self, parent: Any) -> None:
        """Find the store; nothing is connected yet.

        Raises:
            ConfigurationError: there is no store, or it can't serve this pool; or the pool, or a
                task's own ``Request``, bypasses the guard.
        """
        environment = environment_of(parent.app)
        pool = getattr(parent.pool_cls, "__module__", "")
        if not environment.store.is_shared and pool.endswith("prefork"):
            raise ConfigurationError(
                f"idempotency_store_url is {environment.where}, which the processes of a prefork "
                "pool can't share: use Redis, or the pool 'solo' or 'threads'"
            )
        if pool.startswith("celery_aio_pool"):
            raise ConfigurationError(
                "the pool celery_aio_pool gives all deliveries one request, so that only the first "
                "one would be guarded: use prefork, threads, gevent, eventlet or solo"
            )
        for name in sorted(parent.app.tasks):
            task = parent.app.tasks[name]
            if _is_ours(type(task)) and task._idempotency is not None:
                _check_request(task)
        shutdown.watch()
        signals.worker_shutting_down.connect(_announce, dispatch_uid="celery-idempotent-shutdown")
        # Only a worker has what this imports.
        from celery_idempotent.worker.request import watch_revokes

        watch_revokes()

    def stop(self, parent: Any) -> None:
        """Tell the pool that the worker shuts down; write what the store has not taken yet."""
        shutdown.announce()
        _flush()


def _check_request(task: Any) -> None:
    from celery_idempotent.worker.request import IdempotentRequest

    request = _resolve(task.Request)
    if not (isinstance(request, type) and issubclass(request, IdempotentRequest)):
        raise ConfigurationError(
            f"task {task.name!r}: its Request, {task.Request!r}, is not ours: a key whose process "
            "was killed would be blocked for a whole lease, and Flower would show no duplicate: "
            "derive it from celery_idempotent.request.IdempotentRequest"
        )


def install(app: Any) -> None:
    """Add the steps to the app's workers; flush each pool process when it ends."""
    app.steps["worker"].add(NamesStep)
    app.steps["worker"].add(IdempotencyStep)
    app.steps["worker"].add(_CHECK_UP)
    signals.worker_process_shutdown.connect(_flush, dispatch_uid="celery-idempotent-flush")


def _announce(**_: Any) -> None:
    shutdown.announce()


def _flush(exitcode: int | None = None, **_: Any) -> None:
    from billiard.pool import EX_RECYCLE  # only a process of the pool needs it

    heartbeat.finish(_RECYCLED_S if exitcode == EX_RECYCLE else _STOPPED_S)
