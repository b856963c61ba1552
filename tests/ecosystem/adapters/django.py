"""Packages of a Django project."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from celery import Celery

from celery_idempotent import IdempotentTask
from tests.ecosystem.adapter import Adapter, Figure
from tests.ecosystem.beat import Beat
from tests.ecosystem.world import World

__all__ = ["DatabaseBeat", "Results", "Structlog", "Tenants"]

Note = Callable[..., None]


class _Project(Adapter):
    """A project with a database of its own, which is made before the worker starts."""

    def environment(self) -> dict[str, str]:
        return {"DJANGO_SETTINGS_MODULE": "tests.ecosystem.django_settings"}

    def django(self) -> dict[str, Any]:
        """Return Django's settings."""
        return {
            "SECRET_KEY": "for tests only",
            "USE_TZ": True,
            "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
            "INSTALLED_APPS": self.apps(),
            "DATABASES": {
                "default": {
                    "ENGINE": "django.db.backends.sqlite3",
                    "NAME": str(self.directory / "shop.db"),
                    "OPTIONS": {"timeout": 30, "transaction_mode": "IMMEDIATE"},
                }
            },
        }

    def apps(self) -> list[str]:
        """The apps of the project."""
        return []

    def prepare(self) -> None:
        import django

        django.setup()
        made = self.directory / "migrated"
        if not made.exists():
            self.migrate()
            made.touch()

    def migrate(self) -> None:
        """Make the tables."""
        from django.core.management import call_command

        call_command("migrate", verbosity=0)


class Results(_Project):
    """django-celery-results: a row a call."""

    def apps(self) -> list[str]:
        return ["django_celery_results"]

    def settings(self) -> dict[str, Any]:
        return {"result_backend": "django-db", "result_extended": True}

    def figures(self, world: World) -> Iterator[Figure]:
        from django_celery_results.models import TaskResult

        rows = {row.task_id: row for row in TaskResult.objects.all()}
        states = {task_id: rows[task_id].status for task_id in world.calls if task_id in rows}
        expected = {
            task_id: "FAILURE" if task_id in world.failures else "SUCCESS"
            for task_id in world.calls
        }
        yield Figure("the state of each call", states, expected)
        named = {row.task_name for row in rows.values()}
        yield Figure("tasks", named, {f"shop.{it}" for it in _SHARED})


#: The tasks that the shared cases call.
_SHARED = ("charge", "flaky", "decline", "total", "tail")


class DatabaseBeat(Beat, _Project):
    """django-celery-beat: the schedule is in the database."""

    def apps(self) -> list[str]:
        return ["django_celery_beat"]

    def beat_options(self) -> list[str]:
        return [*super().beat_options(), "-S", "django_celery_beat.schedulers:DatabaseScheduler"]

    def counted(self, world: World) -> int:
        from django_celery_beat.models import PeriodicTask

        return int(PeriodicTask.objects.get(name="tick").total_run_count)


class Structlog(_Project):
    """django-structlog: a line for each thing that becomes of a task, and for whose request."""

    def apps(self) -> list[str]:
        return ["django_structlog"]

    def django(self) -> dict[str, Any]:
        return {**super().django(), "DJANGO_STRUCTLOG_CELERY_ENABLED": True}

    def install(self, app: Celery, note: Note) -> None:
        import structlog
        from django_structlog.celery.steps import DjangoStructLogInitStep

        app.steps["worker"].add(DjangoStructLogInitStep)

        def noting(_: Any, __: str, line: dict[str, Any]) -> Any:
            fields = ("task_id", "child_task_id", "request_id", "task")
            note(f"line {line['event']}", **{it: line.get(it) for it in fields})
            raise structlog.DropEvent

        structlog.configure(
            processors=[structlog.contextvars.merge_contextvars, noting],
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=structlog.stdlib.LoggerFactory(),
        )

    def cases(self) -> list[Callable[[World], None]]:
        def each_line_has_the_request_of_its_caller(world: World) -> None:
            """Also where the call waited, and the worker put it back."""
            import structlog

            # Given
            sent = {}
            for role in ("run", "duplicate"):
                with structlog.contextvars.bound_contextvars(request_id=f"request of the {role}"):
                    sent[role] = world.call("charge", 20, role, gate="request")
                world.ledger.wait_for("start", order=20)
            # When
            world.ledger.wait_for("finished", id=sent["duplicate"].id, state="RETRY")
            world.ledger.open("request")
            world.answers(list(sent.values()))
            # Then
            assert world.effects(20) == 1
            for role, call in sent.items():
                for event in ("line task_started", "line task_succeeded"):
                    lines = world.ledger.entries(event, task_id=call.id)
                    assert lines, event
                    assert {it["request_id"] for it in lines} == {f"request of the {role}"}

        return [each_line_has_the_request_of_its_caller]

    def figures(self, world: World) -> Iterator[Figure]:
        ledger = world.ledger
        for event, state in (
            ("succeeded", "SUCCESS"),
            ("failed", "FAILURE"),
            ("retrying", "RETRY"),
        ):
            lines = sorted(it["task_id"] for it in ledger.entries(f"line task_{event}"))
            ended = sorted(it["id"] for it in ledger.entries("finished", state=state))
            yield Figure(f"lines of tasks that are {event}", lines, ended)


