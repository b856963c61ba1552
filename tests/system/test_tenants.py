"""Tenants with a PostgreSQL schema each, by django-tenants and tenant-schemas-celery."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from celery_idempotent.testing.servers import RedisServer
from tests.support import warm
from tests.support.brokers import RedisBroker
from tests.support.databases import Database
from tests.support.ledger import Ledger
from tests.support.tasks import SETTINGS_VARIABLE
from tests.support.waiting import eventually
from tests.support.workers import ROOT


class Tenants:
    """The project, with the tenants north and south."""

    def __init__(
        self, server: RedisServer, database: Database, directory: Path, **settings: Any
    ) -> None:
        self.ledger = Ledger(directory / "ledger")
        celery = {
            **RedisBroker(server).settings(60),
            "result_backend": server.url(1),
            "idempotency_store_url": "django://",
        }
        self._environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.tenants_project.settings",
            SETTINGS_VARIABLE: json.dumps(
                {
                    "url": database.url,
                    "TEST_LEDGER": str(self.ledger.path),
                    **{f"CELERY_{name.upper()}": value for name, value in celery.items()},
                    **settings,
                }
            ),
        }
        self._log = directory / "worker.log"
        self._worker: warm.Process | None = None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return warm.run(["-m", *command], cwd=ROOT, env=self._environment)

    def produce(self, what: str) -> Any:
        """Make the calls of north and south, twice each, and give their results; or the tables."""
        done = self.run("tests.tenants_project.produce", what)
        assert done.returncode == 0, f"{done.stderr}\n{self._log.exists() and self.log}"
        return None if what == "migrate" else json.loads(done.stdout.splitlines()[-1])

    def start_worker(self) -> None:
        with open(self._log, "wb") as log:
            self._worker = warm.start(
                ["-m", "celery", "-A", "tests.tenants_project.celery_app"]
                + ["worker", "--concurrency", "2", "--loglevel", "INFO"],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
            )
        worker = self._worker
        eventually(
            lambda: self.ledger.count("ready") or worker.poll() is not None, "it is ready", 60
        )
        assert worker.poll() is None, self.log

    def close(self) -> None:
        if self._worker is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._worker.pid, signal.SIGKILL)
            self._worker.wait()


@pytest.fixture
def make_tenants(redis_server: RedisServer, tmp_path: Path) -> Iterator[Callable[..., Tenants]]:
    """Make the project on an empty database, its tables and tenants made."""
    made: list[Any] = []

    def make(**settings: Any) -> Tenants:
        database = Database("postgresql", tmp_path)
        tenants = Tenants(redis_server, database, tmp_path, **settings)
        made.extend((database.drop, tenants.close))
        tenants.produce("migrate")
        return tenants

    yield make
    for close in reversed(made):
        close()


@pytest.mark.parametrize("store", ["redis", "django"])
def test_tenants_with_the_same_numbers_are_apart(
    make_tenants: Callable[..., Tenants], redis_server: RedisServer, store: str
) -> None:
    """Each gets the result of its own run, and each one's duplicate its first result."""
    # Given
    url = "django://" if store == "django" else redis_server.url(2)
    tenants = make_tenants(CELERY_IDEMPOTENCY_STORE_URL=url)
    tenants.start_worker()
    # When
    results = tenants.produce("calls")
    # Then
    assert results == ["north paid 1", "south paid 1"] * 2
    ran = [(entry["tenant"], entry["key"]) for entry in tenants.ledger.entries("start")]
    assert sorted(ran) == [("north", 1), ("south", 1)]
    # And what the outbox's relay sends, which belongs to no tenant, runs for whom published it
    assert tenants.produce("outbox") == ["north paid 7", "south paid 7"] * 2
    assert tenants.ledger.count("start", key=7) == 2


def test_a_namespace_that_does_not_name_the_schema_is_found(
    make_tenants: Callable[..., Tenants],
) -> None:
    """By the doctor, with what to write, since one tenant gets another's result."""
    # Given
    tenants = make_tenants(names_schema=False)
    # Then
    checked = tenants.run("django", "idempotency", "doctor")
    assert "tenants-share-keys" in checked.stdout, checked.stderr
    assert "CELERY_IDEMPOTENCY_NAMESPACE = schema_namespace" in checked.stdout
    # And so it is
    tenants.start_worker()
    assert len(set(tenants.produce("calls"))) == 1
    assert "tenants-share-keys" in tenants.log


def test_with_the_namespace_nothing_is_found(make_tenants: Callable[..., Tenants]) -> None:
    """Tables in every tenant's schema are, whose leases nobody would renew."""
    tenants = make_tenants(
        SHARED_APPS=["django_tenants", "django.contrib.contenttypes", "tests.tenants_project"],
        TENANT_APPS=["django.contrib.contenttypes", "celery_idempotent.django"],
    )
    checked = tenants.run("django", "idempotency", "doctor").stdout
    assert "tables-per-tenant" in checked
    assert "tenants-share-keys" not in checked
