"""Sends scripts over redis-py's own connections, without redis-py's client around each command.

redis-py's client does much around each command (pools with locks, checks, callbacks, metrics), and
a guarded task may cost no more than two bare round trips. So this module takes the client's
connections, which know TLS, Sentinel, sockets and logins, and writes to them itself.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module, resources
from typing import Any, Final, NamedTuple, Protocol

from redis.exceptions import (
    AskError,
    AuthenticationError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.utils import HIREDIS_AVAILABLE

from celery_idempotent.errors import RecordCorrupt, StoreUnavailable
from celery_idempotent.stores.base import or_error
from celery_idempotent.stores.outage import Outage, not_done

# Where redis-py takes it, too; old versions of it pack nothing.
_hiredis_pack: Any = (
    getattr(import_module("hiredis"), "pack_command", None) if HIREDIS_AVAILABLE else None
)

Argument = bytes | str | int


class Connection(Protocol):
    """What is used of redis-py's connections."""

    def send_packed_command(self, command: Any, check_health: bool = True) -> Any: ...

    def read_response(self) -> Any: ...

    def connect(self) -> None: ...

    def disconnect(self, *args: Any) -> None: ...


class Script(NamedTuple):
    """One Lua script: its source, and the packed beginning of a command that calls it."""

    source: bytes
    sha: bytes


class ScriptCall(NamedTuple):
    """One call of a script."""

    script: Script
    keys: tuple[str, ...]
    args: tuple[Argument, ...]


#: The last argument of a script that must not run late: the time until which its caller waits, by
#: the server's clock (0: not known), and whether the connection broke a moment ago.
_TIMING: Final = struct.Struct(">QB")
#: The place of the server's time in the answer of such a script, where that is bytes.
_TIME: Final = struct.Struct(">xxQ")
#: How many connections a process has to one server. A round trip is short: more than these no
#: process can keep busy, however many threads or greenlets it has.
MOST_CONNECTIONS: Final = 32
#: For how long, in seconds, a connection may stay unused where there are more than are kept.
_IDLE_S: Final = 10.0
#: How many connections are kept though nobody needs them: for a run, and for the heartbeat.
_KEPT: Final = 2
#: A clock that is behind by this much was set back; a late answer does not explain it.
_STEP_MS = 1000


@functools.cache
def load_script(name: str, publish: str = "PUBLISH") -> Script:
    """Read ``lua/<name>.lua``, with what all scripts share in front of it.

    ``publish`` is the command by which a script tells that a run is over.

    A script makes its functions anew each time it runs. Where there is a ``lua/<name>.usual.lua``,
    it comes first of all, and answers what comes all the time before any function is made.
    """
    folder = resources.files("celery_idempotent.stores.redis") / "lua"
    usual = folder / f"{name}.usual.lua"
    source = usual.read_bytes() if usual.is_file() else b""
    shared = (folder / "record.lua").read_bytes()
    source += (
        shared.replace(b"'PUBLISH'", f"'{publish}'".encode())
        + (folder / f"{name}.lua").read_bytes()
    )
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


def pack_command(parts: Sequence[Argument]) -> bytes:
    """Return a command as it goes over the wire."""
    if _hiredis_pack is not None:
        try:
            packed: bytes = _hiredis_pack(tuple(parts))
            return packed
        except UnicodeEncodeError:
            pass  # half a surrogate pair, which only the code below can write
    pieces: list[int | bytes] = []
    for part in parts:
        if isinstance(part, str):
            part = part.encode("utf-8", "surrogatepass")
        elif isinstance(part, int):
            part = b"%d" % part
        pieces += (len(part), part)
    return (b"*%d\r\n" + b"$%d\r\n%b\r\n" * len(parts)) % (len(parts), *pieces)


#: In front of a command to a node of a cluster, which then answers for a slot that it gets.
_ASKING = pack_command((b"ASKING",))


def _pack_call(call: ScriptCall, *more: Argument) -> bytes:
    script, keys, args = call
    return pack_command((b"EVALSHA", script.sha, len(keys), *keys, *args, *more))


def _pack_source(call: ScriptCall) -> bytes:
    """Return the command that runs, and loads, a script which the server does not know."""
    script, keys, args = call
    return pack_command((b"EVAL", script.source, len(keys), *keys, *args))


def _is_read_only(error: ResponseError) -> bool:
    # Servers before version 7 hide the code of an error inside a script in the message.
    return isinstance(error, ReadOnlyError) or "READONLY" in str(error)


