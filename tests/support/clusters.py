"""A cluster of three masters, and a slot of it moved from one to another."""

from __future__ import annotations

import redis

from celery_idempotent.testing.servers import RedisServer, _free_port
from tests.support.replicas import tell
from tests.support.waiting import eventually

_SHARES = ((0, 5460), (5461, 10922), (10923, 16383))


class Cluster:
    """Three masters without replicas."""

    def __init__(self) -> None:
        buses = [_free_port() for _ in _SHARES]
        self.servers = [
            RedisServer(args=("--cluster-enabled", "yes", "--cluster-port", str(bus)))
            for bus in buses
        ]
        for server, (first, last) in zip(self.servers, _SHARES, strict=True):
            server.start()
            tell(server, "CLUSTER", "ADDSLOTSRANGE", first, last)
        first_server = self.servers[0]
        for number, server in enumerate(self.servers[1:], start=1):
            tell(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            tell(server, "CLUSTER", "MEET", "127.0.0.1", first_server.port, buses[0])
        eventually(lambda: all(self._is_ok(server) for server in self.servers), "a cluster")
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{it.port}" for it in self.servers)

    @staticmethod
    def _is_ok(server: RedisServer) -> bool:
        found: bytes = tell(server, "CLUSTER", "INFO")
        return b"cluster_state:ok" in found and b"cluster_known_nodes:3" in found

    def owner_of(self, key: str) -> tuple[RedisServer, int]:
        """The server that has a key's slot, and the slot."""
        slot = int(tell(self.servers[0], "CLUSTER", "KEYSLOT", key))
        (number,) = (n for n, (first, last) in enumerate(_SHARES) if first <= slot <= last)
        return self.servers[number], slot

    def begin_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Begin to move a slot: from now on neither side has all of it."""
        tell(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(source))
        tell(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(target))

    def end_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move what is in the slot, and tell everybody."""
        with redis.Redis.from_url(source.url()) as client:
            while keys := client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                client.migrate("127.0.0.1", target.port, keys, 0, 5000)
        for server in (target, source, *self.servers):
            tell(server, "CLUSTER", "SETSLOT", slot, "NODE", self._id(target))

    @staticmethod
    def _id(server: RedisServer) -> str:
        found = tell(server, "CLUSTER", "MYID")
        return found.decode() if isinstance(found, bytes) else str(found)

    def close(self) -> None:
        for server in self.servers:
            server.stop()
