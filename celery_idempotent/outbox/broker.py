"""The relay's connection to the broker: it waits for confirmations, for a limited time.

If a message can't be sent, there are two possible causes. If the broker is away, every message
waits. If it refuses this message (its queue is full, its exchange is missing, its serializer is
unknown), only this one waits.
"""

from __future__ import annotations

import enum
from contextlib import suppress
from typing import Any, Final

from celery.result import denied_join_result
from kombu.exceptions import OperationalError

from celery_idempotent.outbox.message import PendingCall

#: Seconds. The relay holds a transaction open while it waits for the broker.
_ANSWER_S: Final = 10
_CONNECT_S: Final = 4


class BrokerAway(Exception):
    """The broker can't be reached, or accepts no messages now."""


class NoAnswer(Exception):
    """The broker is there, but did not confirm the message within the time limit."""


class _Meaning(enum.Enum):
    """What an error means for the other messages."""

    #: They can't be sent either.
    AWAY = enum.auto()
    #: The broker refuses this one, or doesn't know its queue; the others can be sent.
    REFUSED = enum.auto()
    #: The connection broke or was too slow. A new connection shows whether the broker is there.
    UNSURE = enum.auto()


class Broker:
    """A connection to the broker, opened when there is something to send."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._connection: Any = None
        self._producer: Any = None
        self._is_blocked = False

    def connect(self) -> None:
        """Connect, unless there is a connection.

        Raises:
            BrokerAway: the broker can't be reached.
        """
        if self._connection is not None or self._app.conf.task_always_eager:
            return
        connection = self._app.connection_for_write()
        connection.connect_timeout = connection.connect_timeout or _CONNECT_S
        connection.transport_options = {
            **connection.transport_options,
            **self._options(connection.transport.driver_type, connection.transport_options),
        }
        try:
            connection.connect()
        except (
            *connection.connection_errors,
            *connection.channel_errors,
            OperationalError,
            OSError,
        ) as exc:
            _drop(connection)
            raise BrokerAway(str(exc) or repr(exc)) from exc
        self._connection = connection
        self._producer = self._app.amqp.Producer(connection, auto_declare=False)
        self._is_blocked = False

    def _options(self, driver: str, given: dict[str, Any]) -> dict[str, Any]:
        """Return what the relay needs besides the app's options; the app's time limits stand."""
        if driver == "amqp":
            limits = {"read_timeout": _ANSWER_S, "write_timeout": _ANSWER_S}
            # Without its confirmation, what a dying broker loses would count as sent.
            needed = {"confirm_publish": True, "on_blocked": self._note_blocked}
        elif driver == "redis":
            limits = {"socket_timeout": _ANSWER_S, "socket_connect_timeout": _CONNECT_S}
            needed = {}
        else:
            return {}
        return {**{name: given.get(name) or limit for name, limit in limits.items()}, **needed}

    def _note_blocked(self, _: str) -> None:
        self._is_blocked = True

    def send(self, call: PendingCall) -> None:
        """Send one call's message.

        Raises:
            BrokerAway: the broker can't be reached, or accepts no message now.
            NoAnswer: the broker is there, but twice did not confirm this message.
            Exception: the broker refuses this message, or the message can't be made.
        """
        for is_last in (False, True):
            self.connect()
            try:
                # The relay reads no results, and must not subscribe to them.
                with denied_join_result():
                    call.send(self._app, self._producer)
                return
            except (OperationalError, OSError) as exc:
                cause = exc.__cause__ if isinstance(exc, OperationalError) else None
                error = cause if isinstance(cause, Exception) else exc
                meaning = self._meaning(error)
                self.drop()
                if meaning is _Meaning.REFUSED:
                    raise error from None
                if meaning is _Meaning.AWAY:
                    raise BrokerAway(str(error) or repr(error)) from exc
                if is_last:
                    self.connect()
                    raise NoAnswer(f"{type(error).__name__}: {error}") from exc
            except BaseException:
                self.drop()  # an error of the channel closes it
                raise

    def _meaning(self, error: Exception) -> _Meaning:
        if self._is_blocked:
            return _Meaning.AWAY  # RabbitMQ has too little memory or disk
        name = type(error).__name__
        if type(error).__module__.startswith("redis."):
            if name in ("TimeoutError", "ConnectionError"):
                return _Meaning.UNSURE
            # A server that is full, is loading or is a replica refuses every list.
            of_one = str(error).startswith("WRONGTYPE") or name == "NoPermissionError"
            return _Meaning.REFUSED if of_one else _Meaning.AWAY
        broken = (OSError, OperationalError) + self._errors_of_connection()
        return _Meaning.UNSURE if isinstance(error, broken) else _Meaning.REFUSED

    def _errors_of_connection(self) -> tuple[type[Exception], ...]:
        errors: Any = () if self._connection is None else self._connection.connection_errors
        # For Redis's transport any KeyError is one, even that of an unknown queue.
        return tuple(error for error in errors if error is not KeyError)

    def close(self) -> None:
        """Close the connection in the order that its protocol asks for."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            with suppress(Exception):  # it may be broken already
                connection.release()

    def drop(self) -> None:
        """Close the socket at once: a broker that doesn't answer won't answer a close either."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            _drop(connection)


def _drop(connection: Any) -> None:
    with suppress(Exception):
        connection.collect(socket_timeout=_CONNECT_S)
