"""The guards of waiting: who marks a record, and who is told that its run is over."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, Stages, pair

__all__ = ["WAITED"]

_WAITERS: Stages = (("tests/worker/test_waiters.py",),)
_STRATEGY: Stages = (("tests/worker/test_strategy.py",),)
_LISTENING: Stages = (("tests/worker/test_listening.py",),)
_BODY: Stages = (("tests/delivery/test_body.py",),)


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
        "limit = min(limit, (since_ms",
        "limit = max(limit, (since_ms",
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
        " and not _is_cancelled(it.entry)",
        "",
    ),
    _held("many are let in a part at a time", "list(islice(goes, most))", "list(goes)"),
    _held(
        "those that were left go on",
        "                self._on_seen()\n                return\n",
        "                return\n",
    ),
    _held(
        "what was seen later counts later",
        "                sights.appendleft(sight)",
        "                sights.append(sight)",
    ),
    _held(
        "the end of a run lets nobody in who waits for another run",
        " and Owner(*waits.awaited).pack() == owner",
        "",
    ),
    _held(
        "a message goes only once because a run is known to have ended",
        "waits.count > 1 or ",
        "",
    ),
    _held("the end of a run is known for a moment", "waiter.since >= until or ", "not owner or "),
    _held(
        "nothing is kept of runs that ended before",
        "            del self._answers[old]",
        "            pass",
    ),
    _held(
        "the end of a run is known until the key is held again",
        "self._answers.pop(name, None)",
        "pass",
    ),
    _held(
        "the end of a run lets nobody in where each runs in its turn",
        "            answers = others.stage is Stage.ANSWERED and not key.in_turn",
        "            answers = others.stage is Stage.ANSWERED",
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
        "            next_s = min(over_s, poll_s(looks.age_s))",
        "            next_s = over_s",
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
    Mutant(
        "a message that is put back has the arguments that it came with",
        "delivery/waiting.py",
        '"args": body.args, ',
        "",
        _BODY,
    ),
    Mutant(
        "a message that is put back has the keyword arguments that it came with",
        "delivery/waiting.py",
        '"kwargs": body.kwargs, ',
        "",
        _BODY,
    ),
    Mutant(
        "the worker's parent process hands a message's body on",
        "worker/request.py",
        "        keep_body(self._request_dict, self._message)\n",
        "",
        _BODY,
    ),
    Mutant(
        "a message that is put back keeps its serializer",
        "delivery/body.py",
        '{"serializer": serializer, ',
        "{",
        _BODY,
    ),
    Mutant(
        "a message that is put back keeps its compression",
        "delivery/body.py",
        ', "compression": self.compression}',
        "}",
        _BODY,
    ),
    Mutant(
        "a body that is the same is not written anew",
        "delivery/body.py",
        "if not came.is_that_of(body):",
        "if True:",
        _BODY,
    ),
    Mutant(
        "callbacks that were sent are not put back",
        "delivery/body.py",
        " and body[2] == self.embed",
        "",
        _BODY,
    ),
    Mutant(
        "a body of protocol 1 is not taken for one of protocol 2",
        "delivery/body.py",
        "isinstance(body, tuple) and body",
        "body",
        _BODY,
    ),
    Mutant(
        "a body that a message brings in its properties is not believed",
        "delivery/body.py",
        "if not isinstance(properties, Properties):",
        "if not properties:",
        _BODY,
    ),
    Mutant(
        "who reads a message's properties finds no body",
        "delivery/body.py",
        "        super().__init__(properties)\n",
        "        super().__init__(properties, came=came)\n",
        _BODY,
    ),
]
