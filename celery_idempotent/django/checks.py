"""What ``manage.py check`` finds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core import checks
from django.db import connections

from celery_idempotent.django.project import celery_app
from celery_idempotent.django.store import DjangoStore
from celery_idempotent.errors import IdempotencyError
from celery_idempotent.settings import environment_of

__all__ = ["register_all"]

_TAG = "celery_idempotent"


def register_all() -> None:
    """Have Django know of the checks."""
    checks.register(check_store, _TAG)
    checks.register(check_deployment, _TAG, deploy=True)


def check_store(**_: Any) -> Iterable[checks.CheckMessage]:
    """Find what keeps the store from working; it is not asked whether the database answers."""
    found: list[checks.CheckMessage] = []
    try:
        store = environment_of(celery_app()).store
        if isinstance(store, DjangoStore):
            vendor = connections[store.alias].vendor
            assert store.rows is not None
            if vendor == "sqlite" and store.opens_with_body:
                found.append(
                    checks.Info(
                        "on SQLite the bodies of tasks run one after another: each holds the write "
                        "lock until its transaction is committed",
                        hint="use PostgreSQL where tasks have to run side by side",
                        id="celery_idempotent.I001",
                    )
                )
    except IdempotencyError as exc:
        found.append(checks.Error(str(exc), id="celery_idempotent.E001"))
    return found


def check_deployment(**_: Any) -> Iterable[checks.CheckMessage]:
    """Give what ``celery idempotency doctor`` finds: with ``--deploy``, since it asks servers."""
    from celery_idempotent.ops.doctor import examine

    kinds = {"error": checks.Error, "warning": checks.Warning}
    try:
        app = celery_app()
        app.loader.import_default_modules()
        findings = examine(app)
    except IdempotencyError:
        return []  # check_store says it
    return [
        kinds.get(finding.level, checks.Info)(str(finding), id=f"celery_idempotent.{finding.name}")
        for finding in findings
    ]
