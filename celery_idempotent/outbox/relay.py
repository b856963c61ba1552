"""Sends the rows that are committed, in order, and loses none while broker or database are away."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from threading import Event
from typing import Any, Final

from celery.utils.log import get_logger

from celery_idempotent.outbox.broker import Broker, BrokerAway, NoAnswer
from celery_idempotent.outbox.message import PendingCall
from celery_idempotent.outbox.waiting import Backlog, Batch, DatabaseAway, Failure, Outbox

log = get_logger("celery_idempotent")

_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
#: The longest pause after which a call that can't be sent for a reason of its own is tried again.
_LONGEST_LATER_S: Final = 300.0


class OutboxRelay:
    """Sends the rows of one outbox, whichever library reads them.

    Users make a ``Relay`` of their library: :class:`celery_idempotent.outbox.Relay` or
    ``celery_idempotent.django.outbox.Relay``.

    Args:
        app: the Celery app, whose broker gets the messages.
        outbox: the calls that wait in one database.
        batch: how many rows are sent between two commits.
        interval: how many seconds it waits when nothing is left to send.
    """

    def __init__(
        self, app: Any, outbox: Outbox, *, batch: int = 100, interval: float = 1.0
    ) -> None:
        self.app = app
        self.outbox = outbox
        self.batch = batch
        self.interval = interval
        #: How many rows it has sent.
        self.sent = 0
        self._broker = Broker(app)
        self._stop = Event()
        #: Rows that were sent, and that the database may still have.
        self._unsettled: set[tuple[int, str]] = set()

    def stop(self) -> None:
        """Stop after the current batch; may be called from a signal handler."""
        self._stop.set()

    def backlog(self) -> Backlog:
        """Return how many calls wait, and for how long.

        Raises:
            DatabaseAway: the database can't be reached.
            ConfigurationError: the outbox's table is not there.
        """
        return self.outbox.backlog()

    def run(self, told: Callable[[], None] = lambda: None) -> None:
        """Send until :meth:`stop`; ``told`` is called after each turn.

        While the broker or the database is away it tries again, with growing pauses and jitter. It
        logs one line when an outage begins and one when it is over.

        Raises:
            ConfigurationError: the outbox's table is not there.
        """
        outage = _Outage()
        try:
            while not self._stop.is_set():
                try:
                    if outage.began is not None:
                        self._broker.connect()
                    found = self.turn() if self.outbox.is_ours() else 0
                    outage.over()
                    told()
                except BrokerAway as exc:
                    self._pause(outage.again("the broker", exc))
                    continue
                except DatabaseAway as exc:
                    self._pause(outage.again("the outbox's database", exc))
                    continue
                if found < self.batch:
                    self._broker.close()
                    self._pause(self.interval * random.uniform(0.9, 1.1))
        finally:
            self.close()

    def once(self) -> int:
        """Send the rows that are there now, and return how many.

        Raises:
            BrokerAway: the broker can't be reached; unsent rows are kept.
            DatabaseAway: the database can't be reached.
            ConfigurationError: the outbox's table is not there.
        """
        before = self.sent
        try:
            while not self._stop.is_set() and self.outbox.is_ours() and self.turn() == self.batch:
                pass
        finally:
            self.close()
        return self.sent - before

    def turn(self) -> int:
        """Send one batch, and return how many rows it had.

        Raises:
            BrokerAway, DatabaseAway, ConfigurationError: as above; rows that were sent before the
                outage are settled.
        """
        with self.outbox.take(self.batch) as batch:
            away = self._send(batch)
        self._unsettled.difference_update((row.id, row.task_id) for row in batch.rows)
        if away is not None:
            raise away
        return len(batch.rows)

    def _send(self, batch: Batch) -> BrokerAway | None:
        sent: list[int] = []
        failed: list[Failure] = []
        new: list[tuple[Any, Exception]] = []
        #: Routes without an answer: their next message would wait as long, and all others with it.
        silent: dict[Any, Exception] = {}
        away = None
        for row in batch.rows:
            if silent and self._stop.is_set():
                break  # the relay would wait once more for each route
            try:
                if (row.id, row.task_id) not in self._unsettled:
                    self._send_one(row, silent)
                sent.append(row.id)
            except BrokerAway as exc:
                away = exc
                break
            except Exception as exc:
                # The fault is in this row: those behind it don't wait for it.
                pause_s = min(2.0**row.attempts, _LONGEST_LATER_S) * random.uniform(0.75, 1.0)
                failed.append(Failure.of(row.id, exc, pause_s))
                if not row.attempts:
                    new.append((row, exc))
        if new:
            row, why = new[0]
            more = f"; nor can {len(new) - 1} more of this batch" if len(new) > 1 else ""
            log.error(
                "%s %s can't be sent, and is tried again later: %r%s",
                *(row.task, row.task_id, why, more),
            )
        batch.settle(sent, failed)
        return away

    def _send_one(self, row: Any, silent: dict[Any, Exception]) -> None:
        call = PendingCall.from_row(row.task_id, row.task, row.message)
        if call.route in silent:
            raise silent[call.route]
        try:
            self._broker.send(call)
        except NoAnswer as exc:
            silent[call.route] = exc
            raise
        self._unsettled.add((row.id, row.task_id))
        self.sent += 1

    def _pause(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def close(self) -> None:
        """Close the connections, and let another relay work."""
        self._broker.close()
        self.outbox.close()


class _Outage:
    """Counts the pauses of one outage; logs once that it began and once that it is over."""

    def __init__(self) -> None:
        self.began: float | None = None
        self._pause = _FIRST_PAUSE_S
        self._what = ""

    def again(self, what: str, why: BaseException) -> float:
        """Return the seconds until the next attempt."""
        if self.began is None:
            self.began, self._what = time.monotonic(), what
            log.warning("%s is away, nothing is lost; trying again until it is back: %s", what, why)
        pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_PAUSE_S)
        return pause * random.uniform(0.5, 1.0)

    def over(self) -> None:
        """Log that the outage is over, if there was one."""
        if self.began is not None:
            log.warning("%s is back after %.0f s", self._what, time.monotonic() - self.began)
        self.began, self._pause = None, _FIRST_PAUSE_S
