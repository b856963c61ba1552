"""Keys where each tenant has a PostgreSQL schema of its own (django-tenants and its like)."""

from __future__ import annotations

from typing import Any

from django.db import connection

__all__ = ["identity_of_tenant", "schema_namespace", "with_schema"]

#: Where tenant-schemas-celery tells a worker which tenant a message is of.
_HEADER = "_schema_name"


def schema_namespace(self: Any, *_: Any, **__: Any) -> str:
    """Name the tenant and the task: two tenants that number their orders alike share no key.

    ::

        CELERY_IDEMPOTENCY_NAMESPACE = schema_namespace
    """
    return f"{connection.schema_name}/{self.name}"


def with_schema(options: dict[str, Any]) -> None:
    """Have a message that is sent later, by a relay, run for the tenant that published it."""
    schema = getattr(connection, "schema_name", None)
    if schema is not None:
        options["headers"] = {_HEADER: schema, **(options.get("headers") or {})}


def identity_of_tenant(identity: Any) -> Any:
    """Tell the users of two tenants apart, who are numbered alike."""
    schema = getattr(connection, "schema_name", None)
    if schema is None or not isinstance(identity, str) or not identity:
        return identity
    return f"{schema}/{identity}"
