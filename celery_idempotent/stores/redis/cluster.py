"""Records in Redis Cluster: each on the node that has its slot, wherever that moves to."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, TryAgainError

from celery_idempotent.errors import ConfigurationError, StoreError, StoreUnavailable
from celery_idempotent.stores.base import Subscription, or_error
from celery_idempotent.stores.redis.connect import connector, patience_of
from celery_idempotent.stores.redis.store import RedisStore
from celery_idempotent.stores.redis.subscription import ClusterSubscription
from celery_idempotent.stores.redis.wire import (
    MOST_CONNECTIONS,
    Argument,
    Connection,
    ScriptCall,
    Wire,
)
from celery_idempotent.stores.urls import mask_url

Node = tuple[str, int]
Connect = Callable[[str, int], Connection]

#: How often one call is redirected: a slot may move once more while its place is looked up.
_MOST_TURNS: Final = 5
#: How many slots a cluster has.
_SLOTS: Final = 16384


class ClusterWire:
    """A wire to each node, and which of them has which slot.

    It has the methods of :class:`.Wire`; each goes to the node that has the (first) key.

    Every key of a record has one hash tag, so that each script finds all of its keys on one node.
    While a slot is moved key by key, a script may find only some of them on either side, and the
    node says TRYAGAIN: the store is away for these keys until the slot has moved.
    """

    def __init__(
        self,
        seeds: Sequence[Node],
        connect: Connect,
        where: str,
        patience_ms: int = 2000,
        most: int = MOST_CONNECTIONS,
    ) -> None:
        self._patience_ms = patience_ms
        self._most = most
        self._seeds = tuple(seeds)
        self._connect = connect
        self._where = where
        self._wires: dict[Node, Wire] = {}
        self._owners: dict[int, Node] = {}

    def call(self, call: ScriptCall) -> Any:
        return self._where_it_is(call.keys[0], "call", call)

    def call_timed(self, call: ScriptCall) -> Any:
        return self._where_it_is(call.keys[0], "call_timed", call)

    def call_one_at_a_time(self, call: ScriptCall) -> Any:
        return self._where_it_is(call.keys[0], "call_one_at_a_time", call)

    @property
    def failed_at(self) -> float:
        return max((wire.failed_at for wire in self._wires.values()), default=-math.inf)

    def call_replicated(self, call: ScriptCall, replicas: int, timeout_ms: int) -> Any:
        return self._where_it_is(call.keys[0], "call_replicated", call, replicas, timeout_ms)

    def call_all(self, calls: Sequence[ScriptCall]) -> list[Any]:
        return self._together(calls, [call.keys[0] for call in calls], Wire.call_all, self.call)

    def command(self, *parts: Argument) -> Any:
        if len(parts) == 1:  # it names no key
            return self._anywhere(lambda wire: wire.command(*parts))[1]
        return self._where_it_is(str(parts[1]), "command", *parts)

    def commands(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        keys = [str(parts[1]) for parts in commands]
        return self._together(commands, keys, Wire.commands, lambda parts: self.command(*parts))

    def by_node(self, keys: Sequence[str]) -> list[tuple[Wire, list[str]]]:
        """Return the wire to each node that has some of these keys, and which."""
        places: dict[Node, list[str]] = {}
        for key in keys:
            places.setdefault(self._owner(_slot(key)), []).append(key)
        return [(self._wire(node), some) for node, some in places.items()]

    def wires(self) -> list[Wire]:
        """Return the wire to each node that has slots."""
        return [self._wire(node) for node in sorted(self.nodes())]

    def nodes(self) -> set[Node]:
        """Return the nodes that have slots."""
        self.look_up()
        return set(self._owners.values())

    def node_of(self, key: str) -> Node | None:
        """Return the node that has a key, as far as it was looked up; ``None``: no node has it."""
        return self._owners.get(_slot(key))

    def missing_slots(self) -> int:
        """Return how many slots no node has."""
        self.look_up()
        return _SLOTS - len(self._owners)

    def close(self) -> None:
        for wire in self._wires.values():
            wire.close()

    def _together(
        self,
        asked: Sequence[Any],
        keys: Sequence[str],
        several: Callable[[Wire, list[Any]], list[Any]],
        alone: Callable[[Any], Any],
    ) -> list[Any]:
        places: dict[Node, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(self._owner(_slot(key)), []).append(place)
        answers: list[Any] = [None] * len(asked)
        for node, indices in places.items():
            try:
                given = several(self._wire(node), [asked[index] for index in indices])
            except StoreUnavailable as exc:
                # One by one they would each wait for a node that is dead.
                given = [exc] * len(indices)
                self._try_to_look_up(node)
            for index, answer in zip(indices, given, strict=True):
                if isinstance(answer, StoreUnavailable):
                    owner = self.node_of(keys[index]) or node
                    if owner != node or isinstance(answer.__cause__, AskError):  # MovedError is one
                        answer = or_error(alone, asked[index])
                answers[index] = answer
        return answers

    def _where_it_is(self, key: str, method: str, *args: Any) -> Any:
        """Call a method of the wire to a key's node, which may be another one since."""
        slot = _slot(key)
        node, asking = self._owner(slot), False
        away: StoreUnavailable | None = None
        for turn in range(_MOST_TURNS):
            try:
                return getattr(self._wire(node), method)(*args, asking=asking)
            except StoreUnavailable as exc:
                moved = exc.__cause__
                if away is not None:
                    # One node may have carried it out, even if another redirects to it again.
                    exc.may_have_arrived = exc.may_have_arrived or away.may_have_arrived
                if away is None or not isinstance(moved, AskError):  # MovedError is one
                    away = exc
                if turn == _MOST_TURNS - 1:
                    raise away from away.__cause__
                asking = False
                if isinstance(moved, MovedError):  # first: to redis-py it is an AskError
                    node = self._owners[slot] = (moved.host or node[0], moved.port)
                elif isinstance(moved, AskError):
                    node, asking = (moved.host or node[0], moved.port), True
                elif moved is None or isinstance(moved, TryAgainError):
                    raise  # its replicas are late, or the slot's keys are on two nodes now
                else:
                    # It may be gone, and a replica be the master now: the other nodes know.
                    before = node
                    self._try_to_look_up(node)
                    node = self._owner(slot)
                    if node == before:
                        raise
        raise AssertionError  # pragma: no cover

    def _owner(self, slot: int) -> Node:
        if slot not in self._owners:
            self.look_up()
        try:
            return self._owners[slot]
        except KeyError:
            raise StoreUnavailable(
                f"the store at {self._where} has no node for slot {slot}: the cluster is incomplete"
            ) from None

    def _try_to_look_up(self, doubted: Node) -> None:
        # Where nobody answers, what is known stays, and the first error is the one to tell.
        with contextlib.suppress(StoreError):
            self.look_up(doubted)

    def look_up(self, doubted: Node | None = None) -> None:
        """Ask again which node has which slot; a doubted node is asked last."""
        asked, slots = self._anywhere(lambda wire: wire.command("CLUSTER", "SLOTS"), doubted)
        self._owners = {
            slot: ((master[0] or b"").decode() or asked[0], int(master[1]))
            for first, last, master, *_ in slots
            for slot in range(first, last + 1)
        }
        for node in self._wires.keys() - set(self._owners.values()):
            self._wires[node].close()

    def _anywhere(
        self, ask: Callable[[Wire], Any], doubted: Node | None = None
    ) -> tuple[Node, Any]:
        """Return the first node that answers, and its answer; a doubted node is asked last."""
        last: StoreError = StoreUnavailable(f"the store at {self._where} names no node")
        nodes = dict.fromkeys([*self._owners.values(), *self._seeds])
        for node in sorted(nodes, key=lambda node: node == doubted):
            try:
                return node, ask(self._wire(node))
            except StoreUnavailable as exc:
                last = exc
        raise last

    def _wire(self, node: Node) -> Wire:
        if node not in self._wires:
            where = f"{node[0]}:{node[1]}"
            self._wires[node] = Wire(
                lambda: self._connect(*node), where, self._patience_ms, self._most
            )
        return self._wires[node]


