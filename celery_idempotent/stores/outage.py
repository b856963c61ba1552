"""While a store is away, one question at a time in a process asks whether it is back.

A store has one for each of its servers. The HTTP edge has one of its own, since a request asks for
longer than one round trip takes: the others must not ask for as long.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from celery_idempotent.errors import StoreUnavailable

T = TypeVar("T")

#: For how many seconds a server is left alone after it did not answer.
_PAUSE_S: Final = 0.04


def not_done(message: str) -> StoreUnavailable:
    """Return the error of an operation that the server did not carry out."""
    error = StoreUnavailable(message)
    error.may_have_arrived = False
    return error


class Outage:
    """What one process knows of whether one server answers; safe for threads and greenlets.

    Args:
        what: what does not answer, for messages; without passwords.
        pause_s: for how many seconds it is left alone after it did not answer.
    """

    def __init__(self, what: str, pause_s: float = _PAUSE_S) -> None:
        self._what = what
        self._pause_s = pause_s
        #: When it last did not answer, or a connection was found broken, on the monotonic clock.
        self.failed_at = -math.inf
        #: Whether it did not answer the last time. Whoever has an answer of it sets this to False.
        self.is_away = False
        # The turn to ask whether it is back.
        self._turn = threading.Lock()
        self._pid = os.getpid()

    def stumbled(self) -> None:
        """Remember that a connection was found broken, or that it did not answer once."""
        self.failed_at = time.monotonic()

    def begins(self) -> None:
        """Remember that it is away."""
        self.stumbled()
        self.is_away = True

    def one_at_a_time(self, ask: Callable[[], T]) -> T:
        """Return what ``ask`` returns; while the server is away, one caller at a time may ask.

        To all others it is away without being asked: hundreds of threads or greenlets that ask
        would keep a core busy, and each would wait for as long as a server that hangs lets it.

        Raises:
            StoreUnavailable: it is somebody else's turn, or it was asked just now.
        """
        if not self.is_away:
            return ask()
        if self._pid != os.getpid():
            # After a fork: whose turn it was is in the parent.
            self._turn, self._pid = threading.Lock(), os.getpid()
        is_rested = time.monotonic() - self.failed_at >= self._pause_s
        if not (is_rested and self._turn.acquire(blocking=False)):
            raise not_done(f"{self._what} did not answer a moment ago")
        try:
            return ask()
        finally:
            self._turn.release()
