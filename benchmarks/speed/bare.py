"""The guard's round trips without the guard: a task sends them itself, with redis-py's client."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import redis

from celery_idempotent.core.record import Record, State
from celery_idempotent.stores.redis.store import _ASK
from celery_idempotent.stores.redis.wire import _TIMING, load_script

__all__ = ["Bare"]

_DAY_MS = 86_400_000
_MONTH_MS = 30 * _DAY_MS


class Bare:
    """The two scripts of a first execution, sent as a plain task would send them with redis-py."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        claim, settle = load_script("claim"), load_script("settle")
        for script in (claim, settle):
            self._client.script_load(script.source.decode())
        self._claim, self._settle = claim.sha.decode(), settle.sha.decode()
        self._trivial = self._client.script_load("return 1")
        self._asked = (_ASK.pack(30_000, _MONTH_MS, 3, 3, 0, 0), _DAY_MS, b"", _TIMING.pack(0, 0))

    def claim(self, key: str, owner: bytes) -> int | bytes:
        """Claim a key; return a token, or the record of its holder."""
        candidate = Record(State.RUNNING, 0, owner=owner, nonce=owner[:8], fingerprint=owner[:16])
        answer: Any = self._client.evalsha(
            self._claim, 2, key, f"{key}:steps", candidate.pack(), b"", *self._asked
        )
        return answer  # type: ignore[no-any-return]

    def complete(self, key: str, owner: bytes, token: int) -> None:
        """Record a small result."""
        done = Record(
            State.SUCCEEDED, token, owner=owner, fingerprint=owner[:16], outcome=b"\1\1" + b"1"
        )
        self._client.evalsha(self._settle, 2, key, f"{key}:steps", done.pack(), 0, _DAY_MS)

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
        claimed = self._timed(self._claim, claims)
        for (key, steps, packed, *_), token in zip(claims, claimed.answers, strict=True):
            owner = Record.unpack(packed).owner
            done = Record(
                State.SUCCEEDED, token, owner=owner, fingerprint=owner, outcome=b"\1\0011"
            )
            settles.append((key, steps, done.pack(), 0, _DAY_MS))
        settled = self._timed(self._settle, settles)
        assert settled.answers == claimed.answers
        real, trivial = claimed.real + settled.real, claimed.trivial + settled.trivial
        return real / count, trivial / count

    def _timed(self, sha: str, calls: list[Any]) -> _Timed:
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

    def _send(self, sha: str, args: Any) -> tuple[float, Any]:
        began = time.perf_counter()
        answer = self._client.evalsha(sha, 2, *args)
        return time.perf_counter() - began, answer


class _Timed(NamedTuple):
    """The seconds for all calls of a script and of the trivial one, and the script's answers."""

    real: float
    trivial: float
    answers: list[Any]