class Tenants(_Project):
    """django-tenants and tenant-schemas-celery: a PostgreSQL schema for each tenant."""

    def _server(self) -> dict[str, str]:
        url = os.environ.get(
            "CELERY_IDEMPOTENT_TEST_POSTGRESQL_URL",
            "postgresql+psycopg://postgres@127.0.0.1:5432/postgres",
        )
        found = re.fullmatch(r"[^:]+://([^:@]*)(?::([^@]*))?@([^:/]*)(?::(\d+))?/(.*)", url)
        assert found is not None, url
        user, password, host, port, name = (part or "" for part in found.groups())
        return {"user": user, "password": password, "host": host, "port": port, "dbname": name}

    def _tell(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(**self._server(), autocommit=True) as connection:
            connection.execute(statement)

    @property
    def _name(self) -> str:
        return "ecosystem_" + re.sub(r"\W", "_", self.directory.name).lower()

    def start(self) -> None:
        self._tell(f'CREATE DATABASE "{self._name}"')

    def stop(self) -> None:
        from django.db import connections

        connections.close_all()
        self._tell(f'DROP DATABASE IF EXISTS "{self._name}" WITH (FORCE)')

    def django(self) -> dict[str, Any]:
        server = self._server()
        shared = ["django_tenants", "django.contrib.contenttypes", "tests.tenants_project"]
        return {
            **super().django(),
            "SHARED_APPS": shared,
            "INSTALLED_APPS": shared,
            "TENANT_APPS": ["django.contrib.contenttypes"],
            "TENANT_MODEL": "tenants_project.Client",
            "TENANT_DOMAIN_MODEL": "tenants_project.Domain",
            "DATABASE_ROUTERS": ["django_tenants.routers.TenantSyncRouter"],
            "DATABASES": {
                "default": {
                    "ENGINE": "django_tenants.postgresql_backend",
                    "NAME": self._name,
                    **{it.upper(): server[it] for it in ("user", "password", "host", "port")},
                }
            },
        }

    def migrate(self) -> None:
        from django.core.management import call_command

        from tests.tenants_project.models import Client

        call_command("migrate_schemas", shared=True, run_syncdb=True, verbosity=0)
        for name in ("north", "south"):
            Client.objects.create(schema_name=name)

    def make_app(self) -> Celery:
        from tenant_schemas_celery.app import CeleryApp

        from celery_idempotent.django.tenants import schema_namespace

        app: Celery = CeleryApp("shop")
        app.conf.idempotency_namespace = schema_namespace
        return app

    def base(self) -> type[IdempotentTask]:
        from tenant_schemas_celery.task import TenantTask

        class Task(IdempotentTask, TenantTask):  # type: ignore[misc]
            abstract = True

        return Task

    def install(self, app: Celery, note: Note) -> None:
        @app.task(name="shop.pay", base=self.base(), bind=True, idempotency_key="order:{order}")
        def pay(self: Any, order: int) -> str:
            from django.db import connection

            note("effect", order=order, id=self.request.id, schema=connection.schema_name)
            return f"{connection.schema_name} paid {order}"

    def cases(self) -> list[Callable[[World], None]]:
        def tenants_with_the_same_number_are_apart(world: World) -> None:
            """Each gets the result of its own run, and so does its duplicate."""
            from django_tenants.utils import schema_context

            # When
            calls = []
            for role in ("run", "duplicate"):
                for name in ("north", "south"):
                    with schema_context(name):
                        calls.append(world.call("pay", 20, role))
                world.answers(calls)
            # Then
            assert world.answers(calls) == ["north paid 20", "south paid 20"] * 2
            assert world.effects(20) == 2

        return [tenants_with_the_same_number_are_apart]

    def figures(self, world: World) -> Iterator[Figure]:
        ran = sorted(it["schema"] for it in world.ledger.entries("effect", order=20))
        yield Figure("tenants for whom it ran", ran, ["north", "south"])
