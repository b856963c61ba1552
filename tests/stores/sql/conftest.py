"""Fixtures for the tests of the SQL store."""

from __future__ import annotations

import pytest

from celery_idempotent.stores.sql.store import SqlStore


@pytest.fixture
def store(sql_store: SqlStore) -> SqlStore:
    """The store under test: an empty one on each kind of database."""
    return sql_store
