"""Processes and their groups, as /proc shows them."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["PROJECT", "born", "end_group", "group", "lives", "wait_until_gone"]

#: Where they are started: the folder with this project's packages.
PROJECT = Path(__file__).resolve().parents[2]
_POLL_S = 0.02


def _state(stat: str) -> list[str]:
    # The name before it may have blanks and parentheses.
    return stat.rpartition(")")[2].split()


def born(pid: int) -> str:
    """Return when a process was started, in the kernel's unit; empty where there is no ``/proc``.

    With its pid this names a process for good: pids are used again, on a busy machine within
    minutes, by threads too.
    """
    try:
        return _state(Path(f"/proc/{pid}/stat").read_text())[19]
    except OSError:
        return ""


def lives(pid: int, since: str = "") -> bool:
    """Whether a process lives. One that has ended does not, even if its parent never asks for it.

    In a container without an init process, orphans stay in the table of processes. Where there is
    no ``/proc``, only that table is asked.

    Args:
        pid: its number.
        since: when it was started, see :func:`born`; any time unless given.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with suppress(OSError):
        state = _state(Path(f"/proc/{pid}/stat").read_text())
        return state[0] not in "ZX" and since in ("", state[19])
    return True


def group(leader: int) -> list[int]:
    """Return the living processes of a group, its leader first."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, number = _state(stat.read_text())[:3]
            if number == str(leader) and state not in "ZX":
                found.append(int(stat.parent.name))
    return sorted(found, key=lambda pid: (pid != leader, pid))


def wait_until_gone(pid: int, seconds: float) -> bool:
    """Wait until a process has ended, no longer than so many seconds; return whether it has."""
    deadline = time.monotonic() + seconds
    while lives(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def end_group(leader: int) -> None:
    """SIGKILL what is left of a process group."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
