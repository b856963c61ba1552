"""Fixtures for the tests of the Django app."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_idempotent.testing.servers import RedisServer
from tests.support.databases import POSTGRESQL
from tests.support.django_system import DjangoSystem
from tests.support.djangos import database_of


@pytest.fixture(params=[POSTGRESQL, "sqlite"])
def system(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path
) -> Iterator[DjangoSystem]:
    """A project with an account of ann's, on an empty database of each kind."""
    with database_of(request.param, tmp_path) as alias:
        from tests.django_project.shop.models import Account

        Account.objects.using(alias).create(name="ann")
        made = DjangoSystem(redis_server, alias, tmp_path)
        yield made
        made.close()
