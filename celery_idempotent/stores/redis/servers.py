"""Asks Redis and Valkey servers how they are set up, for whoever checks that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from celery_idempotent.errors import StoreError
from celery_idempotent.stores.base import Server
from celery_idempotent.stores.redis.wire import Wire

#: The settings that are asked for; a managed server may refuse.
_ASKED: Final = ("save", "appendfsync", "min-replicas-to-write")


class RedisServers:
    """An :class:`.AskableStore` over a wire."""

    _wire: Wire

    def servers(self) -> list[Server]:
        return [_ask(wire) for wire in self._wire.wires()]

    def one_key_each(self, make: Callable[[], str]) -> list[str]:
        return [make()]

    def try_script(self) -> None:
        for wire in self._wire.wires():
            wire.command("EVAL", "return 1", "0")

    def missing_slots(self) -> int:
        return 0


def _ask(wire: Wire) -> Server:
    said, *answers = wire.commands([("INFO",), *(("CONFIG", "GET", name) for name in _ASKED)])
    info = {} if isinstance(said, StoreError) else _parsed(said)
    config = {
        name: answer[1].decode("utf-8", "replace")
        for name, answer in zip(_ASKED, answers, strict=True)
        if not isinstance(answer, StoreError) and len(answer) == 2
    }
    return Server(info, config)


def _parsed(text: bytes) -> dict[str, str]:
    lines = text.decode("utf-8", "replace").splitlines()
    pairs = (line.partition(":") for line in lines if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}
