"""What the servers behind a store say of themselves, for whoever checks how they are set up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

from celery_idempotent.errors import StoreError
from celery_idempotent.stores.redis.wire import Wire

__all__ = ["SCRIPT", "AskableStore", "RedisServers", "Server", "server_of"]

#: What is asked of a server's configuration: managed ones may not tell.
_ASKED: Final = ("save", "appendfsync", "min-replicas-to-write")

#: A command that loads a script which does nothing.
SCRIPT: Final = ("EVAL", "return 1", "0")


@dataclass(frozen=True, slots=True)
class Server:
    """One Redis or Valkey server."""

    #: What INFO says; empty where this user may not ask for it.
    info: Mapping[str, str]
    #: What CONFIG GET says, as far as it does.
    config: Mapping[str, str] = field(default_factory=dict)

    def number(self, name: str) -> int:
        """Give a number that INFO says; 0 where it doesn't."""
        try:
            return int(self.info.get(name, 0))
        except ValueError:
            return 0


@runtime_checkable
class AskableStore(Protocol):
    """A store whose servers can be asked how they are set up."""

    def servers(self) -> list[Server]:
        """Ask each server that holds records.

        Raises:
            StoreUnavailable: one does not answer.
        """

    def one_key_each(self, make: Callable[[], str]) -> list[str]:
        """Return keys that ``make`` makes: one on each server that holds records."""

    def try_script(self) -> None:
        """Send a script's source to each server, as after a restart, which forgets scripts.

        Raises:
            StoreUnavailable: one refused it.
        """

    def missing_slots(self) -> int:
        """Return how many slots of a cluster no server has; 0: it is complete, or no cluster."""


def server_of(wire: Wire) -> Server:
    """Ask one server."""
    said, *answers = wire.commands([("INFO",), *(("CONFIG", "GET", name) for name in _ASKED)])
    info = {} if isinstance(said, StoreError) else _parsed(said)
    config = {
        name: answer[1].decode("utf-8", "replace")
        for name, answer in zip(_ASKED, answers, strict=True)
        if not isinstance(answer, StoreError) and len(answer) == 2
    }
    return Server(info, config)


class RedisServers:
    """An :class:`AskableStore` over the wire to one server."""

    _wire: Wire

    def servers(self) -> list[Server]:
        return [server_of(self._wire)]

    def one_key_each(self, make: Callable[[], str]) -> list[str]:
        return [make()]

    def try_script(self) -> None:
        self._wire.command(*SCRIPT)

    def missing_slots(self) -> int:
        return 0


def _parsed(text: bytes) -> dict[str, str]:
    lines = text.decode("utf-8", "replace").splitlines()
    pairs = (line.partition(":") for line in lines if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}
