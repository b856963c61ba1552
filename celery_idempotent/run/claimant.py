"""Who asks the store for a key, on which terms, and how a run of it ended."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from typing import NamedTuple

from celery_idempotent.core.record import State
from celery_idempotent.core.reservation import queued_key
from celery_idempotent.core.slip import NO_SLIP, Slip
from celery_idempotent.core.verdicts import NEVER_MS
from celery_idempotent.stores.base import Store


@dataclass(slots=True)
class Terms:
    """What all deliveries of a task have in common, made of options whose times are in seconds.

    It is never changed. Its fields, and a claimant's, are read some forty times a delivery: that
    takes a third of what it does from a named tuple.
    """

    store: Store
    lease_s: InitVar[float]
    ttl_s: InitVar[float]
    horizon_s: InitVar[float]
    max_interruptions: int
    max_compensations: int
    #: Whether each call runs in its turn, whatever the run became that it waited for.
    in_turn: bool = False
    #: Whether the task's calls are reserved when they are published.
    reserves: bool = False
    #: Whether of those that wait only the one that came last is to run.
    latest: bool = False
    lease_ms: int = field(init=False)
    #: How long a finished record lives, in milliseconds.
    ttl_ms: int = field(init=False)
    #: How long a copy of a message may still come.
    horizon_ms: int = field(init=False)
    #: How long an unfinished record lives after its last sign of life.
    keep_ms: int = field(init=False)

    def __post_init__(self, lease_s: float, ttl_s: float, horizon_s: float) -> None:
        times = (int(1000 * it) for it in (lease_s, ttl_s, horizon_s))
        self.lease_ms, self.ttl_ms, self.horizon_ms = times
        self.keep_ms = max(self.lease_ms, self.ttl_ms, self.horizon_ms)

    @property
    def frees(self) -> bool:
        """Whether a key is free when its run ends: there is no window."""
        return not self.ttl_ms


@dataclass(slots=True)
class Claimant:
    """One delivery, as it asks the store for its key; it is not changed after that.

    What a claim has, too, is explained there: :class:`.Claim`.
    """

    terms: Terms
    #: The record's key.
    key: str
    owner: bytes
    retries: int
    fingerprint: bytes
    checked: bool
    label: str
    slip_key: str = ""
    message: Slip = NO_SLIP
    callbacks: bool = False
    is_new: bool = False
    patient_until_ms: int = 0
    compensates_only: bool = False
    awaited: bytes = b""
    awaited_key: str = ""
    refused_from_ms: int = NEVER_MS
    came_ms: int = 0

    @property
    def queued_key(self) -> str:
        """The key of the reservation that its claim ends; empty: the calls are not reserved."""
        return queued_key(self.key) if self.terms.reserves or self.terms.latest else ""


class Ending(NamedTuple):
    """How a run ended, as far as its record is concerned."""

    state: State
    #: Running: the answer of its own call alone, which it fails by being cut off.
    outcome: bytes = b""
    #: Retrying: how long until the retry is due, and its number. Compensating: the next lease.
    delay_ms: int = 0
    retries: int = 0
    #: Released: whether this is the final answer of the run's own call.
    answers: bool = True
