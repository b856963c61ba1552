"""The ledger: an append-only file of what really happened."""

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
            chord's body), "killed" (a worker). The demo itself writes "killed", and the charges of
            the last act from its bank.
        side: the side of the event.
        worker: the worker's node name.
        pid: the process that wrote the line.
        task_id: the id of the task.
        retries: how often that task had been retried.
        redelivered: whether the broker had delivered this message before.
        order: the order that is paid.
        receipt: the customer's receipt for a charge.
        gateway_key: the key that the payment gateway got.
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
    """The file, which many processes write and the demo reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: list[Entry] = []
        self._read_bytes = 0
        self._lock = threading.Lock()

    def write(self, entry: Entry) -> None:
        """Append one line; the whole line is there when this returns, even before a SIGKILL."""
        line = json.dumps(asdict(entry), separators=(",", ":")).encode() + b"\n"
        # One write() with O_APPEND: lines of several processes never mix, without a buffer.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def entries(self) -> list[Entry]:
        """Return all lines so far, in the order in which they were written."""
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
        """Return the lines of one side."""
        return [entry for entry in self.entries() if entry.side == side]
