"""Whether the servers that hold records keep what they are given, and tell the right time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from celery_idempotent.ops.doctor.findings import ERROR, HINT, WARNING, Finding
from celery_idempotent.ops.doctor.trial import cluster_node
from celery_idempotent.stores.base import Server

_OLDEST: Final = (6, 0)
_FULL: Final = 0.9
_CLOCK_S: Final = 5.0


def check_server(server: Server, where: str, wait_replicas: int = 0) -> Iterator[Finding]:
    """Check one Redis or Valkey server.

    Args:
        where: its URL, as it may be shown.
        wait_replicas: how many replicas are to have the end of a run.
    """
    if not server.info:
        yield Finding(
            "server-not-seen",
            HINT,
            f"this user may not ask the server at {where} how it is set up",
            "Whether it evicts, persists, and has replicas is not checked.",
            "Let the user ask for it, or look yourself and accept this",
            "ACL SETUSER ... +info +config|get",
        )
        return
    if server.info.get("cluster_enabled") == "1" and "+cluster://" not in where:
        yield cluster_node(where)
    yield from _version(server, where)
    yield from _role(server, where)
    yield from _replicas(server, where, wait_replicas)
    yield from _eviction(server, where)
    yield from _persistence(server, where)


def _version(server: Server, where: str) -> Iterator[Finding]:
    version = server.info.get("redis_version", "")
    try:
        numbers = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        return
    if numbers and numbers < _OLDEST:
        yield Finding(
            "old-server",
            ERROR,
            f"the server at {where} has version {version}",
            "The scripts use commands that servers before version 6 don't have: every task waits.",
            "Upgrade it",
            "Redis 6 or newer, or Valkey",
        )


def _role(server: Server, where: str) -> Iterator[Finding]:
    if server.info.get("role") == "slave":
        yield Finding(
            "replica",
            ERROR,
            f"the server at {where} is a replica",
            "A replica takes no writes, and may show what is over: every task waits.",
            "Name the master in idempotency_store_url, or let Sentinel name it",
            "sentinel://host:26379 with idempotency_store_options = {'master_name': '...'}",
        )
    elif server.number("connected_slaves") and server.config.get("min-replicas-to-write") == "0":
        yield Finding(
            "unsafe-failover",
            WARNING,
            f"the master at {where} goes on taking writes when it has lost its replicas",
            "Cut off from them it grants keys that the next master knows nothing of: two runs.",
            "Have it stop in that case, in its configuration",
            "min-replicas-to-write 1 and min-replicas-max-lag 10",
        )


def _replicas(server: Server, where: str, wanted: int) -> Iterator[Finding]:
    there = server.number("connected_slaves")
    if server.info.get("role") == "slave" or there >= wanted:
        return  # what is wrong with a replica is said already
    has = f"{there} replica{'' if there == 1 else 's'}"
    yield Finding(
        "too-few-replicas",
        WARNING,
        f"the server at {where} has {has}, and idempotency_wait_replicas is {wanted}",
        "The end of each run is waited for in vain and told again and again, as in an outage: each "
        "call is answered late, and a failover may lose what it returned.",
        "Connect as many replicas to the server, or set",
        f"idempotency_wait_replicas = {there}",
    )


def _eviction(server: Server, where: str) -> Iterator[Finding]:
    policy = server.info.get("maxmemory_policy", "noeviction")
    most, used = server.number("maxmemory"), server.number("used_memory")
    if policy != "noeviction":
        limit = "" if most else ", once it has a maxmemory"
        yield Finding(
            "eviction",
            ERROR,
            f"the server at {where} evicts ({policy})",
            f"It throws records away when memory is short{limit}: their tasks run again.",
            "Set, in the server's configuration",
            "maxmemory-policy noeviction",
        )
    elif most and used > _FULL * most:
        yield Finding(
            "nearly-full",
            WARNING,
            f"the server at {where} uses {used / most:.0%} of its maxmemory",
            "When it is full it takes no writes: no key is granted, and every task waits.",
            "Give it more, or keep outcomes for a shorter time (idempotency_ttl)",
            f"maxmemory {2 * most}",
        )


def _persistence(server: Server, where: str) -> Iterator[Finding]:
    fix = "Set, in the server's configuration"
    if server.info.get("aof_enabled") == "1":
        if server.config.get("appendfsync") == "no":
            yield Finding(
                "late-persistence",
                WARNING,
                f"the server at {where} leaves it to the system when writes reach the disk",
                "A crash of its machine may lose half a minute of records: their tasks run again.",
                fix,
                "appendfsync everysec",
            )
    elif keeps_nothing(server):
        yield Finding(
            "no-persistence",
            ERROR,
            f"the server at {where} keeps nothing on disk",
            "When it restarts it has forgotten what has run: duplicates run again.",
            fix,
            "appendonly yes and appendfsync everysec",
        )
    else:
        yield Finding(
            "snapshots-only",
            WARNING,
            f"the server at {where} only writes snapshots to disk",
            "A crash loses what happened since the last one, minutes of records: their tasks run "
            "again.",
            fix,
            "appendonly yes and appendfsync everysec",
        )


def keeps_nothing(server: Server) -> bool:
    """Whether nothing of a server's data is on disk, as far as it says."""
    return server.info.get("aof_enabled") == "0" and server.config.get("save") == ""


def check_clock(ahead_s: float, doubt_s: float, where: str) -> Iterator[Finding]:
    """Check a server's clock against this machine's.

    Args:
        ahead_s: how far the server's is ahead.
        doubt_s: how much of that may be the time that the answer took.
    """
    if abs(ahead_s) - doubt_s <= _CLOCK_S:
        return
    direction = "ahead of" if ahead_s > 0 else "behind"
    yield Finding(
        "clock",
        WARNING,
        f"the clock of the server at {where} is {abs(ahead_s):.0f} s {direction} this machine's",
        "Leases and windows go by the server's clock alone, but a retry that is due at a certain "
        "time was computed on a worker's: duplicates take it for lost too early, or wait too long.",
        "Keep all clocks right, on the server and here",
        "chrony or another NTP client",
    )
