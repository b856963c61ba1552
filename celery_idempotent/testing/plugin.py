"""The pytest plugin: fixtures for tests of idempotent tasks.

It imports nothing before its use: a pytest run that doesn't use it does not wait for Celery.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from celery_idempotent.testing import MovableStore


@pytest.fixture
def idempotent_store() -> Iterator[MovableStore]:
    """A store of idempotency records in memory, empty, for every app while the test runs.

    ``idempotent_store.advance(seconds)`` lets time pass for it.
    """
    from celery_idempotent.testing.memory import memory_store

    with memory_store() as store:
        yield store
