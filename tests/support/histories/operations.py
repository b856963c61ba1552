"""What happened, as operations with their times: what workers, brokers and callers could see.

Nothing here knows the library. A run is one execution of a body; a call is one task id (with
``/1``, ``/2`` behind it where the task has replaced itself). Times are seconds on one clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["KINDS", "Operation", "read", "write"]

#: What can happen, and which fields say more about it.
KINDS = {
    "published": "a call of a key was sent to the broker (call, key; value: what hangs on it)",
    "began": "a body began (call, key, run; value: which retry it is, by; state: open, if it holds "
    "no claim)",
    "ended": "a body ended (call, key, run; state: how; value: its result)",
    "accepted": "the store recorded a run's outcome (call, key, run; until: end of its window)",
    "settled": "the store recorded that a call has its final answer (call, key, run; state: how; "
    "until: for how long it is to remember that; 0: for ever)",
    "stored": "the result backend stored a state (call, state, value, by; until: for how long an "
    "answer is to be remembered; 0: for ever)",
    "left": "the last state that the result backend has, when all is over (call, state, value)",
    "sent": "a callback was sent (call; state: link or errback; value: its id; by; until: for how "
    "long that is to be remembered; 0: for ever)",
    "killed": "a process died (by)",
    "stalled": "a process stood still (by, at to until)",
    "away": "a request or its answer was lost (by; state: which)",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that happened."""

    at: float
    #: One of :data:`KINDS`.
    what: str
    call: str = ""
    key: str = ""
    run: str = ""
    #: The delivery and the process that did it, as ``process`` or ``process/delivery``.
    by: str = ""
    state: str = ""
    value: str = ""
    #: When it was over, for what takes time.
    until: float = 0.0

    def __post_init__(self) -> None:
        if self.what not in KINDS:
            raise ValueError(f"no operation is {self.what!r}")

    @property
    def process(self) -> str:
        """The process that did it."""
        return self.by.partition("/")[0]

    def __str__(self) -> str:
        shown = (self.what, self.call, self.run, self.state, self.value, self.by)
        until = f" until {self.until:.3f}" if self.until else ""
        return f"{self.at:10.3f}{until}  {'  '.join(word for word in shown if word)}"


def write(path: Path, history: Iterable[Operation]) -> None:
    """Write a history, one operation a line."""
    with path.open("w") as lines:
        for operation in history:
            shown = {name: value for name, value in asdict(operation).items() if value != ""}
            lines.write(json.dumps(shown) + "\n")


def read(path: Path) -> Sequence[Operation]:
    """Read what :func:`write` has written."""
    return [Operation(**json.loads(line)) for line in path.read_text().splitlines()]
