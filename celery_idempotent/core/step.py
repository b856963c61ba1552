"""One finished step of a run, and its packed form.

Layout, big-endian: ``state:1 order:2 compensation:4+n outcome:rest``.
"""

from __future__ import annotations

import enum
import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from celery_idempotent.core.codec import NOT_KEPT
from celery_idempotent.errors import RecordCorrupt

#: What a checkpoint's name begins with among the names of steps; no step's own name does.
CHECKPOINT: Final = "@"
#: How long the name of a step or of a loop may be, in characters.
MAX_NAME: Final = 200

_HEAD = struct.Struct(">BHI")


class StepState(enum.IntEnum):
    """The state of a step's effect."""

    #: It happened.
    DONE = 1
    #: It was undone after the body failed for good; a later run does it again.
    COMPENSATED = 2

    def __str__(self) -> str:
        return self.name.lower()


class Cut(NamedTuple):
    """What stays of a record's steps, and what goes, in the order of the run."""

    #: The stored name of the first that goes; empty: there is no such step.
    start: str
    kept: list[str]
    dropped: list[str]


class Step(NamedTuple):
    """A step that finished."""

    state: StepState
    #: Its position among the steps of its run, from 0; compensations run in reverse order. A
    #: checkpoint moves behind the steps that it was recorded after; 0: an older release wrote it.
    order: int
    #: The packed result (see :mod:`.codec`).
    outcome: bytes
    #: The signature that undoes it, as JSON; empty where there is none.
    compensation: bytes = b""

    @property
    def is_kept(self) -> bool:
        """Whether its result was kept."""
        return self.outcome != NOT_KEPT

    @property
    def can_be_undone(self) -> bool:
        """Whether its compensation can run: it has its result, or needs none (an immutable one)."""
        if self.state is not StepState.DONE or not self.compensation:
            return False
        return self.is_kept or bool(json.loads(self.compensation).get("immutable"))

    def pack(self) -> bytes:
        """Return the stored form."""
        head = _HEAD.pack(self.state, min(self.order, 0xFFFF), len(self.compensation))
        return head + self.compensation + self.outcome

    @classmethod
    def unpack(cls, packed: bytes) -> Step:
        """Read the stored form.

        Raises:
            RecordCorrupt: it is no step, or is cut short.
        """
        try:
            state, order, length = _HEAD.unpack_from(packed)
            end = _HEAD.size + length
            if end > len(packed):
                raise ValueError("cut short")
            return cls(StepState(state), order, packed[end:], packed[_HEAD.size : end])
        except (struct.error, ValueError) as exc:
            raise RecordCorrupt(
                f"a stored step cannot be read ({exc}): forget the key to free it"
            ) from exc


def cut(packed: Mapping[str, bytes], start: str) -> Cut:
    """Cut a record's steps in two, for a call that is run again from one of them on.

    Args:
        packed: the steps by their stored names.
        start: a step's name, or that of a loop, whose checkpoint is cut off then.

    Raises:
        RecordCorrupt: one can't be read.
    """
    steps = {name: Step.unpack(step) for name, step in packed.items()}
    # A checkpoint without a place, by an older release, may have come after any step.
    places = {
        name: step.order if step.order or not name.startswith(CHECKPOINT) else 1 << 16
        for name, step in steps.items()
    }
    names = sorted(places, key=lambda name: (places[name], name))
    found = start if start in steps else CHECKPOINT + start
    if found not in steps:
        return Cut("", names, [])
    at = places[found]
    return Cut(
        found,
        [name for name in names if places[name] < at],
        [name for name in names if places[name] >= at],
    )


def steps_of(owner: bytes) -> str:
    """Return what the stored names of a call's steps begin with, where calls run in turn.

    Args:
        owner: packed :class:`.Owner`.
    """
    return hashlib.blake2b(owner, digest_size=8).hexdigest() + "/"


def name_of(name: str) -> str:
    """Return what people read of a stored name: ``step 'charge'``, ``checkpoint 'export'``."""
    if name.startswith(CHECKPOINT):
        return f"checkpoint {name.removeprefix(CHECKPOINT)!r}".removesuffix(" ''")
    return f"step {name!r}"
