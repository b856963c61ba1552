"""The guards of a window of 0, with which a key is free when its run ends."""

from __future__ import annotations

from tests.mutants.mutant import LUA, PYTHON, Mutant, Stages, pair

__all__ = ["FREED"]

_MUTEX: Stages = (("tests/delivery/test_mutex.py",),)

_DELIVERIES: Stages = (("tests/delivery/test_no_window.py",),)

FREED: list[Mutant] = [
    *pair(
        "window of 0: a free key says nothing of arguments",
        (" and not _is_free_for(record, ask)", ""),
        "claim",
        (" and not is_free()", ""),
    ),
    *pair(
        "window of 0: an outcome is not shared by other arguments",
        ("record.state is State.RELEASED and ask.awaited != record.owner\n    )", "True\n    )"),
        "claim",
        ("or record.state == RELEASED and ARGV[2] ~= record.owner)", "or true)"),
    ),
    *pair(
        "window of 0: with a window, a released key still says them",
        ("    if not ask.frees:\n        return False\n", ""),
        "claim",
        ("return frees and (record.state == UNKNOWN", "return (record.state == UNKNOWN"),
    ),
    *pair(
        "window of 0: who began is kept over a takeover",
        ("origin = record.owner.hex()", "pass"),
        "claim",
        ("origin = hex(record.owner)", "origin = ''"),
    ),
    *pair(
        "window of 0: who began is kept over all takeovers",
        ("if ask.in_turn else Label.of(record).origin", 'if ask.in_turn else ""'),
        "claim",
        ("in_turn and '' or label_of(record)[5]", "''"),
    ),
    *pair(
        "window of 0: an end ends who began",
        ("record is None or not ask.frees or not record.owner or record.is_done", "record is None"),
        "claim",
        (
            "if not record or not frees or #record.owner == 0 or record.done then",
            "if not record then",
        ),
    ),
    *pair(
        "window of 0: a claim that was given up hides nobody",
        (" or (record.nonce and record.interruptions)", ""),
        "claim",
        (" or (#record.nonce > 0 and record.interruptions > 0)\n  if origin", "\n  if origin"),
    ),
    *pair(
        "window of 0: the call that began is not told that it did",
        ('return "" if origin == ask.candidate.owner.hex() else origin', "return origin"),
        "claim",
        ("return origin ~= hex(new.owner) and origin or ''", "return origin"),
    ),
    *pair(
        "window of 0: who began is told again when the answer was lost",
        ("origin = Label.of(record).origin\n            return", 'origin = ""\n            return'),
        "claim",
        (
            "return claimed(record.token, record.interruptions, nil, label_of(record)[5])",
            "return claimed(record.token, record.interruptions, nil, '')",
        ),
    ),
    *pair(
        "window of 0: steps end with their run",
        (" and not event.clears_steps", "", "def settle("),
        "settle",
        ("if ARGV[6] == '1' and has_steps(flags) then", "if false then"),
    ),
    *pair(
        "window of 0: steps end with an operator's word",
        (" and not event.clears_steps", "", "def resolve("),
        "resolve",
        ("if ARGV[5] == '1' and has_steps(flags) then", "if false then"),
    ),
    Mutant(
        "window of 0: the key is free when its run ends",
        "run/run.py",
        "if terms.frees and state in _WITH_OUTCOME:",
        "if False:",
        _DELIVERIES,
    ),
    Mutant(
        "window of 0: a run's steps end with it",
        "run/run.py",
        "            is_over and not others,\n",
        "            False,\n",
        _DELIVERIES,
    ),
    Mutant(
        "window of 0: waits are not cut by it",
        "delivery/waiting.py",
        "min(environment.longest_wait, ttl / 2) if ttl else environment.longest_wait",
        "min(environment.longest_wait, ttl / 2)",
        _DELIVERIES,
    ),
    Mutant(
        "window of 0: each call has its own key for others",
        "delivery/delivery.py",
        "began = origin or claimant.owner.hex()",
        'began = ""',
        _DELIVERIES,
    ),
    Mutant(
        "window of 0: a takeover keeps the key for others",
        "delivery/delivery.py",
        "began = origin or claimant.owner.hex()",
        "began = claimant.owner.hex()",
        _DELIVERIES,
    ),
    Mutant(
        "window of 0: a retry keeps who began",
        "run/claim.py",
        "        if verdict.origin:\n",
        "        if False:\n",
        _DELIVERIES,
    ),
    *pair(
        "in turn: who was cut off longer ago is not named",
        ('"" if ask.in_turn else Label.of(record).origin', "Label.of(record).origin"),
        "claim",
        ("in_turn and '' or label_of(record)[5]", "label_of(record)[5]"),
    ),
    Mutant(
        "in turn: an end leaves the steps of others",
        "stores/redis/lua/settle.lua",
        "if string.sub(name, 1, #ARGV[7]) == ARGV[7] then",
        "if true then",
        LUA,
    ),
    Mutant(
        "in turn: an end deletes its own steps",
        "stores/deciding.py",
        "if is_written and event.drops_steps_of:",
        "if False:",
        PYTHON,
    ),
    Mutant(
        "in turn: a run's end leaves the steps of others",
        "run/run.py",
        "others = is_over and any(not name.startswith(self.steps_of) for name in self.steps)",
        "others = False",
        _MUTEX,
    ),
    Mutant(
        "in turn: only one's own steps are taken up",
        "run/steps.py",
        "            if name.startswith(start)\n",
        "",
        _MUTEX,
    ),
    Mutant(
        "in turn: nobody shares an outcome",
        "delivery/delivery.py",
        "        if terms.in_turn:\n            claimant = claimant._replace(checked=False)\n"
        "        elif waits.awaited",
        "        if waits.awaited",
        _MUTEX,
    ),
    Mutant(
        "in turn: another call's interruption is not one's own",
        "run/run.py",
        "                self.interruptions = 0  #",
        "                pass  #",
        _MUTEX,
    ),
    Mutant(
        "in turn: a run that lost its key answers its own call",
        "delivery/outcome.py",
        "    if in_turn or (record.state",
        "    if False or (record.state",
        _MUTEX,
    ),
    Mutant(
        "in turn: who compensated for another call runs then",
        "delivery/compensation.py",
        "if run.is_for_another and not delivery.eager:",
        "if False:",
        _MUTEX,
    ),
    Mutant(
        "in turn: a call whose steps were undone by another is answered",
        "run/run.py",
        "if slip_key and self.is_for_another:",
        "if False:",
        _MUTEX,
    ),
    Mutant(
        "in turn: each call has its own key for others",
        "delivery/delivery.py",
        'origin = "" if run is None or claimant.terms.in_turn else run.origin',
        'origin = "" if run is None else run.origin',
        _MUTEX,
    ),
    Mutant(
        "in turn: only with a window of 0",
        "settings.py",
        'if options.after_wait == "run" and options.ttl:',
        "if False:",
        _MUTEX,
    ),
    Mutant(
        "a handler is told of a duplicate",
        "delivery/guard.py",
        ", replayed=True)",
        ")",
        (("tests/delivery/test_seam.py", "-k", "handler"),),
    ),
    Mutant(
        "window of 0: a handler has the key of its run",
        "run/run.py",
        'Label.of(held).origin if claimant.terms.frees else ""',
        '""',
        _DELIVERIES,
    ),
    Mutant(
        "a window without an end is refused",
        "settings.py",
        "    _refuse_endless(cls, app, where)\n",
        "",
        _DELIVERIES,
    ),
]
