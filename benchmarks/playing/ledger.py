"""The ledger of what really happened: an append-only file that no contender knows."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.playing.process import born

__all__ = ["Ledger", "Run"]


@dataclass
class Run:
    """One execution of a task's body, from its first line to its last."""

    order_id: str
    run_id: str
    task_id: str
    worker_pid: int
    #: The process that ran it, and when that was started: pids are used again.
    pid: int
    born: str
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

    def begin(self, order_id: str, run_id: str, task_id: str) -> None:
        """Write that this process begins with a body."""
        pid = os.getpid()
        self.write(
            "begin",
            order_id=order_id,
            run_id=run_id,
            task_id=task_id,
            worker_pid=os.getppid(),
            pid=pid,
            born=born(pid),
        )

    def _lines(self) -> list[dict[str, Any]]:
        try:
            text = self._book.read_text()
        except FileNotFoundError:
            return []
        # The end of a line may not be on disk yet: only whole lines count.
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def events(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Return all lines of a kind with these fields, in the order in which they were written."""
        return [
            line
            for line in self._lines()
            if line["event"] == event and all(line.get(k) == v for k, v in fields.items())
        ]

    def runs(self, order_id: str | None = None) -> list[Run]:
        """Return the executions of the body, of one order or of all, by their beginning."""
        runs: dict[str, Run] = {}
        # It is read once: a run may begin and end between two looks.
        for line in self._lines():
            if order_id not in (None, line.get("order_id")):
                continue
            if line["event"] == "begin":
                runs[line["run_id"]] = Run(
                    order_id=line["order_id"],
                    run_id=line["run_id"],
                    task_id=line["task_id"],
                    worker_pid=line["worker_pid"],
                    pid=line["pid"],
                    born=line["born"],
                    begun=line["at"],
                )
            elif line["event"] == "charge":
                runs[line["run_id"]].amount = line["amount"]
            elif line["event"] == "end":
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
