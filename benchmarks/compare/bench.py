"""One contender under test: its workers, its callers and its locks."""

from __future__ import annotations

import importlib
import multiprocessing
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks.compare.contenders import Contender
from benchmarks.playing.bench import PATIENCE_S, BenchError, Call, PlayedBench
from benchmarks.playing.ledger import Ledger

__all__ = ["Bench"]


class Bench(PlayedBench):
    """A contender on a server of its own, whose URL workers and callers read in the environment."""

    def __init__(self, contender: Contender, directory: Path, server_url: str) -> None:
        self.contender = contender
        #: The contender's module, with ``app``, ``charge`` and ``summary``; callers run here.
        self.shop = importlib.import_module(contender.module)
        super().__init__(contender.module, self.shop.app, Ledger(directory), server_url)
        self._results = Redis.from_url(f"{server_url}/1", socket_timeout=PATIENCE_S)

    def refuses(self, error: str, at_the_call: bool) -> bool:
        """A call that raises is refused."""
        return at_the_call

    def start_worker(self, concurrency: int = 4) -> int:
        """Start a prefork worker, and return its pid once it takes messages."""
        return super().start_worker(concurrency)

    def call(self, order_id: str, **options: Any) -> Call:
        """Call the contender's task as a user would, and record its immediate answer."""
        return self.attempt(
            lambda: self.shop.charge.apply_async(kwargs={"order_id": order_id, **options})
        )

    def call_at_once(self, count: int, order_id: str, **options: Any) -> list[Call]:
        """Make the same call from this many processes at the same moment."""
        # Forked and not started anew, so that the barrier and no import decides when they begin.
        context = multiprocessing.get_context("fork")
        barrier = context.Barrier(count)
        calls: Any = context.SimpleQueue()

        def caller() -> None:
            barrier.wait(PATIENCE_S)
            calls.put(self.call(order_id, **options))

        callers = [context.Process(target=caller) for _ in range(count)]
        for process in callers:
            process.start()
        try:
            self.wait_for(
                lambda: all(process.exitcode is not None for process in callers),
                f"{count} callers have called",
            )
        finally:
            for process in callers:
                process.kill()
        if any(process.exitcode for process in callers):
            raise BenchError("a caller died")
        return [calls.get() for _ in callers]

    def locks(self) -> dict[str, float | str]:
        """Return the contender's locks by name, with the seconds that are left, or "for ever"."""
        found: dict[str, float | str] = {}
        for pattern in self.contender.lock_keys:
            for key in self._results.scan_iter(match=pattern, count=1000):
                left = int(self._results.pttl(key))
                # -1: no expiry; -2: gone since the scan.
                if left != -2:
                    found[key.decode()] = "for ever" if left == -1 else round(left / 1000, 1)
        return found
