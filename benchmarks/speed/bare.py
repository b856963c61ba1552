"""The guard's round trips without the guard: a task sends them itself."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import redis

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import NEVER_MS
from celery_idempotent.stores.redis.store import _ASK, RedisStore, _keys
from celery_idempotent.stores.redis.wire import _TIMING, Script, ScriptCall, load_script

__all__ = ["Bare"]

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_MONTH_MS = 30 * _DAY_MS


#: Scripts that only write a value, where there is none or in any case, and only read one.
_SET_NEW = "return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2], 'NX')"
_SET = "return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])"
_GET = "return redis.call('GET', KEYS[1])"


class Bare:
    """The round trips of a first execution and of a replay, by redis-py's client.

    Args:
        packed: send them over the library's own connections instead, without a client.
    """

    def __init__(self, url: str, *, packed: bool = False) -> None:
        self._client = redis.Redis.from_url(url)
        self._wire = RedisStore.from_url(url)._wire if packed else None
        self._claim, self._settle = load_script("claim"), load_script("settle")
        self._set_new, self._set, self._get, trivial = (
            self._made(source) for source in (_SET_NEW, _SET, _GET, "return 1")
        )
        self._trivial = trivial.sha
        for script in (self._claim, self._settle):
            self._client.script_load(script.source.decode())
        # In lua/claim.lua's order.
        numbers = 30_000, _MONTH_MS, 3, 3, 0, 0, NEVER_MS, 2 * _HOUR_MS, 0
        self._asked = (_ASK.pack(*numbers), _DAY_MS, b"", _TIMING.pack(0, 0))

    def _made(self, source: str) -> Script:
        sha = str(self._client.script_load(source))
        return Script(source.encode(), sha.encode())

    def _call(self, script: Script, keys: tuple[str, ...], *args: Any) -> Any:
        if self._wire is not None:
            return self._wire.call(ScriptCall(script, keys, args))
        return self._client.evalsha(script.sha.decode(), len(keys), *keys, *args)

    def write_twice(self, key: str, value: bytes) -> None:
        """Write a value where there is none, and again: two scripts that only ``SET``."""
        self._call(self._set_new, (key,), value, _DAY_MS)
        self._call(self._set, (key,), value, _DAY_MS)

    def read(self, key: str) -> Any:
        """Read a value: one script that only does ``GET``."""
        return self._call(self._get, (key,))

    def claim(self, key: str, owner: bytes, slip: str = "") -> int | bytes:
        """Claim a key by the library's script; return a token, or the record of its holder.

        Args:
            slip: the key of the owner's slip, which a delivery in a worker names.
        """
        candidate = Record(State.RUNNING, 0, owner=owner, nonce=owner[:8], fingerprint=owner[:16])
        answer: Any = self._call(self._claim, _keys(key, slip), candidate.pack(), b"", *self._asked)
        return answer  # type: ignore[no-any-return]

    def complete(self, key: str, owner: bytes, token: int, slip: str = "") -> None:
        """Record a small result by the library's script; ``slip`` as for :meth:`claim`."""
        done = Record(
            State.SUCCEEDED, token, owner=owner, fingerprint=owner[:16], outcome=b"\1\1" + b"1"
        )
        self._call(self._settle, _keys(key, slip), done.pack(), 0, _DAY_MS)

    def timed_scripts(self, count: int, start: int) -> tuple[float, float]:
        """Send both scripts for so many keys, in turns with a trivial one with the same arguments.

        The arguments are packed before the clock runs. Returns the seconds for each pair, real
        and trivial.
        """
        claims, settles = [], []
        for number in range(start, start + count):
            key, owner = f"bare:{{guard:s{number}}}", b"U" + number.to_bytes(16, "big")
            record = Record(State.RUNNING, 0, owner=owner, nonce=b"12345678", fingerprint=owner)
            claims.append((key, f"{key}:steps", record.pack(), b"", *self._asked))
        claimed = self._timed(self._claim.sha, claims)
        for (key, steps, packed, *_), token in zip(claims, claimed.answers, strict=True):
            owner = Record.unpack(packed).owner
            done = Record(
                State.SUCCEEDED, token, owner=owner, fingerprint=owner, outcome=b"\1\0011"
            )
            settles.append((key, steps, done.pack(), 0, _DAY_MS))
        settled = self._timed(self._settle.sha, settles)
        assert settled.answers == claimed.answers
        real, trivial = claimed.real + settled.real, claimed.trivial + settled.trivial
        return real / count, trivial / count

    def _timed(self, sha: bytes, calls: list[Any]) -> _Timed:
        """Send each call to a script and to the trivial one, in alternating order."""
        real, trivial, answers = 0.0, 0.0, []
        for number, args in enumerate(calls):
            if number % 2:
                trivial += self._send(self._trivial, args)[0]
            took, answer = self._send(sha, args)
            real += took
            answers.append(answer)
            if not number % 2:
                trivial += self._send(self._trivial, args)[0]
        return _Timed(real, trivial, answers)

    def _send(self, sha: bytes, args: Any) -> tuple[float, Any]:
        began = time.perf_counter()
        answer = self._client.evalsha(sha.decode(), 2, *args)
        return time.perf_counter() - began, answer


class _Timed(NamedTuple):
    """The seconds for all calls of a script and of the trivial one, and the script's answers."""

    real: float
    trivial: float
    answers: list[Any]
