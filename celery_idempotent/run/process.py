"""The name of this process in records and in the journal."""

from __future__ import annotations

import os
import socket
from typing import Final

from celery_idempotent.core.record import Process

__all__ = ["BOOT_ID", "this_process"]

#: The worker's boot id: made once in the parent, and inherited by the children of its pool.
BOOT_ID: Final = os.urandom(4).hex()

_process: tuple[int, bytes] = (0, b"")


def this_process() -> bytes:
    """Return the packed :class:`.Process` of this process."""
    global _process
    pid = os.getpid()
    if _process[0] != pid:
        _process = (pid, Process(socket.gethostname(), pid, BOOT_ID).pack())
    return _process[1]
