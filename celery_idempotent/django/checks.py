"""The checks of ``manage.py check``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from django.core import checks
from django.db import Error, connections

from celery_idempotent.django.isolation import check_isolation, configured_level
from celery_idempotent.django.project import celery_app
from celery_idempotent.django.store import DjangoStore
from celery_idempotent.errors import IdempotencyError
from celery_idempotent.settings import environment_of
from celery_idempotent.worker.boot import check_names

_TAG = "celery_idempotent"


_ONE_AFTER_ANOTHER: Final = checks.Info(
    "on SQLite the bodies of tasks run one after another: each holds the write lock until its "
    "transaction is committed",
    hint="use PostgreSQL where tasks have to run side by side",
    id="celery_idempotent.I001",
)


def register_all() -> None:
    """Register the checks with Django."""
    checks.register(check_store, _TAG)
    checks.register(check_database, _TAG, checks.Tags.database)
    checks.register(check_deployment, _TAG, deploy=True)


def check_store(**_: Any) -> Iterable[checks.CheckMessage]:
    """Report settings with which the store can't work, and options that nothing reads.

    It does not connect to the database.
    """
    found: list[checks.CheckMessage] = []
    try:
        app = celery_app()
        check_names(app)
        store = environment_of(app).store
        if isinstance(store, DjangoStore):
            connection = connections[store.alias]
            if connection.vendor == "postgresql":
                configured_level(connection)  # check --database reads the database's own level
    except IdempotencyError as exc:
        found.append(checks.Error(str(exc), id="celery_idempotent.E001"))
    return found


def check_database(databases: Sequence[str] | None = None, **_: Any) -> list[checks.CheckMessage]:
    """Report what the database lacks for the store: on ``check --database`` and ``migrate``."""
    try:
        store = environment_of(celery_app()).store
        if isinstance(store, DjangoStore) and store.alias in (databases or ()):
            connection = connections[store.alias]
            check_isolation(connection, store.alias)
            # Here, and not above: those are printed by each command of the project.
            if connection.vendor == "sqlite" and store.opens_with_body:
                return [_ONE_AFTER_ANOTHER]
    except IdempotencyError as exc:
        return [checks.Error(str(exc), id="celery_idempotent.E001")]
    except Error:
        return []  # Django itself reports that the database doesn't answer
    return []


def check_deployment(**_: Any) -> Iterable[checks.CheckMessage]:
    """Report what ``celery idempotency doctor`` finds: with ``--deploy``, since it asks servers."""
    from celery_idempotent.ops.doctor import examine

    kinds = {"error": checks.Error, "warning": checks.Warning}
    try:
        app = celery_app()
        app.loader.import_default_modules()
        findings = examine(app)
    except IdempotencyError:
        return []  # check_store reports it
    return [
        kinds.get(finding.level, checks.Info)(str(finding), id=f"celery_idempotent.{finding.name}")
        for finding in findings
    ]
