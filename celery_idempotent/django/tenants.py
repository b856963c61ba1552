"""Keys where each tenant has a PostgreSQL schema of its own (django-tenants and its like)."""

from __future__ import annotations

from typing import Any

from django.db import connection

__all__ = ["identity_of_tenant", "schema_namespace", "with_schema"]

#: The header in which tenant-schemas-celery sends a message's tenant to the worker.
_HEADER = "_schema_name"


def schema_namespace(self: Any, *_: Any, **__: Any) -> str:
    """Return the tenant and the task, so that tenants with the same order numbers share no key.

    ::

        CELERY_IDEMPOTENCY_NAMESPACE = schema_namespace
    """
    return f"{connection.schema_name}/{self.name}"


def with_schema(options: dict[str, Any]) -> None:
    """Add the current tenant to a message that a relay will send, so that it runs for it."""
    schema = getattr(connection, "schema_name", None)
    if schema is not None:
        options["headers"] = {_HEADER: schema, **(options.get("headers") or {})}


def identity_of_tenant(identity: Any) -> Any:
    """Add the tenant to an identity, because users of two tenants may have the same number."""
    schema = getattr(connection, "schema_name", None)
    if schema is None or not isinstance(identity, str) or not identity:
        return identity
    return f"{schema}/{identity}"
