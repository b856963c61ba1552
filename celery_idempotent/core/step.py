"""One finished step of a run, and its packed form.

Layout, big-endian: ``state:1 order:2 compensation:4+n outcome:rest``.
"""

from __future__ import annotations

import enum
import json
import struct
from dataclasses import dataclass
from typing import Final

from celery_idempotent.core.codec import NOT_KEPT
from celery_idempotent.errors import RecordCorrupt

__all__ = ["CHECKPOINT", "MAX_NAME", "Step", "StepState", "name_of"]

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


@dataclass(frozen=True, slots=True)
class Step:
    """A step that finished."""

    state: StepState
    #: Its position among the steps of its run, from 0; compensations run in reverse order.
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


def name_of(name: str) -> str:
    """Return what people read of a stored name: ``step 'charge'``, ``checkpoint 'export'``."""
    if name.startswith(CHECKPOINT):
        return f"checkpoint {name.removeprefix(CHECKPOINT)!r}".removesuffix(" ''")
    return f"step {name!r}"
