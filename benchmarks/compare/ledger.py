"""The ledger of what really happened: an append-only file that no contender knows."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Ledger", "Run"]


@dataclass
class Run:
    """One execution of a task's body, from its first line to its last."""

    order_id: str
    run_id: str
    task_id: str
    worker_pid: int
    begun: float
    ended: float | None = None
    #: The amount that was charged; None if nothing was charged yet.
    amount: int | None = None


class Ledger:
    """A directory with the ledger, and with the switches that a scenario sets for a task's body."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._book = self.directory / "ledger.jsonl"

    def write(self, event: str, **fields: Any) -> None:
        """Append one line; any number of processes may do so at once."""
        # The monotonic clock is the same for the whole machine, so that all lines are comparable.
        line = json.dumps({"event": event, "at": time.monotonic(), **fields}) + "\n"
        # With O_APPEND the writes of several processes never mix.
        descriptor = os.open(self._book, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def events(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Return all lines of a kind with these fields, in the order in which they were written."""
        try:
            text = self._book.read_text()
        except FileNotFoundError:
            return []
        # The end of a line may not be on disk yet: only whole lines count.
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [
            line
            for line in lines
            if line["event"] == event and all(line.get(k) == v for k, v in fields.items())
        ]

    def runs(self, order_id: str | None = None) -> list[Run]:
        """Return the executions of the body, of one order or of all, by their beginning."""
        wanted = {} if order_id is None else {"order_id": order_id}
        runs = {
            line["run_id"]: Run(
                order_id=line["order_id"],
                run_id=line["run_id"],
                task_id=line["task_id"],
                worker_pid=line["worker_pid"],
                begun=line["at"],
            )
            for line in self.events("begin", **wanted)
        }
        for line in self.events("charge", **wanted):
            runs[line["run_id"]].amount = line["amount"]
        for line in self.events("end", **wanted):
            runs[line["run_id"]].ended = line["at"]
        return list(runs.values())

    def charges(self, order_id: str) -> list[Run]:
        """Return the executions that had an effect."""
        return [run for run in self.runs(order_id) if run.amount is not None]

    def switch(self, name: str, on: bool = True) -> None:
        """Set a switch that a task's body reads."""
        path = self.directory / f"switch-{name}"
        if on:
            path.touch()
        else:
            path.unlink(missing_ok=True)

    def is_on(self, name: str) -> bool:
        """Whether the switch is on."""
        return (self.directory / f"switch-{name}").exists()
