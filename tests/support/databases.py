"""Databases for tests: one of its own for a whole run, on a server that has to be there."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, Executable, create_engine, delete, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from celery_idempotent.stores.sql.schema import metadata
from celery_idempotent.stores.sql.store import SqlStore
from tests.support.missing import NotThere

POSTGRESQL_VARIABLE = "CELERY_IDEMPOTENT_TEST_POSTGRESQL_URL"
MYSQL_VARIABLE = "CELERY_IDEMPOTENT_TEST_MYSQL_URL"
_SERVERS = {
    "postgresql": (
        POSTGRESQL_VARIABLE,
        "postgresql+psycopg://postgres@127.0.0.1:5432/postgres",
        "service postgresql start",
    ),
    "mysql": (MYSQL_VARIABLE, "mysql+pymysql://root@127.0.0.1:3306/mysql", "service mariadb start"),
}

#: The marks of a test that needs a server of databases. Every version has to pass it, too.
ON_A_SERVER = (pytest.mark.system, pytest.mark.matrix)
POSTGRESQL, MYSQL = (pytest.param(kind, marks=ON_A_SERVER) for kind in _SERVERS)
ON_SERVERS = pytest.mark.parametrize("database", [POSTGRESQL, MYSQL], indirect=True)


#: The connections by which databases are emptied.
_emptying: dict[URL, Engine] = {}


class Database:
    """A database of its own, ``url``; :meth:`drop` removes it.

    Args:
        kind: ``"postgresql"``, ``"mysql"`` (MySQL or MariaDB), or ``"sqlite"``.
        directory: where SQLite's file goes.

    Raises:
        NotThere: the server is not.
    """

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        if kind == "sqlite":
            file = directory / f"records-{uuid.uuid4().hex[:8]}.db"
            file.touch()
            self.url = f"sqlite:///{file}"
            return
        variable, default, start = _SERVERS[kind]
        self._server = make_url(os.environ.get(variable, default))
        self._name = f"idempotent_test_{uuid.uuid4().hex[:8]}"
        url = self._server.set(database=self._name)
        self.url = url.render_as_string(hide_password=False)
        try:
            self._tell(f"CREATE DATABASE {self._name}")
        except DBAPIError as exc:
            place = f"{self._server.host}:{self._server.port}"
            raise NotThere(
                f"no {kind} at {place}: start one ({start}), or name another with {variable}: "
                f"{exc.orig}"
            ) from exc
        if kind == "postgresql":
            # A test's data need not outlive the server, and flushing takes most of its time.
            self._tell(f"ALTER DATABASE {self._name} SET synchronous_commit = off")

    def parsed(self) -> URL:
        """Its URL in parts."""
        return make_url(self.url)

    def drop(self) -> None:
        """Remove it, whoever is still connected."""
        for url in [url for url in _emptying if url.database == self.parsed().database]:
            _emptying.pop(url).dispose()
        if self.kind == "postgresql":
            self._tell(f"DROP DATABASE IF EXISTS {self._name} WITH (FORCE)")
        elif self.kind == "mysql":
            self._tell(f"DROP DATABASE IF EXISTS {self._name}")

    def _tell(self, statement: str) -> None:
        engine = create_engine(self._server, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.execute(text(statement))
        finally:
            engine.dispose()


def emptied(store: SqlStore, *then: Executable) -> SqlStore:
    """Give the store with its tables, which are empty; ``then`` is executed with that.

    All of it is one transaction: a commit may have to wait for a disk.
    """
    url = store.engines.own.url
    if url not in _emptying:
        store.create_schema()
        # A server may have been killed since.
        _emptying[url] = create_engine(url, pool_pre_ping=True)
    with _emptying[url].begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(delete(table))
        for statement in then:
            connection.execute(statement)
    return store
