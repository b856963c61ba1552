"""Wait for a fact instead of sleeping, with a deadline and a message."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from benchmarks.playing.process import lives

T = TypeVar("T")

#: Long enough for a busy machine; nothing waits this long unless it is about to fail.
PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.02


def eventually(fact: Callable[[], T], what: str = "", timeout: float = PATIENCE_SECONDS) -> T:
    """Ask until the answer is true and return it.

    Raises:
        AssertionError: it was not true within ``timeout`` seconds; the message has the last answer.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = fact()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout} s: {what or fact} (last: {answer!r})")
        time.sleep(_POLL_SECONDS)


def wait_until_dead(pid: int, timeout: float = PATIENCE_SECONDS) -> None:
    """Return once a process that is none of our children has ended."""
    eventually(lambda: not lives(pid), f"process {pid} gone", timeout)
