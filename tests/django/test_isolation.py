"""The store django:// works at READ COMMITTED, and says so where its database is set higher."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import create_engine, text

from celery_idempotent import ConfigurationError, IdempotentTask
from celery_idempotent.testing.servers import RedisServer
from tests.support.databases import Database
from tests.support.django_system import DjangoSystem
from tests.support.djangos import database_at, set_up
from tests.support.waiting import eventually

set_up()

# Django has to be set up first.
from django.db import connections  # noqa: E402
from django.db.backends.postgresql.psycopg_any import IsolationLevel  # noqa: E402

from celery_idempotent.django import checks, models  # noqa: E402
from celery_idempotent.django.store import DjangoStore  # noqa: E402

pytestmark = pytest.mark.system


def raise_level_of(database: Database, level: str) -> None:
    """As an administrator does, for whoever connects from now on."""
    engine = create_engine(database.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        name = database.parsed().database
        connection.execute(
            text(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")
        )
    engine.dispose()


def make_app(alias: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(task_always_eager=True, idempotency_store_url=f"django://{alias}")
    monkeypatch.setattr(checks, "celery_app", lambda: app)
    return app


def _another_name_for(alias: str, **settings: Any) -> str:
    name = f"{alias}-{uuid.uuid4().hex[:6]}"
    connections.settings[name] = {**connections.settings[alias], **settings}
    return name


@pytest.mark.parametrize("level", ["REPEATABLE_READ", "SERIALIZABLE"])
@pytest.mark.parametrize("place", ["settings", "database"])
def test_a_level_above_is_refused_with_the_setting_to_write(
    own_postgresql: Database, monkeypatch: pytest.MonkeyPatch, level: str, place: str
) -> None:
    """By ``manage.py check``, which asks the database itself where it may, and at the first use."""
    # Given
    if place == "database":
        raise_level_of(own_postgresql, level.replace("_", " ").lower())
    with database_at(own_postgresql.url) as alias:
        app = make_app(alias, monkeypatch)
        if place == "settings":
            connections[alias].close()
            options = {"isolation_level": IsolationLevel[level]}
            monkeypatch.setitem(connections[alias].settings_dict, "OPTIONS", options)
        # When
        stated = list(checks.check_store())
        found = [*stated, *checks.check_database(databases=[alias])]
        with pytest.raises(ConfigurationError) as refused:
            DjangoStore(alias).ping()
        # Then
        words = str(refused.value)
        assert level.replace("_", " ") in words
        assert f'DATABASES[{alias!r}]["OPTIONS"]' in words
        assert "IsolationLevel.READ_COMMITTED" in words
        assert {(one.id, one.msg) for one in found} == {("celery_idempotent.E001", words)}
        assert bool(stated) == (place == "settings")
        assert list(checks.check_database()) == []

        # And a task says the same, and its body doesn't run
        def body(n: int) -> None:
            pytest.fail("it ran")

        task = app.task(base=IdempotentTask, name="isolation.never", shared=False)(body)
        with pytest.raises(ConfigurationError, match="READ COMMITTED"):
            task.delay(1).get()


def test_with_that_setting_a_body_that_outlives_its_lease_commits(
    own_postgresql: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the database's own default is higher: the renewals are seen."""
    # Given
    raise_level_of(own_postgresql, "serializable")
    with database_at(own_postgresql.url) as alias:
        options = {"isolation_level": IsolationLevel.READ_COMMITTED}
        # A name that the heartbeat's thread has not connected by yet.
        alias = _another_name_for(alias, OPTIONS=options)
        app = make_app(alias, monkeypatch)
        app.conf.idempotency_lease = 1

        def stamp() -> int:
            found: int = models.Record.objects.using(alias).get().stamp
            return found

        def body(n: int) -> int:
            first = stamp()
            eventually(lambda: stamp() != first, "the lease is renewed")
            return n

        task = app.task(base=IdempotentTask, name="isolation.long", shared=False)(body)
        # Then
        assert task.delay(1).get() == 1
        assert checks.check_database(databases=[alias]) == []
        connections[alias].close()
        del connections[alias]
        del connections.settings[alias]


def test_a_worker_does_not_start(
    own_postgresql: Database, redis_server: RedisServer, tmp_path: Path
) -> None:
    """It says why, and takes no message."""
    with database_at(own_postgresql.url) as alias:
        raise_level_of(own_postgresql, "repeatable read")
        system = DjangoSystem(redis_server, alias, tmp_path)
        # When
        worker = system.start("-m", "celery", "-A", "tests.django_project.celery_app", "worker")
        # Then
        assert worker.wait(60) != 0
        assert "IsolationLevel.READ_COMMITTED" in system.log
        assert system.ledger.count("ready") == 0
        system.close()
