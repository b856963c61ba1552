"""A cluster of a few masters, and a slot of it moved from one to another."""

from __future__ import annotations

import redis

from celery_idempotent.testing.servers import RedisServer, _free_port
from tests.support.replicas import info, tell, wait_until_linked
from tests.support.waiting import eventually

_SLOTS = 16384


class Cluster:
    """Masters without replicas; each goes on with its own slots where another is dead."""

    def __init__(self, masters: int = 3) -> None:
        self._buses: dict[RedisServer, int] = {}
        self.servers = [self._start() for _ in range(masters)]
        #: Who has which slots now.
        self._owners: dict[int, RedisServer] = {}
        for number, server in enumerate(self.servers):
            first, last = _SLOTS * number // masters, _SLOTS * (number + 1) // masters - 1
            tell(server, "CLUSTER", "ADDSLOTSRANGE", first, last)
            self._owners.update(dict.fromkeys(range(first, last + 1), server))
        for number, server in enumerate(self.servers[1:], start=1):
            tell(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            self._meet(server)
        eventually(
            lambda: all(self._is_ok(server, masters) for server in self.servers), "a cluster"
        )
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{it.port}" for it in self.servers)

    def _start(self) -> RedisServer:
        bus = _free_port()
        server = RedisServer(
            args=(
                *("--cluster-enabled", "yes", "--cluster-port", str(bus)),
                *("--cluster-require-full-coverage", "no"),
            )
        )
        server.start()
        self._buses[server] = bus
        return server

    def _meet(self, server: RedisServer) -> None:
        first = self.servers[0]
        tell(server, "CLUSTER", "MEET", "127.0.0.1", first.port, self._buses[first])

    @staticmethod
    def _is_ok(server: RedisServer, nodes: int) -> bool:
        found: bytes = tell(server, "CLUSTER", "INFO")
        # A node that does not know yet who has some slots is "ok", as it need not know of all.
        wanted = ("state:ok", f"known_nodes:{nodes}", f"slots_assigned:{_SLOTS}")
        return all(f"cluster_{it}\r\n".encode() in found for it in wanted)

    def owner_of(self, key: str) -> tuple[RedisServer, int]:
        """The server that has a key's slot, and the slot."""
        slot = int(tell(self.servers[1], "CLUSTER", "KEYSLOT", key))
        return self._owners[slot], slot

    def another(self, server: RedisServer) -> RedisServer:
        """One of the other masters."""
        return next(it for it in self.servers if it is not server)

    def begin_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Begin to move a slot: from now on neither side has all of it."""
        tell(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(source))
        tell(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(target))

    def move_keys(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move what is in the slot; it is still the source's."""
        with redis.Redis.from_url(source.url()) as client:
            while keys := client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                client.migrate("127.0.0.1", target.port, keys, 0, 5000)

    def end_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move what is in the slot, and tell everybody."""
        self.move_keys(slot, source, target)
        for server in (target, source, *self.servers):
            tell(server, "CLUSTER", "SETSLOT", slot, "NODE", self._id(target))
        self._owners[slot] = target

    def add_replica(self, master: RedisServer) -> RedisServer:
        """One more server, which has what a master has."""
        replica = self._start()
        self._meet(replica)
        self.servers.append(replica)
        eventually(lambda: all(self._is_ok(it, 4) for it in self.servers), "four nodes")
        tell(replica, "CLUSTER", "REPLICATE", self._id(master))
        wait_until_linked(replica)
        return replica

    @staticmethod
    def wait_until_same(master: RedisServer, replica: RedisServer) -> None:
        """Return once a replica has all that was written up to now."""
        there = info(master)["master_repl_offset"]
        eventually(lambda: info(replica)["slave_repl_offset"] >= there, "the replica has it all")

    @staticmethod
    def take_over(replica: RedisServer) -> None:
        """Make a replica the master of its slots, without asking the others."""
        tell(replica, "CLUSTER", "FAILOVER", "TAKEOVER")
        eventually(lambda: info(replica)["role"] == "master", "the replica is the master")

    @staticmethod
    def _id(server: RedisServer) -> str:
        found = tell(server, "CLUSTER", "MYID")
        return found.decode() if isinstance(found, bytes) else str(found)

    def close(self) -> None:
        for server in self.servers:
            server.stop()
