"""What is going to happen, from a seed alone: the traffic, and the schedule of faults."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum
from typing import Final

LEASE_S: Final = 5.0
#: Longer than a lease, so that Redis delivers again when the key is free.
VISIBILITY_TIMEOUT_S: Final = 9

#: A lease is never older than two thirds when it is renewed. So a stall of less than a third of it
#: costs no key, and a stall that is longer than all of it costs each key that it touches. No stall
#: in between is planned: either result would be right.
SHORT_S: Final = (0.3, 0.8)
LONG_S: Final = (LEASE_S + 0.8, LEASE_S + 2.5)
#: Between two stalls leases are renewed: two short ones must not add up to a long one.
REST_S: Final = (2.0, 3.5)

#: Calls with a key of their own each second, in each part of the system.
RATE: Final = 6.0


class Act(str, Enum):
    """What is done to the system."""

    KILL_CHILD = "kill a child"
    KILL_WORKER = "kill a worker"
    CUT = "cut connections"
    STOP_CHILD = "stop a child"
    STOP_WORKER = "stop a worker"
    PAUSE_SERVER = "pause the server"
    KILL_SERVER = "kill the server"
    #: Not planned: kombu 5.7 ends a worker whose Redis goes away while it is reconnecting.
    ENDED = "a worker ended by itself"


#: These stop somebody for a time; the others end or cut something at once.
STALLS: Final = frozenset({Act.STOP_CHILD, Act.STOP_WORKER, Act.PAUSE_SERVER, Act.KILL_SERVER})


@dataclass(frozen=True)
class Part:
    """A part of the system: workers on one broker with one store."""

    name: str
    broker: str  # "redis" or "rabbitmq"
    store: str  # "redis", "postgresql" or "sqlite"
    workers: int
    concurrency: int
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """One key's traffic: what is called, how often, and how its body behaves."""

    at: float
    part: str
    kind: str
    key: str
    #: Seconds after ``at`` at which it is published, 0 among them.
    copies: tuple[float, ...]
    #: How long the body works before its effect, and after it.
    before: float
    after: float
    retries: int = 0


@dataclass(frozen=True)
class Fault:
    """One act. ``pick`` in [0, 1) says which of those that are there then."""

    at: float
    act: Act
    part: str  # "" for the server
    pick: float
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """All that is going to happen."""

    seed: int
    seconds: float
    parts: tuple[Part, ...]
    calls: tuple[Call, ...]
    faults: tuple[Fault, ...]


def parts_of(rabbitmq: bool, postgresql: bool) -> tuple[Part, ...]:
    """What the system consists of, given which services there are."""
    kinds = ("charge", "flaky", "steps", "insert", "chain", "chord")
    parts = [Part("redis", "redis", "redis", 2, 3, kinds)]
    if rabbitmq:
        parts.append(Part("rabbitmq", "rabbitmq", "redis", 2, 3, kinds))
    broker = "rabbitmq" if rabbitmq else "redis"
    # SQLite has one writer: more processes would only wait for it.
    database, workers = ("postgresql", 2) if postgresql else ("sqlite", 1)
    parts.append(Part("sessions", broker, database, workers, 2, ("book",)))
    return tuple(parts)


def make_plan(seed: int, seconds: float, parts: tuple[Part, ...]) -> Plan:
    """Make a plan: the same for the same arguments, and each part's traffic whatever else is."""
    calls = [call for part in parts for call in _traffic(seed, seconds, part)]
    faults = [*_stalls(seed, seconds, parts), *_kills(seed, seconds, parts)]
    return Plan(
        seed,
        seconds,
        parts,
        tuple(sorted(calls, key=lambda call: (call.at, call.key))),
        tuple(sorted(faults, key=lambda fault: (fault.at, fault.act.value))),
    )


def _traffic(seed: int, seconds: float, part: Part) -> list[Call]:
    rng = random.Random(f"{seed}/traffic/{part.name}")
    weights = {"charge": 8, "flaky": 3, "steps": 3, "insert": 3, "chain": 1, "chord": 1, "book": 1}
    rate = RATE if part.store == "redis" else 2.0 if part.store == "postgresql" else 1.0
    calls, at = [], 0.0
    while True:
        at += rng.expovariate(rate)
        if at >= seconds:
            return calls
        kind = rng.choices(part.kinds, [weights[kind] for kind in part.kinds])[0]
        copies = [0.0, *(rng.uniform(0, 4) for _ in range(rng.choice((0, 0, 1, 1, 2, 3))))]
        if kind in ("chain", "chord"):
            copies = copies[:2]
        # Some work long enough for a fault to find them at it.
        long = rng.random() < 0.05
        calls.append(
            Call(
                round(at, 3),
                part.name,
                kind,
                f"{part.name}-{kind}-{len(calls)}",
                tuple(round(copy, 3) for copy in copies),
                round(rng.uniform(0.5, 3.0) if long else rng.uniform(0.0, 0.15), 3),
                round(rng.uniform(0.1, 1.0) if long else rng.uniform(0.0, 0.1), 3),
                rng.choice((1, 1, 2)) if kind == "flaky" else 0,
            )
        )


def _stalls(seed: int, seconds: float, parts: tuple[Part, ...]) -> list[Fault]:
    rng = random.Random(f"{seed}/stalls/{','.join(part.name for part in parts)}")
    faults, at = [], rng.uniform(1.0, 2.0)
    while True:
        act = rng.choices(
            (Act.KILL_SERVER, Act.PAUSE_SERVER, Act.STOP_WORKER, Act.STOP_CHILD), (4, 2, 3, 3)
        )[0]
        long = rng.random() < 0.4
        length = rng.uniform(*(LONG_S if long else SHORT_S))
        part = rng.choice(parts).name if act in (Act.STOP_WORKER, Act.STOP_CHILD) else ""
        pick, rest = rng.random(), rng.uniform(*REST_S)
        if at + length >= seconds:
            return faults
        faults.append(Fault(round(at, 3), act, part, round(pick, 4), round(length, 3)))
        at += length + rest


def _kills(seed: int, seconds: float, parts: tuple[Part, ...]) -> list[Fault]:
    rng = random.Random(f"{seed}/kills/{','.join(part.name for part in parts)}")
    faults, at = [], rng.uniform(1.0, 2.0)
    while at < seconds:
        part = rng.choice(parts)
        # A whole worker on Redis may be killed as it takes a message, and kombu loses that one: see
        # "A message that its broker loses" in the guarantees. It is found, named and counted.
        acts = [(Act.KILL_CHILD, 6), (Act.KILL_WORKER, 2)]
        if part.broker == "rabbitmq":
            acts += [(Act.CUT, 2)]
        act = rng.choices([act for act, _ in acts], [weight for _, weight in acts])[0]
        faults.append(Fault(round(at, 3), act, part.name, round(rng.random(), 4)))
        at += rng.uniform(0.4, 2.0)
    return faults
