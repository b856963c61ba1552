"""The ledger: an append-only file that says what really happened, whoever claims what."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Entry", "Ledger"]


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        event: "ready" (a worker), "delivered" and "left" (a message entered and left the worker's
            task code), "began", "declined", "moved", "mailed" and "charged" (the body), "summed" (a
            chord's body), "killed" (a worker, written by the demo, as are the charges of the last
            act: what is in its bank).
        side: the side that it is about.
        worker: that worker's node name.
        pid: the process that wrote it.
        task_id: the task it is about.
        retries: how often that task had been retried.
        redelivered: whether the broker had delivered this message before.
        order: the order that is paid.
        receipt: what the customer is given for a charge.
        gateway_key: the key handed to the payment gateway.
    """

    event: str
    side: str = ""
    worker: str = ""
    pid: int = 0
    task_id: str = ""
    retries: int = 0
    redelivered: bool = False
    order: str = ""
    receipt: str = ""
    gateway_key: str = ""


class Ledger:
    """The file, written by many processes and read by the demo."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: list[Entry] = []
        self._read_bytes = 0
        self._lock = threading.Lock()

    def write(self, entry: Entry) -> None:
        """Append one line: it is there in whole before this returns, even if SIGKILL comes next."""
        line = json.dumps(asdict(entry), separators=(",", ":")).encode() + b"\n"
        # One write() with O_APPEND: lines of several processes never mix, and nothing is buffered.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def entries(self) -> list[Entry]:
        """All lines so far, in the order in which they were written."""
        with self._lock:
            try:
                with open(self.path, "rb") as file:
                    file.seek(self._read_bytes)
                    news = file.read()
            except FileNotFoundError:
                news = b""
            whole = news[: news.rfind(b"\n") + 1]
            self._read_bytes += len(whole)
            self._entries.extend(Entry(**json.loads(line)) for line in whole.splitlines())
            return list(self._entries)

    def of(self, side: str) -> list[Entry]:
        """The lines of one side."""
        return [entry for entry in self.entries() if entry.side == side]
