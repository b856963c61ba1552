"""Celery's ways of composing tasks, each as a function of the tasks: what is sent, what comes out.

:func:`gives` says what the composition's result holds once nothing is left to do: an exception is
written as ``"ValueError: ..."``, a call that has no outcome by its state, a task id as ``<id>``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.ledger import Ledger

#: A control command is answered by the one worker of its system.
ANSWERED: dict[str, Any] = {"reply": True, "limit": 1, "timeout": 10}

#: What comes out is another thing in each version of Celery: the two systems have to agree.
ANYTHING = object()


class Tasks:
    """One compared system: its tasks by their short names, its app, and its bodies' ledger."""

    def __init__(self, app: Any, ledger: Ledger) -> None:
        self.app = app
        self.ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return self.app.tasks[f"canvas.{name}"]


@dataclass(frozen=True)
class Composition:
    """One way of composing."""

    name: str
    compose: Callable[[Tasks], Any]
    expected: Any


COMPOSITIONS: list[Composition] = []


def gives(expected: Any) -> Callable[[Any], Any]:
    """Register a composition and what comes out of it."""

    def register(compose: Callable[[Tasks], Any]) -> Callable[[Tasks], Any]:
        COMPOSITIONS.append(Composition(compose.__name__, compose, expected))
        return compose

    return register
