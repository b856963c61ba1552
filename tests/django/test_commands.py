"""What the commands say in a Django project: its own commands, and not Celery's."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.support import warm
from tests.support.django_system import DjangoSystem
from tests.support.djangos import set_up
from tests.support.records import StoredRecords
from tests.support.workers import ROOT

set_up()

# Django has to be set up first.
from celery_idempotent.django.management.commands.idempotency import Command  # noqa: E402
from celery_idempotent.django.store import DjangoStore  # noqa: E402

ON_SQLITE = pytest.mark.parametrize("system", ["sqlite"], indirect=True)


def celery(system: DjangoSystem, *command: str) -> str:
    """What Celery's own command says on stderr."""
    program = ["-m", "celery", "-A", "tests.django_project.celery_app", "idempotency", *command]
    return warm.run(program, cwd=ROOT, env=system.environment).stderr


@pytest.mark.system
@ON_SQLITE
def test_celerys_commands_name_those_of_the_project(system: DjangoSystem) -> None:
    """Tables are made by migrate, and the outbox is read by Django's relay."""
    assert "are made by manage.py migrate --database default" in celery(system, "init-db")
    assert "`manage.py idempotency relay` sends its calls" in celery(system, "relay", "--status")


@pytest.mark.system
@ON_SQLITE
def test_advice_is_by_the_command_that_gives_it(system: DjangoSystem) -> None:
    """Who asks manage.py can copy what it says; it prints no notes of the checks beside it."""
    # Given
    name = StoredRecords(DjangoStore(system.alias), "idempotent").unknown(
        "payment:9", "shop.deposit"
    )
    resolve = f"idempotency resolve {shlex.quote(name)} --rerun"
    # When
    shown = system.manage("idempotency", "show", "payment:9", "--text")
    # Then
    assert f"  manage.py {resolve}" in shown.stdout, shown.stderr
    assert shown.stderr == ""
    # And
    program = ["-m", "celery", "-A", "tests.django_project.celery_app", "idempotency"]
    by_celery = warm.run(
        [*program, "show", "payment:9", "--text"], cwd=ROOT, env=system.environment
    )
    assert f"  celery -A ... {resolve}" in by_celery.stdout, by_celery.stderr


@pytest.mark.system
@ON_SQLITE
def test_what_sqlite_limits_is_told_where_the_database_is_checked(system: DjangoSystem) -> None:
    """With --database and on migrate; no other command of the project prints it."""
    told = [
        "celery_idempotent.I001" in system.manage(*command).stderr
        for command in (["check"], ["check", "--database", "default"], ["migrate"])
    ]
    assert told == [False, True, True]


def test_the_documentation_names_each_command() -> None:
    """Whoever reads the page knows them all."""
    parser = Command().create_parser("manage.py", "idempotency")
    (choices,) = (it.choices for it in parser._actions if it.dest == "command")
    page = Path(ROOT, "docs", "django.rst").read_text()
    assert choices is not None
    assert [name for name in choices if f"``{name}``" not in page] == []
