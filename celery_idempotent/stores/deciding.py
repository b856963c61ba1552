"""What the stores share that read a record, let :mod:`.transitions` decide, and write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from celery_idempotent.core.record import Record
from celery_idempotent.core.slip import OLD_NOTE, Slip
from celery_idempotent.errors import StoreError

__all__ = ["FRESH_US", "Row", "slip_of"]

#: For how long what was decided may be carried out, by the database's clock: a server that stood
#: still must not find, when it goes on, what its clients have given up.
FRESH_US: Final = 10_000_000


@dataclass(frozen=True)
class Row:
    """What one read found; ``stamp`` is ``None`` where there is no row."""

    now_us: int
    packed: bytes = b""
    stamp: int | None = None
    token: int = 0
    expires_ms: int = 0
    #: The slip's bytes and expiry as they stand there; ``None`` where there is none.
    slip_bytes: bytes | None = None
    slip_expires_ms: int = 0
    #: The slip of the run that was waited for.
    awaited: Slip | None = None

    @property
    def now_ms(self) -> int:
        """The database's clock when it was read."""
        return self.now_us // 1000

    @property
    def record(self) -> Record | None:
        """The record; one that expired is as good as absent.

        Raises:
            RecordCorrupt, RecordTooNew: it can't be read.
        """
        return self.held(None)

    def held(self, token: int | None) -> Record | None:
        """The record, for a run that holds ``token``: see :meth:`.Record.unpack`."""
        if self.stamp is None or self.now_ms >= self.expires_ms:
            return None
        return Record.unpack(self.packed, token)

    @property
    def slip(self) -> Slip | None:
        """The owner's slip."""
        return slip_of(self.slip_bytes, self.slip_expires_ms, self.now_ms)

    @property
    def readable(self) -> Record | None:
        """The record, unless it can't be read."""
        try:
            return self.record
        except StoreError:
            return None


def slip_of(packed: bytes | None, expires_ms: int | None, now_ms: int) -> Slip | None:
    """Read a slip from its row; ``expires_ms`` ``None``: there is none."""
    if expires_ms is None or now_ms >= expires_ms:
        return None
    return Slip.unpack(packed or OLD_NOTE)