class ClusterStore(RedisStore):
    """A :class:`~celery_idempotent.stores.base.Store` on Redis Cluster."""

    #: Ends of runs are told on the node that has their records.
    _publish = "SPUBLISH"
    _wire: Any

    @classmethod
    def from_url(cls, url: str, options: Mapping[str, Any] | None = None) -> ClusterStore:
        """Make a store from ``redis+cluster://user:password@host:port,host:port``."""
        given = dict(options or {})
        replicas = given.pop("wait_replicas", 0)
        scheme, _, rest = url.partition("+cluster://")
        hosts, *tail = rest.partition("/")
        login, at, named = hosts.rpartition("@")
        seeds = named.split(",")
        first = f"{scheme}://{login}{at}{seeds[0]}{''.join(tail)}"
        connection_class, kwargs, most = connector(first, given)
        if kwargs.get("db"):
            raise ConfigurationError(
                f"the store's URL {mask_url(url)!r} names a database: a cluster has only 0"
            )
        nodes = [_node(seed, url) for seed in seeds]

        def connect(host: str, port: int) -> Connection:
            made: Connection = connection_class(**{**kwargs, "host": host, "port": port})
            return made

        wire: Any = ClusterWire(nodes, connect, mask_url(url), 2 * patience_of(kwargs), most)
        return cls(wire, (replicas, patience_of(kwargs)))

    def subscribe(self) -> Subscription:
        self._wire.look_up()
        return ClusterSubscription(self._wire)

    def one_key_each(self, make: Callable[[], str]) -> list[str]:
        found: dict[Node, str] = {}
        nodes = self._wire.nodes()
        while len(found) < len(nodes):
            key = make()
            node = self._wire.node_of(key)
            if node is not None:
                found.setdefault(node, key)
        return list(found.values())

    def missing_slots(self) -> int:
        missing: int = self._wire.missing_slots()
        return missing


def _slot(key: str) -> int:
    return int(key_slot(key.encode("utf-8", "surrogatepass")))


def _node(seed: str, url: str) -> Node:
    host, _, port = seed.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigurationError(
            f"the store's URL {mask_url(url)!r} cannot be read: it names nodes as host:port, with "
            "commas between them"
        )
    return host.strip("[]"), int(port)
