"""The commands that a user of a Redis or Valkey store needs, and the ACL rule that grants them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: What workers, producers and the HTTP edge send, themselves or in scripts. ``select`` is for a
#: database other than 0, ``wait`` for ``idempotency_wait_replicas``.
WORKER_COMMANDS: Final = (
    *("evalsha", "eval", "time", "get", "set", "exists", "del", "type", "pttl", "pexpire"),
    *("hset", "hgetall", "hkeys", "hdel", "xadd", "xtrim", "zadd", "zremrangebyscore"),
    *("ping", "select", "wait", "getrange", "publish", "subscribe", "unsubscribe"),
)
#: What lists, ``why``, Flower and the doctor send beyond that.
OPERATOR_COMMANDS: Final = (
    *("scan", "xrevrange", "zrange", "zrem", "dbsize", "info", "config|get"),
)
#: What a store in a cluster needs beyond that.
CLUSTER_COMMANDS: Final = (*("cluster|slots", "asking", "spublish", "ssubscribe", "sunsubscribe"),)


def rule_of(prefix: str, commands: Iterable[str]) -> str:
    """Return the part of an ACL rule that grants commands on keys and channels of a prefix."""
    pattern = "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in prefix)
    return " ".join([f"~{pattern}:*", f"&{pattern}:*", *(f"+{command}" for command in commands)])
