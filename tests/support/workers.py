"""A real Celery worker in processes of its own, which a test can stop, pause and kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import warm
from tests.support.ledger import Ledger
from tests.support.tasks import SETTINGS_VARIABLE
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]


class Worker:
    """``celery worker`` with its pool, in one process group of its own."""

    def __init__(
        self,
        settings: dict[str, Any],
        *,
        pool: str = "prefork",
        concurrency: int = 4,
        heartbeat: bool = False,
        options: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        root: Path = ROOT,
        app: str = "tests.support.app",
    ) -> None:
        self.ledger = Ledger(settings["test_ledger"])
        self.node = f"{pool}-{uuid.uuid4().hex[:6]}@test"
        self.log_path = self.ledger.path.parent / f"{self.node}.log"
        command = [
            *("-m", "celery", "-A", app, "worker"),
            *("--pool", pool, "--concurrency", str(concurrency), "--hostname", self.node),
            *("--loglevel", "INFO", "--without-gossip", "--without-mingle"),
            *(() if heartbeat else ("--without-heartbeat",)),
            *options,
        ]
        with open(self.log_path, "wb") as log:
            self._process = warm.start(
                command,
                cwd=root,
                env={
                    **os.environ,
                    SETTINGS_VARIABLE: json.dumps(settings),
                    "PYTHONPATH": str(root),
                    **(environment or {}),
                },
                stdout=log,
                # These put their own functions in the place of Python's, before any import.
                cold=pool in ("gevent", "eventlet"),
            )
        self._group_is_ended = False

    @property
    def pid(self) -> int:
        """The parent process; its group has the same number."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the parent process lives."""
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """All that it has logged."""
        return self.log_path.read_text(errors="replace")

    def wait_until_ready(self) -> Worker:
        """Return once it consumes."""

        def ready_or_gone() -> bool:
            return self.ledger.count("ready", node=self.node) > 0 or not self.running

        eventually(ready_or_gone, f"worker {self.node} ready", timeout=60)
        assert self.running, f"worker {self.node} did not start:\n{self.log}"
        return self

    def kill(self) -> None:
        """SIGKILL the parent and its pool, all at once, as a lost machine would."""
        if not self._group_is_ended:
            # Its parent may be gone already, its pool not: the group has both.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._group_is_ended = True
        self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send one signal to the parent: TERM is a warm shutdown, QUIT a cold one."""
        os.kill(self.pid, number)

    def wait_until_gone(self, timeout: float = 90.0) -> int:
        """Return the exit code once the parent has ended.

        One of its children may wait for thirty seconds: billiard's pool does not always read the
        last result of a child as it closes, with tasks of Celery's own just as with ours.
        """
        return self._process.wait(timeout)

    def pause(self) -> None:
        """Stop the whole group where it stands."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the paused group go on."""
        os.killpg(self.pid, signal.SIGCONT)
