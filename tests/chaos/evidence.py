"""What is known of a run when it is over, and what is made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.plan import LEASE_S, STALLS, Act

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Done:
    """A fault as it happened: ``began`` is before its first signal, ``ended`` after its last."""

    act: Act
    began: float
    ended: float
    #: Whom it hit; a kill of the server, or a pause, hits everybody whose records are there.
    node: str = ""
    pid: int = 0
    part: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began

    @property
    def is_kill(self) -> bool:
        """Whether it ended a process that ran bodies."""
        return self.act in (Act.KILL_CHILD, Act.KILL_WORKER, Act.ENDED)

    @property
    def is_long_stall(self) -> bool:
        """Whether those that it hit could not renew for longer than a lease."""
        return self.act in STALLS and self.seconds > LEASE_S


@dataclass(frozen=True)
class Published:
    """One publication, as its producer knows it: the ids of its messages, each with its key."""

    part: str
    kind: str
    keys: Mapping[str, str]
    #: When it was published.
    at: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What a call got: its state, and its result where it succeeded."""

    state: str
    result: Any = None

    @property
    def ready(self) -> bool:
        """Whether there is an answer at all."""
        return self.state in ("SUCCESS", "FAILURE", "REVOKED")


@dataclass(frozen=True)
class Evidence:
    """All that is known when everything is over."""

    entries: Sequence[Entry]
    faults: Sequence[Done]
    published: Sequence[Published]
    #: By task id.
    answers: Mapping[str, Answer]
    #: Rows by key, of sessions and of keyed inserts.
    rows: Mapping[str, int]
    #: Nodes of the parts whose records are not on the server that faults hit.
    apart: frozenset[str] = frozenset()
    #: Messages on Redis that kombu took and did not keep, by mark, with their id.
    lost: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Violation:
    """Something that must not be, and what is known of it."""

    what: str
    key: str
    account: str


@dataclass
class Verdict:
    """The figures and the violations."""

    figures: dict[str, int]
    by_kind: dict[str, Counter[str]] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether all that is required holds."""
        return not self.violations

    def count(self, what: str) -> int:
        """How many violations of one sort there are."""
        return sum(one.what == what for one in self.violations)
