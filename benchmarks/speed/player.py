"""Makes, executes and repeats the calls of one library, and measures its keys in Redis."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import redis
from celery.result import denied_join_result

from benchmarks.speed.contestants import Contestant
from benchmarks.speed.drive import BODY_RESULT, Line
from celery_idempotent.stores.journal import journal_key

__all__ = ["Player"]

_JOURNAL = journal_key("idempotent").encode()

#: Order numbers of a usual length, each one once.
_NUMBERS = itertools.count(10_000_000)


class Player:
    """One contestant at work on a database of its own."""

    def __init__(self, contestant: Contestant, url: str) -> None:
        self.contestant = contestant
        self.line: Line = contestant.make(url)
        self.database: Any = redis.Redis.from_url(url)
        self._task = self.line.app.tasks["bench.charge"]
        self._same = self.call()
        self._may_end = threading.Event()
        self._run: threading.Thread | None = None
        self._begin()

    def _begin(self) -> None:
        """Make the first call, which will have duplicates.

        Libraries that stop a duplicate at the enqueue do so while the first call runs, so for them
        it runs until :meth:`end`. For the others a duplicate comes after its end.
        """
        self._publish(self._same)
        if self.contestant.duplicate_at != "enqueue":
            self.line.execute()
            return
        runs = threading.Event()

        def hold() -> None:
            self.line.during = None
            runs.set()
            self._may_end.wait()

        self.line.during = hold
        self._run = threading.Thread(target=self.line.execute, daemon=True)
        self._run.start()
        if not runs.wait(30):
            raise RuntimeError(f"{self.contestant.name}: the first call did not begin to run")

    def end(self) -> None:
        """End the first call."""
        self._may_end.set()
        if self._run is not None:
            self._run.join()

    @staticmethod
    def call() -> dict[str, Any]:
        """Return the arguments of a new call."""
        return {"order_id": str(next(_NUMBERS)), "amount": 100}

    def first(self, count: int) -> None:
        """Publish and execute new calls."""
        for _ in range(count):
            self._publish(self.call())
            self.line.execute()
        self.line.settle()

    def duplicates(self, count: int) -> None:
        """Make the same call again and again."""
        at_worker = self.contestant.duplicate_at == "worker"
        for _ in range(count):
            self._publish(self._same)
            if at_worker:
                self.line.execute()
        self.line.settle()

    def _publish(self, call: dict[str, Any]) -> None:
        try:
            self._task.apply_async(kwargs=call)
        except Exception as exc:
            if type(exc).__name__ not in self.contestant.raises:
                raise

    def check(self) -> None:
        """Check before the timing that the library does what its description says.

        Raises:
            AssertionError: it does not, so that the adapter is wrong.
        """
        name, runs = self.contestant.name, self.line.runs
        self._publish(self.call())
        assert self.line.execute() == BODY_RESULT, f"{name}: the result of a first execution"
        assert self.line.runs == runs + 1, f"{name}: a first execution runs the body"
        if not self.contestant.duplicate_at:
            return
        self._publish(self._same)
        if self.contestant.duplicate_at == "worker":
            assert self.line.execute() == BODY_RESULT, f"{name}: a duplicate gets the result"
        else:
            assert self.line.is_empty(), f"{name}: a duplicate isn't published"
        assert self.line.runs == runs + 1, f"{name}: a duplicate doesn't run the body"

    def trips(self, work: Callable[[int], None], count: int = 50) -> float:
        """Count how often the server reads from its connections for each call.

        A caller's subscription to its result is left out: nobody waits for the server's answer to
        it, so it is no round trip, and a busy server reads several of them at once.
        """
        with denied_join_result():
            work(1)
            before = self._reads()
            work(count)
            reads = self._reads() - before
        # The command that asks is one of them. Commands for many calls together (our journal has
        # one for up to two hundred events) are rounded off.
        return float(round((reads - 1) / count))

    def _reads(self) -> int:
        return int(self.database.info("stats")["total_reads_processed"])

    def sizes(self, count: int = 50) -> tuple[float, float]:
        """Return the bytes of a call in Redis while it runs, and once it is done."""
        self.end()
        self.database.flushdb()
        running: list[int] = []
        self.line.during = lambda: running.append(self._bytes())
        self._publish(self.call())
        self.line.execute()
        self.line.during = None
        self.database.flushdb()
        self.first(count)
        return float(running[0]), self._bytes() / count

    def close(self) -> None:
        """Close the connections."""
        self.line.close()
        self.database.close()

    def _bytes(self) -> int:
        return sum(
            self.database.memory_usage(key, samples=0)
            for key in self.database.scan_iter(count=1000)
            # One capped stream for all calls, so that no call has a lasting part in it.
            if key != _JOURNAL
        )
