"""The calls that wait in a database, as the relay sees them, whichever library reads them."""

from __future__ import annotations

import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from celery_idempotent.errors import ConfigurationError

#: How much of an error's text is kept with a row, in characters.
LONGEST_ERROR: Final = 2000


class DatabaseAway(Exception):
    """The outbox's database can't be reached, or refuses a statement."""


@dataclass(frozen=True)
class Failure:
    """A row that could not be sent for a reason of its own."""

    row_id: int
    #: The error's text, in characters that every database takes.
    why: str
    #: After how many seconds it is tried again.
    pause_s: float

    @classmethod
    def of(cls, row_id: int, exc: BaseException, pause_s: float) -> Failure:
        """Describe an error in characters that can be stored, whatever its text holds."""
        try:
            words = f"{type(exc).__name__}: {exc}"
        except Exception:
            words = type(exc).__name__
        # PostgreSQL takes no NUL, and no encoding takes half a surrogate pair.
        words = words.replace("\0", "\\0").encode(errors="backslashreplace").decode()
        return cls(row_id, words[:LONGEST_ERROR], pause_s)


@dataclass(frozen=True)
class Batch:
    """Rows that only this relay has at the moment, in the order in which to send them."""

    #: Each has ``id``, ``task_id``, ``task``, ``message`` and ``attempts``.
    rows: Sequence[Any]
    #: Deletes the rows with these ids, and records the failures.
    settle: Callable[[Sequence[int], Sequence[Failure]], None]


@dataclass(frozen=True)
class Backlog:
    """The calls that wait to be sent."""

    #: How many calls.
    rows: int
    #: How long the oldest of them has waited, in seconds; 0 if nothing waits.
    lag: float
    #: How many of them could not be sent for a reason of their own and are tried again later.
    failing: int
    #: The error of the last one of those.
    error: str | None = None

    def __str__(self) -> str:
        words = f"{self.rows} waiting, lag {self.lag:.1f} s"
        return f"{words}, {self.failing} failing ({self.error})" if self.failing else words


class Outbox(ABC):
    """The calls that wait in one database; a subclass has the statements of one library.

    :meth:`take` and :meth:`backlog` raise :class:`DatabaseAway` if the database can't do it now,
    and ``ConfigurationError`` if the outbox's table is not there or rows can't be locked.

    Args:
        where: the database, in words that may be logged.
        one_writer: whether a transaction that writes keeps all others from writing (SQLite).
        database: the file of such a database.
    """

    def __init__(self, where: str, *, one_writer: bool, database: object = None) -> None:
        self.where = where
        self._one_writer = one_writer
        self._alone = Alone(str(database) if one_writer and database else None)

    @contextmanager
    def take(self, most: int) -> Iterator[Batch]:
        """Take the next rows that are due; no other relay gets them until the context ends.

        They stay in the table until they are settled: a relay that is killed leaves them to the
        next one.
        """
        with self._translated():
            if self._one_writer:
                # No transaction while they are sent: it would keep the application from writing.
                with self._connect() as connection:
                    rows = self._due(connection, most, lock=False)
                yield Batch(rows, self._settle)
                return
            with self._begin() as connection:
                rows = self._due(connection, most, lock=True)
                yield Batch(rows, partial(self._write, connection))

    def _settle(self, sent: Sequence[int], failed: Sequence[Failure]) -> None:
        if sent or failed:
            with self._begin() as connection:
                self._write(connection, sent, failed)

    def backlog(self) -> Backlog:
        """Count the calls that wait, and measure for how long, by the database's clock."""
        with self._translated(), self._connect() as connection:
            return self._count(connection)

    def is_ours(self) -> bool:
        """Whether this relay may work now. The answer may change from no to yes."""
        return self._alone()

    def close(self) -> None:
        """Free the outbox for another relay."""
        self._alone.free()

    def _no_skip_locked(self, why: object) -> ConfigurationError:
        return ConfigurationError(
            f"the outbox in {self.where} can't be relayed: {why}. It needs SKIP LOCKED, which "
            "PostgreSQL, MySQL 8 and MariaDB 10.6 have, or SQLite"
        )

    # --- of one library --------------------------------------------------------------------------

    @abstractmethod
    def _connect(self) -> AbstractContextManager[Any]:
        """Return a connection, without a transaction around what is read."""

    @abstractmethod
    def _begin(self) -> AbstractContextManager[Any]:
        """Return a connection in a transaction, which is committed when the context ends."""

    @abstractmethod
    def _due(self, connection: Any, most: int, *, lock: bool) -> Sequence[Any]:
        """Read the next due rows by id; with ``lock`` only rows that no one else has locked."""

    @abstractmethod
    def _write(self, connection: Any, sent: Sequence[int], failed: Sequence[Failure]) -> None:
        """Delete the rows that were sent, and record with the others why they failed."""

    @abstractmethod
    def _count(self, connection: Any) -> Backlog:
        """Read the figures of the backlog."""

    @abstractmethod
    def _translated(self) -> AbstractContextManager[None]:
        """Raise the library's errors as the relay's."""


class Alone:
    """Allows one relay at a time, since SQLite has no locks on rows; the others stand by.

    The lock is a file beside the database, and the system frees it with the process.

    Args:
        database: the database's file; ``None`` if relays may work side by side.
    """

    def __init__(self, database: str | None) -> None:
        is_file = database and database != ":memory:" and not database.startswith("file:")
        self._path = f"{os.path.abspath(str(database))}-relay" if is_file else None
        self._lock: sqlite3.Connection | None = None

    def __call__(self) -> bool:
        """Whether this relay may work. The answer may change from no to yes."""
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
        """Free the lock for another relay."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
