"""Sends scripts over redis-py's own connections, without redis-py's client around each command.

redis-py's client does much around each command (pools with locks, checks, callbacks, metrics), and
a guarded task may cost no more than two bare round trips. So this module takes the client's
connections, which know TLS, Sentinel, sockets and logins, and writes to them itself.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any, Final, NamedTuple, Protocol

from redis.exceptions import AskError, NoScriptError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from celery_idempotent.errors import RecordCorrupt, StoreUnavailable

__all__ = ["ScriptCall", "Connection", "Script", "Wire", "load_script", "not_done", "pack_command"]

Argument = bytes | str | int


class Connection(Protocol):
    """What is used of redis-py's connections."""

    def send_packed_command(self, command: Any, check_health: bool = True) -> Any: ...

    def read_response(self) -> Any: ...

    def connect(self) -> None: ...

    def disconnect(self, *args: Any) -> None: ...


class Script(NamedTuple):
    """One Lua script: its source, and the packed beginning of a command that calls it."""

    name: str
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
#: How long after a server did not answer it is left alone.
_PAUSE_S: Final = 0.04
#: A clock that is behind by this much was set back; a late answer does not explain it.
_STEP_MS = 1000


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
    return Script(name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


def pack_command(parts: Sequence[Argument]) -> bytes:
    """Return a command as it goes over the wire."""
    return b"*%d\r\n%b" % (len(parts), _parts(parts))


def _parts(parts: Sequence[Argument]) -> bytes:
    packed: list[int | bytes] = []
    for part in parts:
        if isinstance(part, str):
            part = part.encode("utf-8", "surrogatepass")
        elif isinstance(part, int):
            part = b"%d" % part
        packed.append(len(part))
        packed.append(part)
    return (b"$%d\r\n%b\r\n" * len(parts)) % tuple(packed)


#: In front of a command to a node of a cluster, which then answers for a slot that it gets.
_ASKING = pack_command((b"ASKING",))


def _pack_call(call: ScriptCall) -> bytes:
    script, keys, args = call
    return _beginning(script.sha, len(keys), len(args)) + _parts((*keys, *args))


@lru_cache(maxsize=256)  # the same few all the time
def _beginning(sha: bytes, keys: int, args: int) -> bytes:
    return b"*%d\r\n%b" % (3 + keys + args, _parts((b"EVALSHA", sha, keys)))


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


def not_done(message: str) -> StoreUnavailable:
    """Return the error of an operation that the server did not carry out."""
    return _unavailable(message, False)


def _unavailable(message: str, may_have_arrived: bool) -> StoreUnavailable:
    error = StoreUnavailable(message)
    error.may_have_arrived = may_have_arrived
    return error


class Wire:
    """Idle connections to one server, and calls over them; safe for threads, greenlets and forks.

    Args:
        connect: makes a new (not yet connected) connection.
        where: the server's URL, without passwords, for messages.
        patience_ms: for how long an answer is waited for.
    """

    def __init__(
        self, connect: Callable[[], Connection], where: str, patience_ms: int = 2000
    ) -> None:
        self._connect = connect
        self._where = where
        self._patience_ms = patience_ms
        # How far the server's clock is ahead of this process's monotonic one.
        self._ahead_ms: float | None = None
        #: When it last did not answer, or a connection was found broken, on the monotonic clock.
        self.failed_at = -math.inf
        self._idle: deque[Connection] = deque()
        self._pid = os.getpid()
        # Whether it did not answer the last time, and the turn to ask whether it is back.
        self._is_away = False
        self._turn = threading.Lock()

    def call(self, call: ScriptCall) -> Any:
        """Call one script and return its answer."""
        answer = self._exchange([_pack_call(call)])[0]
        return self._answer(call, answer) if isinstance(answer, ResponseError) else answer

    def call_timed(self, call: ScriptCall, *, asking: bool = False) -> Any:
        """Call a script that must not run later than it is waited for, and return its answer.

        It gets one more argument, :data:`_TIMING`. Its answer tells the server's time: a number is
        that in microseconds, or more; in bytes it stands as in :data:`_TIME`.

        Args:
            asking: on a node of a cluster that its slot is being moved to.

        While the server is away, one such call at a time asks whether it is back. To all others it
        is away without being asked: hundreds of greenlets that ask would keep a core busy.
        """
        if not self._is_away:
            return self._call_timed(call, asking)
        if self._pid != os.getpid():
            self._turn = threading.Lock()  # after a fork: whose turn it was is in the parent
        if time.monotonic() - self.failed_at < _PAUSE_S or not self._turn.acquire(blocking=False):
            raise not_done(f"the store at {self._where} does not answer: it was asked just now")
        try:
            return self._call_timed(call, asking)
        finally:
            self._turn.release()

    def _call_timed(self, call: ScriptCall, asking: bool) -> Any:
        if self._ahead_ms is None:
            self._learn_the_time()

        made = call

        def packed(broke: bool) -> list[bytes]:
            nonlocal made
            timing = _TIMING.pack(self._deadline_ms(), broke)
            made = ScriptCall(call.script, call.keys, (*call.args, timing))
            return [_ASKING, _pack_call(made)] if asking else [_pack_call(made)]

        answer = self._exchange(packed(False), again=lambda: packed(True))[-1]
        if isinstance(answer, NoScriptError) and asking:
            answer = self._exchange([_ASKING, _pack_source(made)])[-1]
        if isinstance(answer, ResponseError):
            answer = self._answer(made, answer)
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

    def call_asking(self, call: ScriptCall) -> Any:
        """Call one script on a node of a cluster that its slot is being moved to."""
        return self._checked(self._amid([_ASKING], call, [])[1])

    def call_replicated(
        self, call: ScriptCall, replicas: int, timeout_ms: int, asking: bool = False
    ) -> Any:
        """Call one script, and return its answer once so many replicas have what it wrote.

        Args:
            asking: on a node of a cluster that its slot is being moved to.

        Raises:
            StoreUnavailable: fewer of them had it in time; this server has it all the same.
        """
        before = [_ASKING] if asking else []
        *_, answer, had = self._amid(before, call, [pack_command((b"WAIT", replicas, timeout_ms))])
        answer = self._checked(answer)
        if self._checked(had) < replicas:
            raise _unavailable(
                f"the store at {self._where} has recorded it, but {had} of {replicas} replicas "
                f"have it after {timeout_ms} ms (idempotency_wait_replicas)",
                True,
            )
        return answer

    def call_all(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """Call several scripts in one round trip; errors are returned in their places."""
        packed = [_pack_call(call) for call in calls]
        answers: list[Any] = []
        for call, answer in zip(calls, self._exchange(packed), strict=True):
            try:
                answers.append(self._answer(call, answer))
            except (StoreUnavailable, RecordCorrupt) as exc:
                answers.append(exc)
        return answers

    def command(self, *parts: Argument) -> Any:
        """Send one plain command and return its answer."""
        return self._checked(self._exchange([pack_command(parts)])[0])

    def command_asking(self, *parts: Argument) -> Any:
        """Send one plain command to a node of a cluster that its slot is being moved to."""
        return self._checked(self._exchange([_ASKING, pack_command(parts)])[1])

    def commands(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Send plain commands in one round trip; errors are returned in their places."""
        if not commands:
            return []
        answers: list[Any] = []
        for answer in self._exchange([pack_command(parts) for parts in commands]):
            try:
                answers.append(self._checked(answer))
            except (StoreUnavailable, RecordCorrupt) as exc:
                answers.append(exc)
        return answers

    def connect(self) -> Connection:
        """Return a new connection, for the caller alone.

        Raises:
            StoreUnavailable: there is no server.
        """
        connection = self._connect()
        try:
            connection.connect()
        except (RedisError, OSError) as exc:
            raise _unavailable(f"the store at {self._where} does not answer: {exc}", False) from exc
        return connection

    def close(self) -> None:
        """Close the idle connections."""
        while True:
            try:
                self._idle.pop().disconnect()
            except IndexError:
                return

    def _amid(self, before: list[bytes], call: ScriptCall, after: list[bytes]) -> list[Any]:
        """Call one script amid commands that are for its connection alone."""
        packed = _pack_call(call)
        answers = self._exchange([*before, packed, *after])
        if isinstance(answers[len(before)], NoScriptError):
            packed = _pack_source(call)
            answers = self._exchange([*before, packed, *after])
        return answers

    def _answer(self, call: ScriptCall, answer: Any) -> Any:
        if isinstance(answer, NoScriptError):
            # Scripts were flushed, or a replica took over: EVAL runs it and loads it again.
            answer = self._exchange([_pack_source(call)])[0]
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
            raise _unavailable(
                f"the store at {self._where} has this slot no more (MOVED or ASK): for a cluster, "
                "idempotency_store_url begins with redis+cluster://",
                False,
            ) from answer
        raise _unavailable(
            f"the store at {self._where} refused to work: {answer}", False
        ) from answer

    def _exchange(
        self, packed: list[bytes], again: Callable[[], list[bytes]] | None = None
    ) -> list[Any]:
        """Send commands and read as many answers; once more where the connection was stale.

        Args:
            again: returns what is to be sent the second time.

        All that this library sends is idempotent (a claim by its nonce), so that sending it again
        after a broken connection is safe.
        """
        if self._pid != os.getpid():
            # After a fork the sockets belong to the parent.
            self._idle = deque()
            self._pid = os.getpid()
        try:
            try:
                answers, is_replica = self._once(packed)
            except (RedisTimeoutError, _NotConnected):
                raise
            except (RedisConnectionError, OSError):
                self.failed_at = time.monotonic()
                self.close()  # the others were made before the same restart
                packed = again() if again is not None else packed
                try:
                    return self._once(packed)[0]
                except _NotConnected as exc:
                    raise exc.why from None  # the first time, it may have arrived
            if is_replica:
                # The master became a replica: ask again who is the master.
                self.failed_at = time.monotonic()
                self.close()
                packed = again() if again is not None else packed
                return self._once(packed)[0]
            return answers
        except (_NotConnected, RedisError, OSError) as exc:
            self.failed_at = time.monotonic()
            self._is_away = True
            arrived = not isinstance(exc, _NotConnected)
            why = exc.why if isinstance(exc, _NotConnected) else exc
            raise _unavailable(
                f"the store at {self._where} does not answer: {why or type(why).__name__}", arrived
            ) from why

    def _once(self, packed: list[bytes]) -> tuple[list[Any], bool]:
        """Send commands and read their answers; and whether they came from a replica."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
            try:
                connection.connect()
            except (RedisError, OSError) as exc:
                raise _NotConnected(exc) from exc
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
            connection.disconnect()
            raise
        self._is_away = False
        if is_replica:
            connection.disconnect()
        else:
            self._idle.append(connection)
        return answers, is_replica
