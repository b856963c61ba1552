"""A real relay in a process of its own, which a test can stop and kill, also between two steps.

Run as a module it is ``celery idempotency relay``, and notes in the ledger what it sends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery import signals

from tests.support import warm
from tests.support.tasks import SETTINGS_VARIABLE
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
#: After which message, counted from 1, the relay is killed: it is sent, and not yet marked.
_KILL_VARIABLE = "CELERY_IDEMPOTENT_TEST_RELAY_KILL"


class RelayProcess:
    """``celery idempotency relay`` as an operator starts it."""

    def __init__(
        self,
        settings: dict[str, Any],
        database: str,
        options: Sequence[str] = (),
        *,
        killed_after: int | None = None,
    ) -> None:
        directory = Path(settings["test_ledger"]).parent
        self.log_path = directory / f"relay-{uuid.uuid4().hex[:6]}.log"
        command = ["-m", "tests.support.relays", "idempotency", "relay"]
        with open(self.log_path, "wb") as log:
            self._process = warm.start(
                [*command, "--database", database, *options],
                cwd=ROOT,
                env={
                    **os.environ,
                    SETTINGS_VARIABLE: json.dumps(settings),
                    _KILL_VARIABLE: str(killed_after or 0),
                    "PYTHONPATH": str(ROOT),
                },
                stdout=log,
            )

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def log(self) -> str:
        """All that it has said."""
        return self.log_path.read_text(errors="replace")

    def wait_for_log(self, words: str) -> None:
        """Return once it has said this."""
        eventually(lambda: words in self.log, f"{words!r} in the relay's log")

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Return the exit code once it has ended."""
        return self._process.wait(timeout=60)

    def kill(self) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


def _main() -> None:
    from celery.bin.celery import celery

    from celery_idempotent.ops.cli import idempotency
    from tests.support.app import app
    from tests.support.ledger import Ledger

    ledger = Ledger(app.conf.test_ledger)
    limit, sent = int(os.environ[_KILL_VARIABLE]), 0

    def note(headers: dict[str, Any], **_: Any) -> None:
        nonlocal sent
        sent += 1
        ledger.write("sent", id=headers["id"])
        if sent == limit:
            os.kill(os.getpid(), signal.SIGKILL)

    signals.after_task_publish.connect(note, weak=False)
    # Where the package is not installed there is no entry point that brings it.
    celery.add_command(idempotency)
    celery.main(["-A", "tests.support.app", *sys.argv[1:]], prog_name="celery")


if __name__ == "__main__":
    _main()
