"""What names an SQL store, and what is said of a name or an option that is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.pool import NullPool

from celery_idempotent.errors import ConfigurationError, StoreUnavailable
from celery_idempotent.stores.deciding import fit
from celery_idempotent.stores.sql.engines import Engines
from celery_idempotent.stores.sql.store import SqlStore
from celery_idempotent.stores.urls import store_from_url


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("postgresql://db/app", "postgresql+psycopg"),
        ("postgresql+psycopg://db/app", "postgresql+psycopg"),
        ("postgres://db/app", "postgresql+psycopg"),
        ("mysql://db/app", "mysql+pymysql"),
        ("mysql+pymysql://db/app", "mysql+pymysql"),
        ("mariadb://db/app", "mysql+pymysql"),
        ("sqlite:////tmp/records.db", "sqlite+pysqlite"),
    ],
)
def test_each_database_has_its_driver(url: str, driver: str) -> None:
    """The driver may be left out; nothing is connected yet."""
    # When
    store = store_from_url(url)
    # Then
    assert isinstance(store, SqlStore)
    assert store.engines.own.url.drivername == driver
    assert store.engines.sessions.url.drivername == driver


@pytest.mark.parametrize("url", ["postgresql+asyncpg://db/app", "mysql+mysqldb://db/app"])
def test_a_driver_that_is_not_tested_is_refused(url: str) -> None:
    """The error says which one is used."""
    with pytest.raises(ConfigurationError, match=r"the store uses (psycopg|pymysql)"):
        store_from_url(url)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    """It would be another one for each connection."""
    with pytest.raises(ConfigurationError, match="name a file"):
        store_from_url(url)


@pytest.mark.parametrize(
    "url", ["postgresql://user:secret@db:x/app", "mysql://user:secret@db:port/app"]
)
def test_a_url_that_cannot_be_read_shows_no_password(url: str) -> None:
    """The error is shown in logs."""
    with pytest.raises(ConfigurationError) as caught:
        store_from_url(url)
    assert "secret" not in str(caught.value)


def test_a_store_that_is_away_shows_no_password() -> None:
    """Nor is the error that waits in a task's log."""
    # Given
    store = store_from_url("postgresql://user:secret@127.0.0.1:1/app")
    # When
    with pytest.raises(StoreUnavailable) as caught:
        store.ping()
    # Then
    assert "secret" not in str(caught.value)
    assert not caught.value.may_have_arrived


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": "5"}, "timeout is '5'"),
        ({"pool_sise": 5}, "pool_sise"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], said: str) -> None:
    """At once, not when the first task runs."""
    with pytest.raises(ConfigurationError, match=said):
        store_from_url("postgresql://db/app", options)


def test_options_are_those_of_create_engine(tmp_path: Path) -> None:
    """A pool of one's own, and arguments of the driver beside the store's own."""
    # When
    engines = Engines(f"sqlite:///{tmp_path / 'records.db'}", {"poolclass": NullPool})
    # Then
    assert isinstance(engines.own.pool, NullPool)
    assert isinstance(engines.sessions.pool, NullPool)


@pytest.mark.parametrize("missing", ["sqlalchemy", "psycopg"])
def test_a_missing_package_is_named_with_its_extra(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to install."""
    # Given
    for name in list(sys.modules):
        ours = name.startswith("celery_idempotent.stores.sql")
        if name.split(".")[0] == missing or (missing == "sqlalchemy" and ours):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    # Then
    with pytest.raises(ConfigurationError, match=rf"{missing}.*celery-idempotent\[sql\]"):
        store_from_url("postgresql://db/app")


def test_names_that_do_not_fit_stay_apart() -> None:
    """What is too long or not plain is stored under a digest, and short names as they are."""
    # Given
    names = ["a", "a ", "ä", "ae", "x" * 400, "x" * 401, "x" * 402, "~", ""]
    # When
    stored = [fit(name) for name in names]
    # Then
    assert stored[0] == "a"
    assert stored[4] == "x" * 400
    assert len(set(stored)) == len(names)
    assert all(name.isascii() and 0 < len(name) <= 400 for name in stored)
