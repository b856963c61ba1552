"""Django in a test's own process, with databases that come and go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connections, transaction

from tests.django_project.configuration import configuration, database
from tests.support.databases import Database

ALIAS = "records"

#: What the migrations told each kind of database, in order: the next one is told the same.
_told: dict[str, list[tuple[str, Any]]] = {}
#: How statements begin that make nothing.
_MAKE_NOTHING = ("BEGIN", "PRAGMA", "RELEASE", "SAVEPOINT", "SELECT", "SET", "SHOW")


def set_up() -> None:
    """Set Django up, once, without an environment variable that Celery would take to mean more."""
    if not settings.configured:
        settings.configure(**configuration("sqlite:///:memory:"))
        django.setup()


@contextmanager
def database_of(kind: str, directory: Path) -> Iterator[str]:
    """A database of its own under an alias, with all tables."""
    made = Database(kind, directory)
    try:
        with database_at(made.url) as alias:
            yield alias
    finally:
        if kind != "sqlite":
            made.drop()


@contextmanager
def database_at(url: str) -> Iterator[str]:
    """An empty database under an alias, with all tables."""
    set_up()
    one: dict[str, Any] = {"default": {}, ALIAS: database(url)}
    connections.settings[ALIAS] = connections.configure_settings(one)[ALIAS]
    try:
        _migrate(connections[ALIAS])
        yield ALIAS
    finally:
        connections[ALIAS].close()
        del connections[ALIAS]
        del connections.settings[ALIAS]


def _migrate(connection: Any) -> None:
    """Make all tables: by the migrations, and from then on by the statements that they came to."""
    told = _told.get(connection.vendor)
    if told is not None:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            for statement, parameters in told:
                cursor.execute(statement, parameters)
        return
    heard: list[tuple[str, Any]] = []

    def hear(execute: Any, sql: str, parameters: Any, many: bool, context: Any) -> Any:
        assert not many, sql
        if not sql.lstrip().startswith(_MAKE_NOTHING):
            heard.append((sql, parameters))
        return execute(sql, parameters, many, context)

    with connection.execute_wrapper(hear):
        call_command("migrate", database=connection.alias, verbosity=0, run_syncdb=True)
    _told[connection.vendor] = heard
