"""Django in a test's own process, with databases that come and go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connections

from tests.django_project.configuration import configuration, database
from tests.support.databases import Database

ALIAS = "records"


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
        call_command("migrate", database=ALIAS, verbosity=0, run_syncdb=True)
        yield ALIAS
    finally:
        connections[ALIAS].close()
        del connections[ALIAS]
        del connections.settings[ALIAS]
