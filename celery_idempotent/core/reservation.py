"""The reservation of a call that is published, and not yet delivered.

It is stored beside its record, at ``<key>:queued``, never in it: the record keeps the outcome, the
steps and the token of what ran before. Layout, big-endian::

    version:1 flags:1 due_ms:8 expires_ms:8 since_ms:8 until_ms:8 owner:1+n fingerprint:1+n
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from celery_idempotent.core.keys import Owner
from celery_idempotent.errors import RecordCorrupt

_QUEUED: Final = ":queued"
_VERSION: Final = 1
_CONFIRMED: Final = 1
_KEEPS_RESULT: Final = 2
_WAITS: Final = 4
_HEADER: Final = struct.Struct(">BBQQQQ")


def queued_key(key: str) -> str:
    """Return the key of a record's reservation: by the hash tag it is on the same server."""
    return f"{key}{_QUEUED}"


def key_of_queued(queued_key: str) -> str | None:
    """Return the key of the record beside which a reservation is; ``None``: it is no reservation's.

    The key of a record ends with its hash tag. That of a slip may end with any text.
    """
    key = queued_key.removesuffix(_QUEUED)
    return key if key != queued_key and key.endswith("}") and "}:" not in key else None


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
    #: Since when the key is reserved, and until when. The store writes both, for people to read.
    since_ms: int = 0
    until_ms: int = 0
    #: Whether it is not in its queue, but waits to run next (``idempotency_after_wait = "last"``).
    #: Then ``since_ms`` is its place, and ``due_ms`` until when those before it let it go first,
    #: once the key is free.
    waits: bool = False

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
        flags += _WAITS * self.waits
        times = self.due_ms, self.expires_ms, self.since_ms, self.until_ms
        header = _HEADER.pack(_VERSION, flags, *times)
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
            _, flags, due_ms, expires_ms, since_ms, until_ms = _HEADER.unpack_from(packed)
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
            since_ms,
            until_ms,
            flags & _WAITS != 0,
        )
