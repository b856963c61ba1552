"""One row, in its own environment: ``python -m tests.ecosystem.row ADAPTER RESULT``."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from celery_idempotent.testing.servers import RedisServer
from tests.ecosystem.adapter import adapter_of
from tests.ecosystem.cases import CASES, title
from tests.ecosystem.world import World

__all__ = ["run"]


def run(name: str) -> dict[str, str]:
    """Run the cases and compare the figures; return by name what is wrong, or ``ok``."""
    found: dict[str, str] = {}
    with RedisServer() as server, tempfile.TemporaryDirectory() as directory:
        adapter = adapter_of(name)(Path(directory), server.url(0).rsplit("/", 1)[0])
        try:
            adapter.start()
            world = World(name, adapter)
            try:
                world.start_worker()
                for case in (*CASES, *adapter.cases()):
                    found[title(case)] = _attempt(lambda case=case: case(world))  # type: ignore[misc]
                world.end_worker()
                found["figures"] = _attempt(lambda: _compare(world))
                if set(found.values()) != {"ok"}:
                    print(world.log()[-6000:], file=sys.stderr)
            finally:
                world.close()
        finally:
            adapter.stop()
    return found


def _compare(world: World) -> None:
    for what, got, expected in world.adapter.figures(world):
        assert got == expected, f"{what}: {got!r} and not {expected!r}"


def _attempt(shown: Callable[[], None]) -> str:
    try:
        shown()
    except Exception as exc:
        traceback.print_exc()
        return f"{type(exc).__name__}: {exc}".partition("\n")[0][:300]
    return "ok"


def _versions() -> dict[str, str]:
    return {
        found.metadata["Name"].lower().replace("_", "-"): found.version
        for found in metadata.distributions()
    }


def _end(*_: object) -> None:
    """Leave by way of every ``finally``: servers and workers end, too."""
    raise SystemExit("it was told to end")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    answer = {"cases": run(sys.argv[1]), "versions": _versions()}
    Path(sys.argv[2]).write_text(json.dumps(answer), "utf-8")
