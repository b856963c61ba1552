"""What the relay asks of a database: the calls that wait in it, whichever library reads them."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

__all__ = ["LONGEST_ERROR", "Alone", "Backlog", "Batch", "DatabaseAway", "Failure", "Outbox"]

#: How much of an error's text is kept with a row, in characters.
LONGEST_ERROR: Final = 2000


class DatabaseAway(Exception):
    """The outbox's database can't be reached, or doesn't do what it is asked."""


@dataclass(frozen=True)
class Failure:
    """That a row could not be sent for a reason of its own."""

    row_id: int
    #: The error's text, in characters that every database takes.
    why: str
    #: In how many seconds it is tried again.
    pause_s: float

    @classmethod
    def of(cls, row_id: int, exc: BaseException, pause_s: float) -> Failure:
        """Describe an error. Whatever its text holds, it can be stored."""
        try:
            words = f"{type(exc).__name__}: {exc}"
        except Exception:
            words = type(exc).__name__
        # PostgreSQL takes no NUL, and no encoding takes half a surrogate pair.
        words = words.replace("\0", "\\0").encode(errors="backslashreplace").decode()
        return cls(row_id, words[:LONGEST_ERROR], pause_s)


@dataclass(frozen=True)
class Batch:
    """Rows that are this relay's for the moment, in the order in which they are to be sent."""

    #: Each has ``id``, ``task_id``, ``task``, ``message`` and ``attempts``.
    rows: Sequence[Any]
    #: Deletes the rows with these ids, and notes what failed.
    settle: Callable[[Sequence[int], Sequence[Failure]], None]


@dataclass(frozen=True)
class Backlog:
    """What waits to be sent."""

    #: How many calls.
    rows: int
    #: How long the oldest of them has waited, in seconds; 0 where nothing waits.
    lag: float
    #: How many of them could not be sent for a reason of their own, and are tried again later.
    failing: int
    #: What the last one of those met.
    error: str | None = None

    def __str__(self) -> str:
        words = f"{self.rows} waiting, lag {self.lag:.1f} s"
        return f"{words}, {self.failing} failing ({self.error})" if self.failing else words


class Outbox(Protocol):
    """The calls that wait in one database.

    Each method raises :class:`DatabaseAway` where the database can't do it now, and
    ``ConfigurationError`` where the outbox's table is not there.
    """

    #: The database, in words that may be logged.
    where: str

    def take(self, most: int) -> AbstractContextManager[Batch]:
        """Take the next rows that are due, which no other relay gets until the context ends.

        They stay where they are until they are settled: a relay that is killed leaves them to the
        next one.
        """

    def backlog(self) -> Backlog:
        """Say how many calls wait, and for how long, by the database's clock."""

    def is_ours(self) -> bool:
        """Whether this relay may work now; asked again, it may have become the one."""

    def close(self) -> None:
        """Let another relay work."""


class Alone:
    """On SQLite, which has no locks on rows, one relay works and others stand by.

    The lock is a file beside the database, and the system frees it with the process.

    Args:
        database: the database's file; ``None`` where relays may work side by side.
    """

    def __init__(self, database: str | None) -> None:
        is_file = database and database != ":memory:" and not database.startswith("file:")
        self._path = f"{os.path.abspath(str(database))}-relay" if is_file else None
        self._lock: sqlite3.Connection | None = None

    def __call__(self) -> bool:
        """Whether this relay may work; asked again, it may have become the one."""
        if self._path is None or self._lock is not None:
            return True
        lock = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            lock.close()
            return False
        self._lock = lock
        return True

    def free(self) -> None:
        """Let another relay have it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
