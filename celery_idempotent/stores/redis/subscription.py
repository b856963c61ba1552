"""Hears from Redis or Valkey that runs are over, on a connection that subscribed to their keys."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from redis.exceptions import RedisError

from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.stores.redis.wire import Wire, pack_command

#: The channel on which a key's end is published: its record's key, with this behind it. So its
#: channel is on the node that has its record, and within an ACL's pattern for its keys.
ENDED: Final = ":ended"
#: How many channels one command names.
_PAGE: Final = 500
#: What a server sends that tells of no run.
_PONGS: Final = (b"pong", b"PONG")


class RedisSubscription:
    """A :class:`.Subscription` on one server.

    Args:
        wire: to the server: makes the connection, and publishes what shows that it works.
        sharded: whether the server is a node of a cluster.
    """

    def __init__(self, wire: Wire, *, sharded: bool = False) -> None:
        self._wire = wire
        self._letter = "S" if sharded else ""
        self._connection: Any = wire.connect()
        self._ended: list[str] = []
        self._heard_at = self._asked_at = time.monotonic()
        self._is_tried = False
        self._channels: set[bytes] = set()

    def sockets(self) -> Sequence[int]:
        sock = self._connection._sock
        return [] if sock is None else [sock.fileno()]

    def follow(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _PAGE):
            page = keys[start : start + _PAGE]
            self._send(f"{self._letter}SUBSCRIBE", *(key + ENDED for key in page))
            missing = len(page)
            while missing:
                missing -= self._take(self._receive())
        if keys and not self._is_tried:
            # Whether this user may publish there, and whether it arrives here.
            if not self._wire.command(f"{self._letter}PUBLISH", keys[0] + ENDED, ""):
                raise StoreUnavailable("what is published there does not come here")
            self._is_tried = True

    def unfollow(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _PAGE):
            channels = [key + ENDED for key in keys[start : start + _PAGE]]
            self._channels.difference_update(channel.encode() for channel in channels)
            self._send(f"{self._letter}UNSUBSCRIBE", *channels)

    def read(self) -> list[str]:
        with _unbroken():
            while self._connection.can_read(0):
                self._take(self._connection.read_response())
        ended, self._ended = self._ended, []
        return ended

    def check(self) -> None:
        if self._asked_at > self._heard_at:
            raise StoreUnavailable("the subscribed connection does not answer")
        self._send("PING")
        self._asked_at = time.monotonic()

    def close(self) -> None:
        self._connection.disconnect()

    def _take(self, answer: Any) -> bool:
        """Take one message; return whether it confirms that a channel is heard."""
        self._heard_at = time.monotonic()
        if not isinstance(answer, (list, tuple)) or not answer or answer[0] in _PONGS:
            return False
        kind, channel, *_ = answer
        if kind in (b"message", b"smessage"):
            self._ended.append(channel.decode("utf-8", "surrogateescape").removesuffix(ENDED))
        if kind in (b"unsubscribe", b"sunsubscribe") and channel in self._channels:
            raise StoreUnavailable("its slot is on another node now")
        if kind not in (b"subscribe", b"ssubscribe"):
            return False
        self._channels.add(channel)
        return True

    def _send(self, *parts: str) -> None:
        with _unbroken():
            self._connection.send_packed_command([pack_command(parts)], check_health=False)

    def _receive(self) -> Any:
        with _unbroken():
            return self._connection.read_response()


@contextmanager
def _unbroken() -> Iterator[None]:
    """Use the connection; raise StoreUnavailable where it is broken."""
    try:
        yield
    except (RedisError, OSError) as exc:
        raise StoreUnavailable(f"the subscribed connection is broken: {exc}") from exc


class ClusterSubscription:
    """A :class:`.Subscription` on a cluster: a connection to each node that has such a key."""

    def __init__(self, wire: Any) -> None:
        self._wire = wire
        self._nodes: dict[Any, RedisSubscription] = {}

    def sockets(self) -> Sequence[int]:
        return [fd for node in self._nodes.values() for fd in node.sockets()]

    def follow(self, keys: Sequence[str]) -> None:
        for wire, some in self._wire.by_node(keys):
            if wire not in self._nodes:
                self._nodes[wire] = RedisSubscription(wire, sharded=True)
            self._nodes[wire].follow(some)

    def unfollow(self, keys: Sequence[str]) -> None:
        for wire, some in self._wire.by_node(keys):
            if wire in self._nodes:
                self._nodes[wire].unfollow(some)

    def read(self) -> list[str]:
        return [key for node in self._nodes.values() for key in node.read()]

    def check(self) -> None:
        for node in self._nodes.values():
            node.check()

    def close(self) -> None:
        for node in self._nodes.values():
            node.close()
