"""What every scheduler of beat has to show."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from celery import Celery

from celery_idempotent import IdempotentTask
from tests.ecosystem.adapter import Adapter
from tests.ecosystem.world import PATIENCE_S, World

__all__ = ["Beat"]

Note = Callable[..., None]


class Beat(Adapter):
    """A beat that sends a task each second: each tick is a call, and one of them runs."""

    def cases(self) -> list[Callable[[World], None]]:
        def beat_ticks(world: World) -> None:
            """Each tick is answered; the key is the same, so one of them runs."""
            # When
            command = [
                *(sys.executable, "-m", "celery", "-A", "tests.ecosystem.app", "beat"),
                *("-s", str(self.directory / "schedule"), *self.beat_options()),
            ]
            beat = world.spawn("beat", command)
            tick = {"name": "shop.tick", "state": "SUCCESS"}
            world.ledger.wait_for("finished", times=3, timeout=PATIENCE_S, **tick)
            beat.terminate()
            beat.wait(PATIENCE_S)
            # Then
            ticks = world.log("beat").count("Sending due task")
            world.ledger.wait_for("finished", times=ticks, timeout=PATIENCE_S, **tick)
            assert world.ledger.count("tick") == 1
            assert self.counted(world) == ticks

        return [beat_ticks]

    def settings(self) -> dict[str, Any]:
        return {
            "beat_schedule": {"tick": {"task": "shop.tick", "schedule": 1.0, "args": (1,)}},
            "beat_max_loop_interval": 1,
        }

    def install(self, app: Celery, note: Note) -> None:
        @app.task(name="shop.tick", base=IdempotentTask, idempotency_key="tick:{number}")
        def tick(number: int) -> int:
            note("tick")
            return number

    def beat_options(self) -> list[str]:
        """What its scheduler needs on the command line."""
        return ["--loglevel", "INFO"]

    def counted(self, world: World) -> int:
        """How many ticks the scheduler has counted."""
        raise NotImplementedError
