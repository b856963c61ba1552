"""What may happen to a record (events), what a store answers (verdicts), and what it writes.

They are named tuples: a frozen dataclass takes thrice as long to make, and a program that imports
the library waits for each. Those without a field are not: as a tuple they would be false.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.slip import NO_SLIP, Slip

#: Leave the record's time to live as it is.
KEEP_TTL: Final = -1
#: An instant that no clock reaches, in milliseconds.
NEVER_MS: Final = 2**53 - 1
#: How long an unknown outcome waits to be resolved: 30 days.
UNKNOWN_TTL_MS: Final = 30 * 86_400_000


class Write(NamedTuple):
    """What to store: a record, a slip, a reservation, or several of them as one step.

    Times to live are from now; ``KEEP_TTL``: as before.
    """

    #: ``None``: the record is left as it is.
    record: Record | None
    ttl_ms: int = KEEP_TTL
    slip: Slip | None = None
    #: With a slip: how long it is to live. Without one: 0 deletes the slip that is there.
    slip_ttl_ms: int = KEEP_TTL
    #: Whether the slip may be written first: a reader that sees it alone waits for the record.
    slip_first: bool = False
    #: Whether it only marks the record as awaited: a store that can't at once leaves it out.
    only_marks: bool = False
    #: Whether those who wait for the record's run are to be told that it is over.
    wakes: bool = False
    #: Whether the key's reservation is deleted.
    drops_queued: bool = False
    #: What the key's reservation becomes, until its own ``until_ms``; ``None``: see above.
    queued: Reservation | None = None


# --- verdicts ------------------------------------------------------------------------------------


_NO_STEPS: Final[Mapping[str, bytes]] = MappingProxyType({})


class Claimed(NamedTuple):
    """The key is this run's: run the body."""

    token: int
    #: How many earlier runs were cut off. If there were any, an effect may have happened already.
    interruptions: int = 0
    #: Set if the body has failed for good: then only run the compensations of this record.
    failed: Record | None = None
    #: The packed steps that earlier runs finished, by name; the store adds them.
    steps: Mapping[str, bytes] = _NO_STEPS
    #: Who began what this run goes on with: see :attr:`.Label.origin`.
    origin: str = ""
    #: When its call came first: see :attr:`.Label.came`.
    came: str = ""
    #: Other calls whose runs were cut off: see :attr:`.Label.cut_off`.
    cut_off: str = ""


class Busy(NamedTuple):
    """Another delivery holds the key, or is about to: wait."""

    record: Record
    #: Whether it is the same message, delivered again.
    mine: bool
    #: The store's clock; where the message can't say when its call came first: that instant.
    now_ms: int


class Replay(NamedTuple):
    """There is an outcome: answer with it."""

    record: Record
    mine: bool
    #: Whether this message's callbacks have gone out already.
    noted: bool
    #: Whether the outcome comes from a slip: then there is no lease to renew.
    from_slip: bool = False


@dataclass(frozen=True, slots=True)
class Superseded:
    """The message is an old copy: a later message replaced it, or its call was answered."""


class Mismatch(NamedTuple):
    """The key belongs to a call with other arguments."""

    record: Record


class Unknown(NamedTuple):
    """A run was cut off, or could not be undone; what it did is not known."""

    record: Record
    #: Whether this message's callbacks have gone out already.
    noted: bool = False


class Recorded(NamedTuple):
    """The write was accepted; the record now carries ``token``."""

    token: int
    #: Whether a copy of the run's message has answered its call already, or is about to.
    answered: bool = False


class Lost(NamedTuple):
    """The write was refused: the record belongs to another run, or to none."""

    record: Record
    #: Whether a copy of the run's message has already given the call its final answer.
    answered: bool = False


@dataclass(frozen=True, slots=True)
class Reserved:
    """The key is reserved for the call, which is to be published."""


class Taken(NamedTuple):
    """Another call has the key: this one need not be published."""

    #: The packed owner of that call.
    owner: bytes
    #: What it is: RUNNING, RETRYING, SUCCEEDED or FAILED; ``None``: it is queued.
    state: State | None


ClaimVerdict = Claimed | Busy | Replay | Superseded | Mismatch | Unknown


