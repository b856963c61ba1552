"""What may happen to a record (events), what a store answers (verdicts), and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from celery_idempotent.core.record import Record, State

__all__ = [
    "KEEP_TTL",
    "UNKNOWN_TTL_MS",
    "Busy",
    "Claim",
    "ClaimVerdict",
    "Claimed",
    "Lost",
    "Mismatch",
    "Recorded",
    "Replay",
    "Resolve",
    "Settle",
    "Superseded",
    "Unknown",
    "Write",
]

#: Leave the record's time to live as it is.
KEEP_TTL: Final = -1
#: How long an unknown outcome waits to be resolved: 30 days.
UNKNOWN_TTL_MS: Final = 30 * 86_400_000


class Write(NamedTuple):
    """The record to store, and how long it is to live from now (``KEEP_TTL``: as before)."""

    record: Record
    ttl_ms: int


# --- verdicts ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claimed:
    """The key is this run's: run the body."""

    token: int
    #: Earlier runs that were cut off; more than none: an effect may have happened already.
    interruptions: int = 0
    #: Set where the body has failed for good: only go on with the compensations of this record.
    failed: Record | None = None
    #: The (packed) steps that earlier runs finished, by name; a store fills them in.
    steps: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Busy:
    """Somebody holds the key, or is about to: wait."""

    record: Record
    #: Whether it is the same message, delivered again.
    mine: bool
    now_ms: int


@dataclass(frozen=True, slots=True)
class Replay:
    """There is an outcome: answer with it."""

    record: Record
    mine: bool
    #: Whether this message's callbacks have gone out already.
    noted: bool


@dataclass(frozen=True, slots=True)
class Superseded:
    """An old copy of a message whose successor was published, or whose answer was given."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The key belongs to a call with other arguments."""

    record: Record


@dataclass(frozen=True, slots=True)
class Unknown:
    """A run was interrupted, and nobody knows whether its effect happened."""

    record: Record


@dataclass(frozen=True, slots=True)
class Recorded:
    """The write was accepted; the record now carries ``token``."""

    token: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The write was refused: the record is another run's, or nobody's."""

    record: Record


ClaimVerdict = Claimed | Busy | Replay | Superseded | Mismatch | Unknown


# --- events --------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """One message asks for its key."""

    #: The record as it would be written, less token, ``until_ms`` and interruptions.
    candidate: Record
    lease_ms: int
    #: How long an unfinished record lives after its last sign of life.
    keep_ms: int
    #: Interruptions beyond this make the outcome unknown (0: the first one does).
    max_interruptions: int = 3
    #: The same for runs that only compensate.
    max_compensations: int = 3
    #: Whether another fingerprint in the record refuses this call.
    checked: bool = False
    #: Whether the message carries callbacks, so that its note counts.
    callbacks: bool = False
    #: Whether this message was made to go on with a compensation, and for nothing else.
    compensates_only: bool = False
    #: The (packed) owner of the run that this caller waited for last.
    awaited: bytes = b""
    #: What the caller can do while the store works. A store that waits for a server may call it
    #: meanwhile, once or more; one that doesn't leaves it to the caller.
    meanwhile: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Resolve:
    """A person says how a run ended whose outcome is unknown."""

    #: SUCCEEDED, FAILED (undo its steps, then free the key) or RELEASED (free it for a rerun).
    state: State
    #: The result, or the failure; empty for a rerun.
    outcome: bytes
    ttl_ms: int
    #: Whether finished steps are to be compensated.
    compensate: bool = False


class Settle(NamedTuple):
    """A run ends, or hands over: what its record becomes."""

    #: The record to write; its token is the run's, and is what is checked.
    record: Record
    #: ``until_ms`` of the new record, from now: a retry's delay, a delivery lease, or 0.
    delay_ms: int
    ttl_ms: int
    #: As :attr:`Claim.meanwhile`.
    meanwhile: Callable[[], object] | None = None
