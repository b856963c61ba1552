"""A master, its replica and the Sentinel that watches them, of which a test can break each part."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import redis

from celery_idempotent.testing.servers import RedisServer, _free_port, server_binary
from tests.support.proxy import Proxy
from tests.support.waiting import eventually


class Pair:
    """A master with one replica, the line between them, and the one that clients come by."""

    def __init__(self) -> None:
        self.master = RedisServer()
        self.replica = RedisServer()
        self.master.start()
        self.replica.start()
        self.line = Proxy("127.0.0.1", self.master.port)
        self.front = Proxy("127.0.0.1", self.master.port)

    def url(self, db: int) -> str:
        """Where clients find the master, whichever that is."""
        return f"redis://127.0.0.1:{self.front.port}/{db}"

    def follow(self, port: int | None = None) -> None:
        """Make the replica one, and return once it has what the master has."""
        tell(self.replica, "REPLICAOF", "127.0.0.1", port or self.line.port)
        self.wait_until_same()

    def wait_until_same(self) -> None:
        """Return once the replica has all that was written up to now."""

        def same() -> bool:
            if info(self.replica)["master_link_status"] != "up":
                return False
            there = info(self.master)["master_repl_offset"]
            return bool(info(self.replica)["slave_repl_offset"] >= there)

        eventually(same, "the replica has it all")

    def fail_over(self) -> None:
        """Kill the master; the replica is the master from now on, and clients find it."""
        self.line.refuse()  # what it holds back never comes
        self.master.kill()
        tell(self.replica, "REPLICAOF", "NO", "ONE")
        self.front.turn_to("127.0.0.1", self.replica.port)

    def close(self) -> None:
        self.front.close()
        self.line.close()
        self.master.stop()
        self.replica.stop()


class Sentinel:
    """One Sentinel that fails over by itself, soon after the master has gone."""

    def __init__(self, directory: Path, master: RedisServer) -> None:
        self.port = _free_port()
        config = directory / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor shop 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds shop 400\n"
            "sentinel failover-timeout shop 3000\n"
        )
        with open(directory / "sentinel.log", "wb") as log:
            self._process = subprocess.Popen(
                [str(server_binary()), str(config), "--sentinel"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._client: Any = redis.Redis(port=self.port, decode_responses=True)
        eventually(self._knows_a_replica, "the Sentinel knows master and replica")

    def _knows_a_replica(self) -> bool:
        try:
            return bool(self._client.sentinel_master("shop")["num-slaves"])
        except redis.ConnectionError:
            return False

    def master_port(self) -> int:
        """Whom it names as the master."""
        return int(self._client.sentinel_get_master_addr_by_name("shop")[1])

    def close(self) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait(10)


def wait_until_linked(replica: RedisServer) -> None:
    """Return once a replica has its master; before that it may load what that has."""
    eventually(lambda: info(replica).get("master_link_status") == "up", "a replica")


def tell(server: RedisServer, *command: Any) -> Any:
    """Send one command to a server, past every proxy."""
    with redis.Redis.from_url(server.url()) as client:
        return client.execute_command(*command)


def info(server: RedisServer, section: str = "replication") -> dict[str, Any]:
    """What a server says of its replication, or of something else."""
    with redis.Redis.from_url(server.url()) as client:
        found: dict[str, Any] = client.info(section)
        return found
