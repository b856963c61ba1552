"""The reservation of a call that is published, and not yet delivered.

It is stored beside its record, at ``<key>:queued``, never in it: the record keeps the outcome, the
steps and the token of what ran before. Layout, big-endian::

    version:1 flags:1 due_ms:8 expires_ms:8 owner:1+n fingerprint:1+n
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from celery_idempotent.core.record import Owner
from celery_idempotent.errors import RecordCorrupt

__all__ = ["Reservation", "queued_key"]

_VERSION: Final = 1
_CONFIRMED: Final = 1
_KEEPS_RESULT: Final = 2
_HEADER: Final = struct.Struct(">BBQQ")


def queued_key(key: str) -> str:
    """Return the key of a record's reservation: by the hash tag it is on the same server."""
    return f"{key}:queued"


class Reservation(NamedTuple):
    """A call that is about to be published, or is in its queue."""

    #: Packed :class:`.Owner`; empty: it can't be read, and stops nobody.
    owner: bytes = b""
    #: When it is due, and when its message expires (0: never). In milliseconds: since 1970 on the
    #: store's clock; in what a producer asks for, from now.
    due_ms: int = 0
    expires_ms: int = 0
    #: Whether its message was published. Only then another call is stopped for it.
    is_confirmed: bool = False
    #: Whether its result is kept, for others to get it.
    keeps_result: bool = True
    #: Digest of the arguments.
    fingerprint: bytes = b""

    @property
    def task_id(self) -> str | None:
        """The call's task id; ``None``: it can't be read."""
        try:
            owner = Owner.unpack(self.owner)
        except RecordCorrupt:
            return None
        return None if owner is None else owner.task_id

    def pack(self) -> bytes:
        """Return the stored form."""
        flags = _CONFIRMED * self.is_confirmed + _KEEPS_RESULT * self.keeps_result
        header = _HEADER.pack(_VERSION, flags, self.due_ms, self.expires_ms)
        return b"%b%c%b%c%b" % (
            header,
            len(self.owner),
            self.owner,
            len(self.fingerprint),
            self.fingerprint,
        )

    @classmethod
    def unpack(cls, packed: bytes | None) -> Reservation | None:
        """Read the stored form. What can't be read is a reservation that stops nobody."""
        if packed is None:
            return None
        try:
            if packed[0] != _VERSION:
                raise ValueError("another version")
            _, flags, due_ms, expires_ms = _HEADER.unpack_from(packed)
            fingerprint_at = _HEADER.size + 1 + packed[_HEADER.size]
            end = fingerprint_at + 1 + packed[fingerprint_at]
            if end > len(packed):
                raise ValueError("cut short")
        except (struct.error, ValueError, LookupError):
            return cls()
        return cls(
            packed[_HEADER.size + 1 : fingerprint_at],
            due_ms,
            expires_ms,
            flags & _CONFIRMED != 0,
            flags & _KEEPS_RESULT != 0,
            packed[fingerprint_at + 1 : end],
        )
