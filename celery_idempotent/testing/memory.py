"""A store for a test: in memory, empty, for every app, and with a clock that the test moves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from celery_idempotent.settings import everywhere
from celery_idempotent.stores.memory import MemoryStore


class MovableStore(MemoryStore):
    """Records in memory, by a clock that runs as usual and can be moved ahead."""

    def __init__(self) -> None:
        self._ahead_us = 0
        super().__init__(lambda: time.time_ns() // 1000 + self._ahead_us)

    def advance(self, seconds: float) -> None:
        """Let time pass, for this store: leases end, retries become due, windows close."""
        self._ahead_us += int(seconds * 1_000_000)


@contextmanager
def memory_store() -> Iterator[MovableStore]:
    """Have every app keep its records in a new :class:`MovableStore`, whatever it is set up to.

    With pytest, the fixture ``idempotent_store`` does this for one test.
    """
    store = MovableStore()
    with everywhere(store):
        yield store
