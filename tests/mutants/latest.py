"""The guards of calls of which only the newest waits and runs."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, Stages, pair

__all__ = ["LATEST"]

_DELIVERIES: Stages = (("tests/delivery/test_latest.py",),)
_OPS: Stages = (("tests/ops/test_latest.py",),)
_WAITERS: Stages = (("tests/worker/test_waiters.py",),)

LATEST: list[Mutant] = [
    *pair(
        "last: a call has a place of its own, also within a millisecond",
        ("came_ms = max(now_ms, runs_ms + 1, others_ms + 1)", "came_ms = now_ms"),
        "claim",
        ("came_ms = math.max(now_ms, runs_ms + 1, others_ms + 1)", "came_ms = now_ms"),
    ),
    *pair(
        "last: a run that takes over from its own gets no newer",
        ("came_ms = (runs_ms if mine else 0) or ask.came_ms or (0 if slip", "came_ms = (0 if slip"),
        "claim",
        (
            "if mine and runs_ms > 0 then came_ms = runs_ms end",
            "if true then came_ms = 0 end",
        ),
    ),
    *pair(
        "last: the slip says when a call came",
        ("(0 if slip is None else slip.came_ms)", "0"),
        "claim",
        ("  if came_ms == 0 and slip and not slip.answered", "  if false and not slip.answered"),
    ),
    *pair(
        "last: the slip of a run that gave its key up says when it came",
        (
            "return self.token // 1000 if self.released else self.token",
            "return 0 if self.released else self.token",
        ),
        "claim",
        ("slip.released and math.floor(slip.token / 1000) or", "slip.released and 0 or"),
        path="core/slip.py",
    ),
    *pair(
        "last: a call that finds the key busy leaves a slip",
        (
            (
                "            if slip is None and ask.slip_key:\n"
                "                left = left._replace(slip=came, slip_ttl_ms=ask.keep_ms)\n"
            ),
            "",
        ),
        "claim",
        ("  if not slip then save_came() end\n", ""),
    ),
    *pair(
        "last: a call that runs leaves a slip",
        (
            (
                "        if ask.slip_key:\n"
                "            left = left._replace(slip=came, slip_ttl_ms=ask.keep_ms)\n"
                "        if queued"
            ),
            "        if queued",
        ),
        "claim",
        (
            "  if latest and slip_key then\n    save_came()\n  elseif slip then",
            "  if slip then",
        ),
    ),
    *pair(
        "last: the newest has the free key first",
        ("if may_wait and queued is not None and came_ms <= others_ms:", "if False:"),
        "claim",
        ("local ahead = may_wait and reserved and came_ms", "local ahead = false and came_ms"),
    ),
    *pair(
        "last: its own takeover waits for nobody",
        ("may_wait = not mine and now_ms", "may_wait = now_ms"),
        "claim",
        ("may_wait = not mine and now_ms", "may_wait = now_ms"),
    ),
    *pair(
        "last: who may wait no longer lets nobody go first",
        ("not mine and now_ms < ask.refused_from_ms\n        if may", "not mine\n        if may"),
        "claim",
        ("may_wait = not mine and now_ms < refused_from_ms", "may_wait = not mine"),
    ),
    *pair(
        "last: who does not come is waited for one lease",
        ("    if now_ms >= until_ms:\n        return None, None\n", "", "def _let_go_first("),
        "claim",
        ("  if now_ms >= until_ms then return nil end\n", ""),
    ),
    *pair(
        "last: the lease for who runs next begins once",
        ("until_ms = queued.due_ms or now_ms + ask.lease_ms", "until_ms = now_ms + ask.lease_ms"),
        "claim",
        (
            "local until_ms = reserved.due_ms > 0 and reserved.due_ms or now_ms + lease_ms",
            "local until_ms = now_ms + lease_ms",
        ),
    ),
    *pair(
        "last: the end is published for who waits for a run to begin",
        ("if queued is not None and queued.due_ms:", "if False:"),
        "claim",
        (
            (
                "    if reserved and reserved.due_ms > 0 and not is_awaited(flags) then "
                "flags = flags + AWAITED end\n"
            ),
            "",
        ),
    ),
    *pair(
        "last: a run ends the place of who waited",
        ("if queued is not None and (is_own or not mine):", "if False:"),
        "claim",
        ("    if reserved and not mine then redis.call('DEL', queued) end\n", ""),
    ),
    *pair(
        "last: a run that takes over from its own leaves the place",
        ("(is_own or not mine)", "True"),
        "claim",
        ("if reserved and not mine then redis.call", "if reserved then redis.call"),
    ),
    *pair(
        "last: an older call takes nobody's place",
        ("if came_ms > max(runs_ms, others_ms):", "if True:"),
        "claim",
        ("if came_ms > runs_ms and came_ms > others_ms then", "if true then"),
    ),
    *pair(
        "last: who is refused does not wait",
        ("        and now_ms < ask.refused_from_ms\n", ""),
        "claim",
        (
            "  if not mine and now_ms >= refused_from_ms then return tell(2, raw) end",
            "  if not mine and now_ms >= refused_from_ms then wait_next() return tell(2, raw) end",
        ),
    ),
    *pair(
        "last: a message is told when its call came",
        ("            verdict = verdict._replace(now_ms=came_ms)\n", ""),
        "claim",
        (
            "  if not slip then save_came() end\n  return came_ms",
            "  if not slip then save_came() end\n  return now_ms",
        ),
    ),
    *pair(
        "last: an outcome is for those that came before its run",
        ("shares = ask.came_ms <= record.came_ms", "shares = True"),
        "claim",
        ("if latest then shares = came_ms <= runs_ms end", "if latest then shares = true end"),
    ),
    *pair(
        "last: those that came before its run get its outcome",
        ("shares = ask.came_ms <= record.came_ms", "shares = False"),
        "claim",
        ("if latest then shares = came_ms <= runs_ms end", "if latest then shares = false end"),
    ),
    *pair(
        "last: a record says when its call came",
        ("return int(came) if came.isdecimal() else 0", "return self.token // 1000"),
        "record",
        (
            "return string.find(came, '^%d+$') and tonumber(came) or 0",
            "return math.floor(record.token / 1000)",
        ),
        path="core/record.py",
    ),
    Mutant(
        "last: the newest call waits, and is published",
        "settings.py",
        "            if getattr(options, name) != needed:",
        "            if False:",
        _DELIVERIES,
    ),
    Mutant(
        "last: a displaced call is answered by the run that it waited for, whoever ran since",
        "delivery/delivery.py",
        "(waits.displaced or not terms.in_turn)",
        "(not terms.in_turn)",
        _DELIVERIES,
    ),
    Mutant(
        "last: a displaced call goes to the pool when it is told, or due",
        "worker/waiters.py",
        "    if waiter.waits.displaced and not early:\n",
        "    if False:\n",
        _WAITERS,
    ),
    Mutant(
        "last: why says which call runs next",
        "ops/why.py",
        "if queued is not None and queued.waits:",
        "if False:",
        _OPS,
    ),
]
