"""Whether tenants with a PostgreSQL schema each are kept apart by their tasks' keys."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

from celery_idempotent.core.keys import MESSAGE_ID
from celery_idempotent.ops.doctor.findings import ERROR, Finding, Patient, Task, about

#: Django apps that give each tenant a schema.
_PACKAGES: Final = ("django_tenants", "tenant_schemas")
_OURS: Final = "celery_idempotent.django"
_NAMES: Final = ("tenant", "schema")


def check_tenants(patient: Patient) -> Iterator[Finding]:
    """Check a Django project with a schema for each tenant; any other has nothing to check."""
    settings = _settings()
    if settings is None:
        return
    mixed = [task for task in patient.tasks if not _names_tenant(task)]
    if mixed:
        yield Finding(
            "tenants-share-keys",
            ERROR,
            f"each tenant has a schema of its own, and the keys of {about(mixed)} don't name it",
            "Two tenants that number their things alike make one call: the second one is not run, "
            "and gets the first one's result.",
            "Name the schema in the namespace, with schema_namespace from "
            "celery_idempotent.django.tenants",
            "CELERY_IDEMPOTENCY_NAMESPACE = schema_namespace",
        )
    shared, own = (_apps(settings, name) for name in ("SHARED_APPS", "TENANT_APPS"))
    if _OURS in own and _OURS not in shared:
        yield Finding(
            "tables-per-tenant",
            ERROR,
            f"TENANT_APPS has {_OURS}: each tenant has tables of its own for keys and outbox",
            "What renews the leases, and the relay, belong to no tenant: they don't find those "
            "tables, so long runs lose their keys and no message is sent.",
            "Move it",
            f"SHARED_APPS = [..., {_OURS!r}]",
        )


def _names_tenant(task: Task) -> bool:
    options = task.options
    if options.key is MESSAGE_ID or callable(options.key) or callable(options.namespace):
        return True
    words = f"{options.key} {options.namespace}".lower()
    is_template = isinstance(options.namespace, str) and "{" in options.namespace
    return is_template or any(name in words for name in _NAMES)


def _apps(settings: Any, name: str) -> list[str]:
    # An app may be named by its configuration: "celery_idempotent.django.apps.IdempotencyConfig".
    return [str(app).partition(".apps.")[0] for app in getattr(settings, name, ())]


def _settings() -> Any:
    conf = sys.modules.get("django.conf")
    if conf is None or not conf.settings.configured:
        return None
    return conf.settings if set(_apps(conf.settings, "INSTALLED_APPS")) & {*_PACKAGES} else None
