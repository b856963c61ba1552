"""The process that plays: it tells the run what it does, and ends with it."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["end_with_the_run", "say"]

_telling = threading.Lock()


def say(kind: str, **fields: Any) -> None:
    """Print one line for the run that started this process; see :class:`.Run`."""
    line = json.dumps({"kind": kind, **fields}) + "\n"
    with _telling:
        sys.stdout.write(line)
        sys.stdout.flush()


def end_with_the_run(end: Callable[[], None]) -> None:
    """Call this, and exit, as soon as the run has closed its end of our input, or is dead."""

    def watch() -> None:
        # Not sys.stdin, whose lock an exiting interpreter would wait for.
        while os.read(0, 1024):
            pass
        end()
        os._exit(1)

    threading.Thread(target=watch, name="end with the run", daemon=True).start()
