"""The isolation level that the store needs: READ COMMITTED.

Above it a transaction sees the database as it was when it began. While a body runs, its heartbeat
renews the lease of its record on another connection. The body's transaction could not write a row
that has changed since it began, so it could never complete its key.
"""

from __future__ import annotations

from typing import Any

from celery_idempotent.errors import ConfigurationError

_FINE = ("read committed", "read uncommitted")


def configured_level(connection: Any) -> str | None:
    """Return the isolation level of the project's settings; ``None`` if they don't set one.

    Raises:
        ConfigurationError: it is too high for the store.
    """
    given = connection.settings_dict.get("OPTIONS", {}).get("isolation_level")
    if given is None:
        return None
    from django.db.backends.postgresql.psycopg_any import IsolationLevel

    level: str = IsolationLevel(given).name.replace("_", " ").lower()
    _refuse_above(level, connection.alias)
    return level


def check_isolation(connection: Any, alias: str) -> None:
    """Check the level of the project's settings, or without one the database's own.

    Raises:
        ConfigurationError: it is too high for the store.
        django.db.Error: the database doesn't answer.
    """
    if connection.vendor != "postgresql" or configured_level(connection) is not None:
        return
    with connection.cursor() as cursor:
        cursor.execute("SHOW default_transaction_isolation")
        (level,) = cursor.fetchone()
    _refuse_above(level, alias)


def _refuse_above(level: str, alias: str) -> None:
    if level not in _FINE:
        raise ConfigurationError(
            f"the store django://{alias} works at READ COMMITTED, and its database is set to "
            f"{level.upper()}, where a body that outlives the first renewal of its lease could "
            "never commit. Write, with IsolationLevel from "
            "django.db.backends.postgresql.psycopg_any,  "
            f'DATABASES[{alias!r}]["OPTIONS"] = '
            '{"isolation_level": IsolationLevel.READ_COMMITTED}, or keep the records elsewhere '
            "(redis://)"
        )
