"""The relay: it sends what is committed, in order, and loses nothing when broker or database go."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event
from typing import Any, Final

from celery.result import denied_join_result
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from celery_idempotent.errors import ConfigurationError
from celery_idempotent.outbox.message import Message
from celery_idempotent.outbox.rows import Alone, Batch, take
from celery_idempotent.outbox.schema import outbox
from celery_idempotent.stores.sql_flavours import Trouble, trouble_of

__all__ = ["BrokerAway", "Relay"]

log = get_logger("celery_idempotent")

_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
#: How long a call that can't be sent for a reason of its own is left alone, at most.
_LONGEST_LATER_S: Final = 300.0
#: A broker that hangs must not hang the relay, and with it a transaction.
_ANSWER_S: Final = 30


class BrokerAway(Exception):
    """The broker can't be reached, or doesn't take messages now."""


class Relay:
    """Sends the rows of one outbox.

    Several may run at once: each row is sent by one of them. Rows that committed one after the
    other are sent in that order where one relay runs.

    Args:
        app: whose broker gets the messages.
        engine: of the database with the outbox's table.
        batch: how many rows are sent between two commits.
        interval: how many seconds it waits where nothing is left to send.
    """

    def __init__(
        self, app: Any, engine: Engine, *, batch: int = 100, interval: float = 1.0
    ) -> None:
        self.app = app
        self.engine = engine
        self.batch = batch
        self.interval = interval
        #: How many it has sent.
        self.sent = 0
        self._alone = Alone(engine)
        self._broker = _Broker(app)
        self._stop = Event()

    def stop(self) -> None:
        """Have it end after the batch that is under way; may be called from a signal handler."""
        self._stop.set()

    def run(self, told: Callable[[], None] = lambda: None) -> None:
        """Send until :meth:`stop`; ``told`` is called after each turn.

        While the broker or the database is away it tries again, with growing pauses and jitter,
        and logs one line when it goes and one when it is back.
        """
        outage = _Outage()
        try:
            while not self._stop.is_set():
                try:
                    if outage.began is not None:
                        self._broker.connect()
                    found = self.turn() if self._alone() else 0
                    outage.over()
                    told()
                except BrokerAway as exc:
                    self._pause(outage.again("the broker", exc))
                    continue
                except DBAPIError as exc:
                    self._pause(outage.again("the outbox's database", exc.orig or exc))
                    continue
                if found < self.batch:
                    self._broker.close()
                    self._pause(self.interval * random.uniform(0.9, 1.1))
        finally:
            self.close()

    def once(self) -> int:
        """Send what is there now, and give how many that was.

        Raises:
            BrokerAway: the broker can't be reached; what is not sent is kept.
        """
        before = self.sent
        try:
            while not self._stop.is_set() and self._alone() and self.turn() == self.batch:
                pass
        finally:
            self.close()
        return self.sent - before

    def turn(self) -> int:
        """Send one batch, and give how many rows it had.

        Raises:
            BrokerAway: as above; what was sent before is settled.
            ConfigurationError: there is no outbox.
        """
        try:
            with take(self.engine, self.batch) as batch:
                away = self._send(batch)
        except DBAPIError as exc:
            if trouble_of(exc) is Trouble.NO_TABLES:
                raise ConfigurationError(
                    f"there is no table {outbox.name} in {self.engine.url!r}: make it with "
                    "outbox.create_schema(engine), or relay --init-db"
                ) from exc
            raise
        if away is not None:
            raise away
        return len(batch.rows)

    def _send(self, batch: Batch) -> BrokerAway | None:
        sent: list[int] = []
        failed: list[tuple[int, str, float]] = []
        away = None
        for row in batch.rows:
            try:
                message = Message.from_row(row.task_id, row.task, row.message)
                self._broker.send(message)
            except BrokerAway as exc:
                away = exc
                break
            except Exception as exc:
                # Its own fault: those behind it don't wait for it.
                pause = min(2.0**row.attempts, _LONGEST_LATER_S) * random.uniform(0.75, 1.0)
                failed.append((row.id, f"{type(exc).__name__}: {exc}", pause))
                if not row.attempts:
                    log.error("%s %s can't be sent: %r", row.task, row.task_id, exc)
            else:
                sent.append(row.id)
        batch.settle(sent, failed)
        self.sent += len(sent)
        return away

    def _pause(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def close(self) -> None:
        """Give back its connections."""
        self._broker.close()
        self._alone.free()


class _Broker:
    """A connection to the broker, opened when there is something to send."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._connection: Any = None
        self._producer: Any = None

    def connect(self) -> None:
        """Connect where it isn't.

        Raises:
            BrokerAway: it can't.
        """
        if self._connection is not None:
            return
        connection = self._app.connection_for_write()
        more: dict[str, Any] = {}
        if connection.transport.driver_type == "amqp":
            # Without the broker's word for it, what it loses when it dies would count as sent.
            more = {"confirm_publish": True, "read_timeout": _ANSWER_S, "write_timeout": _ANSWER_S}
        elif connection.transport.driver_type == "redis":
            more = {"socket_timeout": _ANSWER_S, "socket_connect_timeout": _ANSWER_S}
        connection.transport_options = {**more, **connection.transport_options}
        try:
            connection.connect()
        except (
            *connection.connection_errors,
            *connection.channel_errors,
            OperationalError,
            OSError,
        ) as exc:
            _close(connection)
            raise BrokerAway(str(exc)) from exc
        self._connection = connection
        self._producer = self._app.amqp.Producer(connection, auto_declare=False)

    def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            BrokerAway: the broker can't take it now.
        """
        if not self._app.conf.task_always_eager:
            self.connect()
        try:
            # The relay reads no results: it must not subscribe to them.
            with denied_join_result():
                message.send(self._app, self._producer)
        except (OperationalError, OSError) as exc:
            self.close()
            raise BrokerAway(str(exc)) from exc
        except BaseException:
            self.close()  # an error of the channel closes it
            raise

    def close(self) -> None:
        """Close what is open."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            _close(connection)


def _close(connection: Any) -> None:
    with suppress(Exception):  # it may be broken already
        connection.release()


class _Outage:
    """Counts the pauses of one outage, and says once that it began and once that it is over."""

    def __init__(self) -> None:
        self.began: float | None = None
        self._pause = _FIRST_PAUSE_S
        self._what = ""

    def again(self, what: str, why: BaseException) -> float:
        """Give the seconds until the next attempt."""
        if self.began is None:
            self.began, self._what = time.monotonic(), what
            log.warning("%s is away, nothing is lost; trying again until it is back: %s", what, why)
        pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_PAUSE_S)
        return pause * random.uniform(0.5, 1.0)

    def over(self) -> None:
        """Say that it is back, if it was away."""
        if self.began is not None:
            log.warning("%s is back after %.0f s", self._what, time.monotonic() - self.began)
        self.began, self._pause = None, _FIRST_PAUSE_S
