"""The guards of waiting: who marks a record, and who is told that its run is over."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, Stages, pair

__all__ = ["WAITED"]

_WAITERS: Stages = (("tests/worker/test_waiters.py",),)
_STRATEGY: Stages = (("tests/worker/test_strategy.py",),)
_LISTENING: Stages = (("tests/worker/test_listening.py",),)


def _held(guard: str, old: str, new: str) -> Mutant:
    return Mutant(guard, "worker/waiters.py", old, new, _WAITERS)


WAITED: list[Mutant] = [
    *pair(
        "a busy claim marks the record",
        ("if record.is_awaited or not _keeps_waiting(record, 0):", "if True:"),
        "claim",
        ("if not is_awaited(record.flags) and keeps_waiting", "if false and keeps_waiting"),
    ),
    *pair(
        "the mark goes with the end of the run",
        ("_replace(is_awaited=not over)", "_replace(is_awaited=True)"),
        "record",
        (
            "  if not over then flags = flags + AWAITED end",
            "  flags = flags + AWAITED",
        ),
    ),
    *pair(
        "the mark stays while a run goes on",
        ("_replace(is_awaited=not over)", "_replace(is_awaited=False)"),
        "record",
        ("  if not over then flags = flags + AWAITED end\n", ""),
    ),
    *pair(
        "the lease of a dead process keeps nobody waiting",
        ("    if record.until_ms <= now_ms:\n        return 0\n", ""),
        "record",
        ("  if until_ms <= now_ms then return 0 end\n", ""),
    ),
    Mutant(
        "a next attempt that came too early does not wait for itself",
        "core/awaited.py",
        "        if mine:\n",
        "        if False:\n",
        _WAITERS,
    ),
    _held(
        "a wake-up lets nobody in while the key is held",
        "    return others.stage in (Stage.FREE, Stage.ANSWERED) or (",
        "    return True or (",
    ),
    _held(
        "one is let in first where the key is free",
        "first = [it for it in gone if not it.mine][:1]",
        "first = [it for it in gone if not it.mine]",
    ),
    _held(
        "nobody else is let in while the first is on its way",
        "                    first = []",
        "                    pass",
    ),
    _held(
        "a message is held past its pause while somebody holds the key",
        "            return min(until, limit)",
        "            pass",
    ),
    _held(
        "a message is let in when its time to wait is over",
        "limit = min(limit, (waiter.since_ms",
        "limit = max(limit, (waiter.since_ms",
    ),
    _held(
        "a copy is let in early only when it is told to",
        "        return early and copies.stage is not Stage.HELD",
        "        return copies.stage is not Stage.HELD",
    ),
    _held(
        "what came over a broken connection to the broker is forgotten",
        "                self._waiters.clear()\n                self._keys.clear()\n",
        "                pass\n",
    ),
    _held(
        "a message that Celery gave up goes nowhere",
        "gone = [it for it in gone if not _is_cancelled(it.entry)]",
        "gone = list(gone)",
    ),
    Mutant(
        "a message that waits takes no token of a rate limit",
        "worker/strategy.py",
        "default(task, app, _Consumer(consumer, waiters), **options)",
        "default(task, app, consumer, **options)",
        _STRATEGY,
    ),
    Mutant(
        "a message that waits for the store takes no token of a rate limit",
        "worker/waiters.py",
        "            return timer.call_at(due, apply, (request,), priority=_PRIORITY)",
        "            return None",
        _STRATEGY,
    ),
    Mutant(
        "a key is looked at when the line breaks",
        "worker/listening.py",
        "                    post.is_followed, post.look_at = False, 0.0",
        "                    post.is_followed = False",
        _LISTENING,
    ),
    Mutant(
        "a run whose end is not told is looked at again and again",
        "worker/listening.py",
        "            next_s = min(looks.for_s + _OFTENEST_S, late_s)",
        "            next_s = looks.for_s + _OFTENEST_S",
        _LISTENING,
    ),
    Mutant(
        "what is told is looked at",
        "worker/listening.py",
        "                    post.look_at, post.is_told = 0.0, True",
        "                    post.is_told = True",
        _LISTENING,
    ),
    Mutant(
        "a key that is left and watched again is told of",
        "worker/listening.py",
        "            if left:\n                self._subscription.unfollow(left)\n"
        "            if new:\n"
        "                self._subscription.follow([post.key for post in new])\n",
        "            if new:\n"
        "                self._subscription.follow([post.key for post in new])\n"
        "            if left:\n                self._subscription.unfollow(left)\n",
        _LISTENING,
    ),
]
