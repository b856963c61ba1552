"""What a library has to say of itself to play the suite: one adapter, about a page, for each."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import Celery

__all__ = ["LEASE_S", "NAMES", "Adapter", "Body", "Spec", "adapter"]

#: The body of a task: ``body(self, order, data=None)``.
Body = Callable[..., Any]
#: The modules here; each has an ``ADAPTER``.
NAMES = ("idempotent", "once", "singleton", "heimdall", "fencekit", "idemkit", "powertools")
#: What libraries with a lease are given, so that what a killed worker held is free in seconds.
LEASE_S = 3


@dataclass(frozen=True)
class Spec:
    """What a task of the suite is to be protected by; an adapter says it in its library's words."""

    #: "lock": one run at a time from the call to the end, then the next call runs; "window": a
    #: call that succeeded is not run again for a time; "turn": every call runs, one at a time.
    kind: str
    #: Which arguments make two calls the same: "order", the first one, or "all".
    by: str = "order"
    #: How long the lock holds at most, or the window lasts; the documentation's value unless given.
    seconds: int | None = None
    #: The key is free as soon as the body begins.
    early: bool = False


class Adapter(ABC):
    """One library, set up as its documentation shows."""

    title: str
    #: The distribution whose version is reported.
    distribution: str
    #: Which needs of the suite the library documents; see ``benchmarks.graveyard.situations``.
    claims: frozenset[str]
    #: Exceptions that tell a caller that its call is a duplicate.
    refusals: frozenset[str] = frozenset()

    def configure(self, app: Celery) -> None:  # noqa: B027
        """Set the app up, where the library needs it."""

    @abstractmethod
    def task(self, app: Celery, name: str, body: Body, spec: Spec, **celery: Any) -> Any:
        """Make a task, with these options of Celery's; it is asked only for what ``claims`` has."""

    def forget(self, task: Any, order: str) -> None:
        """Free an order by the means that an operator has."""
        raise NotImplementedError


def adapter(name: str) -> Adapter:
    """Return the adapter in a module here."""
    found: Adapter = importlib.import_module(f"{__name__}.{name}").ADAPTER
    return found