class _NotConnected(Exception):
    """There was no connection, so that nothing can have arrived."""

    def __init__(self, why: Exception) -> None:
        super().__init__(str(why))
        self.why = why


def _does(error: Exception) -> str:
    """Say what a server does: a refused login is an answer, and so is an unknown database."""
    answered = isinstance(error, (ResponseError, AuthenticationError))
    return "refuses" if answered else "does not answer"


class Wire:
    """Idle connections to one server, and calls over them; safe for threads, greenlets and forks.

    Calls are ``asking`` where this is a node of a cluster that the key's slot is being moved to.

    Args:
        connect: makes a new (not yet connected) connection.
        where: the server's URL, without passwords, for messages.
        patience_ms: for how long an answer is waited for.
        most: how many connections there are at once; whoever needs one more waits for it.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        where: str,
        patience_ms: int = 2000,
        most: int = MOST_CONNECTIONS,
    ) -> None:
        self._connect = connect
        self._where = where
        self._patience_ms = patience_ms
        self._most = most
        # How far the server's clock is ahead of this process's monotonic one.
        self._ahead_ms: float | None = None
        #: Whether the server is away.
        self.outage = Outage(f"the store at {where}")
        # Idle connections, and when each was given back; the last one is used first.
        self._idle: deque[tuple[Connection, float]] = deque()
        # All connections. One whose user was cut off by an exception leaves the set by itself.
        self._made: weakref.WeakSet[Connection] = weakref.WeakSet()
        # Those who wait for a connection, in their order.
        self._waiting: deque[_Turn] = deque()
        self._lock = threading.Lock()
        # Whether a timer runs that closes connections which nobody needs.
        self._trims = False
        self._pid = os.getpid()

    @property
    def failed_at(self) -> float:
        """When the server last did not answer, or a connection was found broken."""
        return self.outage.failed_at

    def call(self, call: ScriptCall, *, asking: bool = False) -> Any:
        """Call one script and return its answer."""
        answer = self._exchange([_pack_call(call)], asking=asking)[0]
        if isinstance(answer, ResponseError):
            answer = self._answer(call, answer, asking)
        return answer

    def call_timed(self, call: ScriptCall, *, asking: bool = False) -> Any:
        """Call a script that must not run later than it is waited for, and return its answer.

        It gets one more argument, :data:`_TIMING`. Its answer tells the server's time: a number is
        that in microseconds, or more; in bytes it stands as in :data:`_TIME`.

        While the server is away, one such call at a time asks whether it is back.
        """
        if self.outage.is_away:
            return self.outage.one_at_a_time(lambda: self._call_timed(call, asking))
        return self._call_timed(call, asking)

    def call_one_at_a_time(self, call: ScriptCall, *, asking: bool = False) -> Any:
        """Call one script as :meth:`call` does, but one at a time while the server is away."""
        return self.outage.one_at_a_time(lambda: self.call(call, asking=asking))

    def _call_timed(self, call: ScriptCall, asking: bool) -> Any:
        if self._ahead_ms is None:
            self._learn_the_time()

        timing = b""

        def packed(broke: bool) -> list[bytes]:
            nonlocal timing
            timing = _TIMING.pack(self._deadline_ms(), broke)
            return [_pack_call(call, timing)]

        answer = self._exchange(packed(False), lambda: packed(True), asking=asking)[0]
        if isinstance(answer, ResponseError):
            timed = ScriptCall(call.script, call.keys, (*call.args, timing))
            answer = self._answer(timed, answer, asking)
        if type(answer) is int:
            self._learn(answer // 1000, at_most=True)
        elif type(answer) is bytes:
            self._learn(*_TIME.unpack_from(answer))
        return answer

    def _learn(self, now_ms: int, *, at_most: bool = False) -> None:
        """Learn what the server's clock says at this moment; ``at_most``: it may say less."""
        ahead_ms = now_ms - time.monotonic() * 1000
        if at_most and self._ahead_ms is not None and ahead_ms > self._ahead_ms - _STEP_MS:
            return
        self._ahead_ms = ahead_ms

    def _learn_the_time(self) -> None:
        answer = self._exchange([pack_command((b"TIME",))])[0]
        if isinstance(answer, ResponseError):
            self._ahead_ms = math.nan  # this user may not call TIME
        else:
            self._learn(int(answer[0]) * 1000 + int(answer[1]) // 1000)

    def _deadline_ms(self) -> int:
        ahead_ms = self._ahead_ms
        if ahead_ms is None or math.isnan(ahead_ms):
            return 0
        return int(time.monotonic() * 1000 + ahead_ms + self._patience_ms)

    def call_replicated(
        self, call: ScriptCall, replicas: int, timeout_ms: int, *, asking: bool = False
    ) -> Any:
        """Call one script, and return its answer once so many replicas have what it wrote.

        Raises:
            StoreUnavailable: fewer of them had it in time; this server has it all the same.
        """
        wait = pack_command((b"WAIT", replicas, timeout_ms))
        answer, had = self._exchange([_pack_call(call), wait], asking=asking)
        if isinstance(answer, NoScriptError):
            answer, had = self._exchange([_pack_source(call), wait], asking=asking)
        answer = self._checked(answer)
        if self._checked(had) < replicas:
            raise StoreUnavailable(
                f"the store at {self._where} has recorded it, but {had} of {replicas} replicas "
                f"have it after {timeout_ms} ms (idempotency_wait_replicas)"
            )
        return answer

    def call_all(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """Call several scripts in one round trip; errors are returned in their places."""
        answers = self._exchange([_pack_call(call) for call in calls])
        return [or_error(self._answer, *pair) for pair in zip(calls, answers, strict=True)]

    def command(self, *parts: Argument, asking: bool = False) -> Any:
        """Send one plain command and return its answer."""
        return self._checked(self._exchange([pack_command(parts)], asking=asking)[0])

    def commands(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Send plain commands in one round trip; errors are returned in their places."""
        if not commands:
            return []
        answers = self._exchange([pack_command(parts) for parts in commands])
        return [or_error(self._checked, answer) for answer in answers]

    def connect(self) -> Connection:
        """Return a new connection, for the caller alone.

        Raises:
            StoreUnavailable: there is no server.
        """
        connection = self._connect()
        try:
            connection.connect()
        except (RedisError, OSError) as exc:
            raise not_done(f"the store at {self._where} {_does(exc)}: {exc}") from exc
        return connection

    def wires(self) -> list[Wire]:
        """Return the wire to each server: a cluster has more than one."""
        return [self]

    def close(self) -> None:
        """Close the idle connections."""
        while True:
            try:
                connection, _ = self._idle.pop()
            except IndexError:
                return
            self._drop(connection)

    def _answer(self, call: ScriptCall, answer: Any, asking: bool = False) -> Any:
        if isinstance(answer, NoScriptError):
            # Scripts were flushed, or a replica took over: EVAL runs it and loads it again.
            answer = self._exchange([_pack_source(call)], asking=asking)[0]
        return self._checked(answer)

    def _checked(self, answer: Any) -> Any:
        if not isinstance(answer, ResponseError):
            return answer
        if "WRONGTYPE" in str(answer):
            raise RecordCorrupt(
                f"the store at {self._where} holds something else where a record should be: is "
                "idempotency_key_prefix shared with another program? forget the key to free it"
            ) from answer
        if isinstance(answer, AskError):  # MovedError is one
            raise not_done(
                f"the store at {self._where} has this slot no more (MOVED or ASK): for a cluster, "
                "idempotency_store_url begins with redis+cluster://"
            ) from answer
        raise not_done(f"the store at {self._where} refused to work: {answer}") from answer

    def _exchange(
        self,
        packed: list[bytes],
        again: Callable[[], list[bytes]] | None = None,
        *,
        asking: bool = False,
    ) -> list[Any]:
        """Send commands and read as many answers; once more where the connection was stale.

        Args:
            again: returns what is to be sent the second time.

        All that this library sends is idempotent (a claim by its nonce), so that sending it again
        after a broken connection is safe.
        """
        if self._pid != os.getpid():
            # After a fork the sockets belong to the parent, and so do those who wait.
            self._idle, self._waiting, self._made = deque(), deque(), weakref.WeakSet()
            self._lock, self._trims = threading.Lock(), False
            self._pid = os.getpid()
        try:
            may_have_arrived = False
            try:
                answers, is_replica = self._once(packed, asking)
                if not is_replica:
                    return answers
                # The master became a replica: ask again who is the master.
            except (RedisTimeoutError, _NotConnected):
                raise
            except (RedisConnectionError, OSError):
                may_have_arrived = True
            self.outage.stumbled()
            self.close()  # the others were made before the same restart
            try:
                return self._once(packed if again is None else again(), asking)[0]
            except _NotConnected as exc:
                raise exc.why if may_have_arrived else exc from None
        except (_NotConnected, RedisError, OSError) as exc:
            self.outage.begins()
            why = exc.why if isinstance(exc, _NotConnected) else exc
            error = StoreUnavailable(
                f"the store at {self._where} {_does(why)}: {why or type(why).__name__}"
            )
            error.may_have_arrived = not isinstance(exc, _NotConnected)
            raise error from why

    def _once(self, packed: list[bytes], asking: bool) -> tuple[list[Any], bool]:
        """Send commands and read their answers; and whether they came from a replica."""
        if asking:
            packed = [part for command in packed for part in (_ASKING, command)]
        try:
            connection, _ = self._idle.pop()
        except IndexError:
            connection = self._one_more()
        answers, is_replica = [], False
        try:
            connection.send_packed_command([b"".join(packed)], check_health=False)
            for _ in packed:
                try:
                    answer = connection.read_response()
                except ResponseError as exc:
                    answer = exc
                if isinstance(answer, ResponseError):
                    is_replica = is_replica or _is_read_only(answer)
                answers.append(answer)
        except BaseException:
            # An answer may be under way (a soft time limit can cut in here): never use it again.
            self._drop(connection)
            raise
        self.outage.is_away = False
        if is_replica:
            self._drop(connection)
        else:
            self._idle.append((connection, time.monotonic()))
            if self._waiting:
                self._hand_on()
        return answers[1::2] if asking else answers, is_replica

    def _trim_later(self) -> None:
        """Close connections that nobody needs after a while, even if nothing else happens.

        A timer does it, for as long as there are more than are kept.
        """
        if self._trims or len(self._made) <= _KEPT:
            return
        timer = threading.Timer(_IDLE_S, self._trim)
        timer.daemon = True
        self._trims = True
        try:
            timer.start()
        except RuntimeError:
            self._trims = False  # there are too many threads: the next connection tries again

    def _trim(self) -> None:
        """Close connections that nobody needed for long, but not those that are kept."""
        before = time.monotonic() - _IDLE_S
        with suppress(IndexError):  # none is idle
            while len(self._made) > _KEPT and self._idle[0][1] <= before:
                self._drop(self._idle.popleft()[0])
        self._trims = False
        self._trim_later()

    def _drop(self, connection: Connection) -> None:
        """Close a connection, so that there may be another one in its place."""
        self._made.discard(connection)
        try:
            connection.disconnect()
        finally:
            if self._waiting:
                self._hand_on()

    def _hand_on(self) -> None:
        """Give those who wait what is idle, or the place of what was closed."""
        with self._lock:
            while self._waiting and (self._idle or len(self._made) < self._most):
                with suppress(IndexError):
                    self._waiting[0].connection = self._idle.pop()[0]
                self._waiting.popleft().comes.set()

    def _one_more(self) -> Connection:
        """Return a connection where none is idle: a new one, or one that is given back.

        Raises:
            _NotConnected: there is no server, or each connection stays in use.
        """
        until = time.monotonic() + self._patience_ms / 1000
        while (connection := self._place()) is None:
            given_back = self._wait_for_one(until)
            if given_back is not None:
                return given_back
        try:
            connection.connect()
        except BaseException as exc:
            self._drop(connection)
            if isinstance(exc, (RedisError, OSError)):
                raise _NotConnected(exc) from exc
            raise
        return connection

    def _place(self) -> Connection | None:
        """Return a new connection that is not connected yet; ``None``: there are enough."""
        with self._lock:
            if len(self._made) >= self._most:
                return None
            connection = self._connect()
            self._made.add(connection)
        self._trim_later()
        return connection

    def _wait_for_one(self, until: float) -> Connection | None:
        """Wait for a connection that is given back; ``None``: there may be room for a new one."""
        turn = _Turn()
        self._waiting.append(turn)
        try:
            self._hand_on()  # one may have been given back before this turn was in the queue
            came = turn.comes.wait(max(0.0, until - time.monotonic()))
            connection, turn.connection = turn.connection, None
        finally:
            with self._lock, suppress(ValueError):
                self._waiting.remove(turn)
            if turn.connection is not None:  # too late, or something cut in here
                self._idle.append((turn.connection, time.monotonic()))
                self._hand_on()
        if connection is None and (not came or self.outage.is_away):
            raise _NotConnected(
                RedisTimeoutError(f"all {self._most} connections of this process are in use")
            )
        return connection


class _Turn:
    """Somebody who waits for a connection, and the one that is handed over."""

    def __init__(self) -> None:
        self.comes = threading.Event()
        self.connection: Connection | None = None
