"""What a package's adapter may say; most of them need little of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from celery import Celery

from celery_idempotent import IdempotentTask

if TYPE_CHECKING:
    from tests.ecosystem.world import World

__all__ = ["Adapter", "Figure", "adapter_of"]


class Figure(NamedTuple):
    """What the other package counted, and what it has to be."""

    what: str
    found: object
    expected: object


class Adapter:
    """An app that uses nothing besides Celery; an adapter changes what its package needs.

    Args:
        directory: whatever is written goes there.
        server: the URL of a private Redis, without the database.
    """

    #: Whether callers can ask for results; whether there are chords, and whether a message can hold
    #: a signature. Where not, plain Celery hasn't either.
    results: ClassVar[bool] = True
    chords: ClassVar[bool] = True
    canvas: ClassVar[bool] = True
    pool: ClassVar[str] = "prefork"

    def __init__(self, directory: Path, server: str) -> None:
        self.directory = directory
        self.server = server

    def environment(self) -> dict[str, str]:
        """The variables of every process of the app."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Settings of the app, over those that every row has."""
        return {}

    def start(self) -> None:
        """Start the servers that it needs."""

    def stop(self) -> None:
        """End them."""

    def prepare(self) -> None:
        """Set up what has to be there before the app is made, in every process."""

    def make_app(self) -> Celery:
        """Return the app, without settings and tasks."""
        return Celery("shop")

    def base(self) -> type[IdempotentTask]:
        """Return the base of the tasks that are ours."""
        return IdempotentTask

    def install(self, app: Celery, note: Callable[..., None]) -> None:
        """Set the package up, in every process; ``note`` writes an event to the ledger."""

    def worker_command(self, command: list[str]) -> list[str]:
        """The command that starts the worker."""
        return command

    def cases(self) -> list[Callable[[World], None]]:
        """What is to be shown besides the shared cases."""
        return []

    def figures(self, world: World) -> Iterator[Figure]:
        """What the package counted, once the worker has ended."""
        yield from ()


def adapter_of(name: str) -> type[Adapter]:
    """Return the adapter of a row: the module, and after a colon one of several classes in it."""
    module, _, kind = name.partition(":")
    found = importlib.import_module(f"tests.ecosystem.adapters.{module}")
    made: type[Adapter] = getattr(found, kind or "TheAdapter")
    return made
