"""The name of this process in records and in the journal."""

from __future__ import annotations

import os
import socket
from typing import Final

from celery_idempotent.core.record import Process

#: The worker's boot id: made once in the parent, and inherited by the children of its pool.
BOOT_ID: Final = os.urandom(4).hex()

#: The packed :class:`.Process` of this process.
packed: bytes


def _name() -> None:
    global packed
    packed = Process(socket.gethostname(), os.getpid(), BOOT_ID).pack()


_name()
os.register_at_fork(after_in_child=_name)
