"""What really happened, written by every process in the order in which it happened."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tests.support.waiting import PATIENCE_SECONDS, eventually

Entry = dict[str, Any]


class Ledger:
    """An append-only file with one line an event; the library knows nothing of it.

    A line is written by one ``write`` to a file opened for appending, so lines of many processes
    never mix, and their order is the order of the events. Beside it stand the gates: a body that
    waits at one goes on when the test opens it.

    Events: ``received`` (a worker's parent took a message), ``executed`` and ``finished`` (the
    tracer began and was done with it), ``start``, ``effect`` and ``end`` (the body), ``ready`` (a
    worker), ``tail``, ``body`` and ``errback`` (callbacks).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._gates = self.path.parent / (self.path.name + ".gates")
        self._gates.mkdir(parents=True, exist_ok=True)
        self._reading = threading.Lock()
        self._read: list[Entry] = []
        self._read_from: int | None = None
        self._read_to = 0

    # What the processes of the system under test write.

    def write(self, event: str, **fields: Any) -> None:
        """Append one event."""
        line = json.dumps({"event": event, "pid": os.getpid(), **fields}) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def hold(self, gate: str, timeout: float = 300.0) -> None:
        """Wait at a gate until the test opens it."""
        eventually(lambda: self.is_open(gate), f"gate {gate} open", timeout)

    def is_open(self, gate: str) -> bool:
        """Whether the test has opened this gate."""
        return (self._gates / gate).exists()

    # What the test does.

    def open(self, gate: str) -> None:
        """Let everything go on that waits at this gate, now or later."""
        (self._gates / gate).touch()

    def close(self, gate: str) -> None:
        """Make what comes to this gate from now on wait."""
        (self._gates / gate).unlink(missing_ok=True)

    def entries(self, event: str | None = None, **fields: Any) -> list[Entry]:
        """The entries of one event whose fields have these values, oldest first."""
        return [
            dict(entry)
            for entry in self._all()
            if (event is None or entry["event"] == event)
            and all(entry.get(name) == value for name, value in fields.items())
        ]

    def _all(self) -> list[Entry]:
        """Every entry; of a file that is asked about all the time only what is new is read."""
        with self._reading:
            try:
                with open(self.path, "rb") as file:
                    self._read_on(file)
            except FileNotFoundError:
                self._read_from = None
                return []
            return list(self._read)

    def _read_on(self, file: IO[bytes]) -> None:
        now = os.fstat(file.fileno())
        if now.st_ino != self._read_from or now.st_size < self._read_to:
            self._read, self._read_from, self._read_to = [], now.st_ino, 0
        file.seek(self._read_to)
        # The last line may still be on its way: it has no line end yet.
        complete, end, _ = file.read().rpartition(b"\n")
        self._read += [json.loads(line) for line in complete.splitlines()]
        self._read_to += len(complete) + len(end)

    def count(self, event: str, **fields: Any) -> int:
        """How often this happened."""
        return len(self.entries(event, **fields))

    def wait_for(
        self, event: str, times: int = 1, timeout: float = PATIENCE_SECONDS, **fields: Any
    ) -> list[Entry]:
        """Wait until this has happened at least so many times."""
        what = f"{event} {fields or ''} {times} times"
        eventually(lambda: self.count(event, **fields) >= times, what, timeout)
        return self.entries(event, **fields)

    def wait_until(
        self, fact: Callable[[Ledger], Any], what: str, timeout: float = PATIENCE_SECONDS
    ) -> None:
        """Wait until something holds of the ledger."""
        eventually(lambda: bool(fact(self)), what, timeout)

    def most_at_once(self, **fields: Any) -> int:
        """The largest number of bodies that were between their start and their end at one time.

        A body that was killed never ends: it counts as over when its process is known dead, so name
        only bodies that nobody killed.
        """
        running = most = 0
        for entry in self.entries(**fields):
            running += {"start": 1, "end": -1}.get(entry["event"], 0)
            most = max(most, running)
        return most

    def ids(self, event: str, **fields: Any) -> set[str]:
        """The task ids for which this happened."""
        return {entry["id"] for entry in self.entries(event, **fields)}

    def __str__(self) -> str:
        return self.path.read_text() if self.path.exists() else "(empty)"
