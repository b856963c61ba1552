"""What kombu lost, read from the server's own log of writes (its append-only file)."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tests.chaos.marks import COPY

Command = list[bytes]


def commands(directory: Path) -> Iterator[Command]:
    """The writes of a server, in their order; it must never have rewritten its log."""
    files = sorted(directory.glob("appendonlydir/*.incr.aof")) or [directory / "appendonly.aof"]
    for path in files:
        with open(path, "rb") as file:
            yield from _parsed(file)


def _parsed(file: BinaryIO) -> Iterator[Command]:
    while line := file.readline():
        if line.startswith(b"*"):
            command = []
            for _ in range(int(line[1:])):
                size = int(file.readline()[1:])
                command.append(file.read(size))
                file.read(2)
            yield command


def lost(writes: Iterable[Command], queues: Iterable[str]) -> dict[str, str]:
    """Messages that were taken off a queue and never noted as held: their marks, with their ids."""
    return {headers[COPY]: headers["id"] for headers in lost_messages(writes, queues)}


def lost_messages(writes: Iterable[Command], queues: Iterable[str]) -> list[dict[str, Any]]:
    """The headers of each message that was taken off a queue and never noted as held.

    kombu takes a message (BRPOP, which the log has as RPOP), and notes a moment later that it holds
    it (HSET unacked). Where the server or the worker ends in between, nobody has it any more.
    """
    waiting: dict[bytes, deque[bytes]] = {queue.encode(): deque() for queue in queues}
    taken: dict[bytes, bytes] = {}
    database = b"0"
    for name, *arguments in writes:
        verb = name.upper()
        if verb == b"SELECT":
            database = arguments[0]
        elif database != b"0" or not arguments:
            continue
        elif verb == b"HSET" and arguments[0] == b"unacked":
            for tag in arguments[1::2]:
                taken.pop(tag, None)
        elif arguments[0] in waiting:
            queue = waiting[arguments[0]]
            if verb == b"LPUSH":
                queue.extendleft(arguments[1:])
            elif verb == b"RPUSH":
                queue.extend(arguments[1:])
            elif verb == b"RPOP" and queue:
                message = queue.pop()
                taken[json.loads(message)["properties"]["delivery_tag"].encode()] = message
            elif verb == b"DEL":
                queue.clear()
    return [json.loads(message)["headers"] for message in taken.values()]