# --- events --------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """A delivery asks for its key."""

    #: The record as it would be written, less token, ``until_ms`` and interruptions.
    candidate: Record
    lease_ms: int
    #: How long an unfinished record is kept after its last renewal.
    keep_ms: int
    #: More interruptions than this make the outcome unknown.
    max_interruptions: int = 3
    #: The same for runs that only compensate.
    max_compensations: int = 3
    #: Whether another fingerprint in the record refuses this call.
    checked: bool = False
    #: Whether the message carries callbacks, so that its note counts.
    callbacks: bool = False
    #: Whether this message was made only to continue a compensation.
    compensates_only: bool = False
    #: The (packed) owner of the run that this caller waited for last, and the key of its slip.
    awaited: bytes = b""
    awaited_key: str = ""
    #: Distinguishes this message from others of its owner; ``digests`` are of its callbacks.
    message: Slip = NO_SLIP
    #: The key of the owner's slip; empty: none is kept.
    slip_key: str = ""
    #: Whether nothing suggests a copy: it has no publication, and is not redelivered.
    is_new: bool = False
    #: Until then no lease that ran out is taken over, on the store's clock (``NEVER_MS``: not now).
    #: The store was away during this delivery, and live runs have to renew first.
    patient_until_ms: int = 0
    #: From then on, on the store's clock, a delivery that finds another call's run is refused, and
    #: not put back (``NEVER_MS``: it waits).
    refused_from_ms: int = NEVER_MS
    #: Whether the key is free when its run ends (a window of 0).
    frees: bool = False
    #: Whether each call runs in its turn: another call's run is nothing that it goes on with.
    in_turn: bool = False
    #: The key of the reservation, which a granted claim deletes, as any delivery of the call that
    #: is reserved does. Empty: the task's calls are not reserved.
    queued_key: str = ""
    #: Whether of those that wait only the one that came last is to run.
    latest: bool = False
    #: When this call came first, on the store's clock in milliseconds; 0: its message does not say.
    came_ms: int = 0
    #: How long copies of the message may come: a duplicate whose record ends sooner gets a slip.
    horizon_ms: int = 0


class Reserve(NamedTuple):
    """A call is about to be published."""

    #: The reservation to write. Its times are from now.
    reservation: Reservation
    #: For how long it is kept unless it is confirmed.
    hold_ms: int
    #: Whether another call may take its place; if not, it is published in any case.
    attaches: bool = True
    #: Whether another fingerprint keeps the two calls apart.
    checked: bool = False
    #: Packed owners of calls that are over, as the result backend says.
    over: tuple[bytes, ...] = ()


class Resolve(NamedTuple):
    """An operator settles a run whose outcome is unknown."""

    #: SUCCEEDED, FAILED (undo its steps, then free the key, and keep the outcome for its own call)
    #: or RELEASED (free it for a rerun).
    state: State
    #: The result, or the failure; empty for a rerun.
    outcome: bytes
    ttl_ms: int
    #: Whether finished steps are to be compensated.
    compensate: bool = False
    #: Whether the next run of the key begins without the steps that are finished.
    clears_steps: bool = False


class Settle(NamedTuple):
    """A run ends or hands over, and its record changes."""

    #: The record to write. Its token is the run's, and the store compares it.
    record: Record
    #: ``until_ms`` of the new record, from now: a retry's delay, a delivery lease, or 0.
    delay_ms: int
    ttl_ms: int
    #: The slip to write with it; ``None``: the record alone answers leftover copies.
    slip: Slip | None = None
    slip_ttl_ms: int = 0
    #: The key of the owner's slip; empty: none is kept.
    slip_key: str = ""
    #: Whether the next run of the key begins without the steps that are finished.
    clears_steps: bool = False
    #: What the names of the run's steps begin with, if only those are deleted: others stay.
    drops_steps_of: str = ""
    #: The key of the reservation, which is deleted with it. Empty: it is left as it is.
    queued_key: str = ""

    @property
    def keeps_lease(self) -> bool:
        """Whether the key is held on, for callbacks or for a compensation."""
        return self.delay_ms > 0 and self.record.state not in (State.RETRYING, State.RUNNING)


class Renewal(NamedTuple):
    """One lease to prolong: the record as its holder knows it, and for how long."""

    key: str
    held: Record
    lease_ms: int
    keep_ms: int
    #: The key of the owner's slip, which is asked where there is no record; empty: none is kept.
    slip_key: str = ""


class Note(NamedTuple):
    """A delivery is over, and its message's slip changes."""

    slip_key: str
    #: What is added to the slip. If it is not answered, the callbacks could not be sent, and only
    #: the lease on them ends.
    slip: Slip
    #: The run's token, whose delivery lease ends; 0: it held none.
    token: int
    ttl_ms: int
    #: For how long whoever notes that may still be sending the callbacks, from now.
    sends_ms: int = 0
