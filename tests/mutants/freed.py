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
        ("    origin = Label.of(record).origin\n", '    origin = ""\n'),
        "claim",
        ("  local origin = label_of(record)[5]\n", "  local origin = ''\n"),
    ),
    *pair(
        "window of 0: an end ends who began",
        (
            "record is None or not ask.frees or ask.in_turn or not record.owner or record.is_done",
            "record is None or ask.in_turn",
        ),
        "claim",
        (
            "if not record or not frees or in_turn or #record.owner == 0 or record.done then",
            "if not record or in_turn then",
        ),
    ),
    *pair(
        "in turn: nobody goes on with another's work",
        ("not ask.frees or ask.in_turn or not", "not ask.frees or not"),
        "claim",
        ("not frees or in_turn or #record", "not frees or #record"),
    ),
    *pair(
        "who was cut off is named by the run that takes over",
        ("counts[record.owner.hex()] = str(min(count, 255))", "pass"),
        "claim",
        (".. ',' .. last .. ':' .. string.format('%.0f', math.min(count, 255))", ""),
    ),
    *pair(
        "who was cut off is named by all runs until it comes again",
        ("_COUNTS.findall(Label.of(record).cut_off)", "()"),
        "claim",
        ("0, label_of(record)[7]\n", "0, ''\n"),
    ),
    *pair(
        "who was cut off is told so once it comes again",
        ("interruptions = max(interruptions, cut_off)", "pass"),
        "claim",
        ("interruptions = math.max(interruptions, cut_off)\n", "\n"),
    ),
    *pair(
        "who was cut off and has come again is no longer named",
        ("own = int(counts.pop(owner.hex(), 0))", "own = int(counts.get(owner.hex(), 0))"),
        "claim",
        (
            "if call == owner then own = tonumber(times) else",
            "if call == owner then own = tonumber(times) end do",
        ),
    ),
    *pair(
        "who is cut off each time becomes unknown, whoever ran in between",
        ("    if cut_off > ask.max_interruptions:\n", "    if False:\n"),
        "claim",
        ("  if cut_off > max_interruptions then\n", "  if false then\n"),
    ),
    *pair(
        "only the last calls that were cut off are named",
        ("kept[-_MOST_CUT_OFF:]", "kept"),
        "claim",
        ("math.max(1, #kept - 15)", "1"),
    ),
    *pair(
        "who was cut off is named again where the answer was lost",
        ("cut_off=label.cut_off\n", 'cut_off=""\n'),
        "claim",
        ("label[5], label[6], label[7])", "label[5], label[6], '')"),
    ),
    *pair(
        "in turn: who was cut off is named after a claim that was given up, too",
        ("and (gives_up or record", "and (record"),
        "claim",
        ("(gave_up or record.state == RUNNING)", "(record.state == RUNNING)"),
    ),
    Mutant(
        "who was cut off is named at the end of the run that took over",
        "run/claim.py",
        "verdict.came or verdict.cut_off:",
        "verdict.came:",
        _DELIVERIES,
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
        (
            "token, count, origin=label.origin",
            'token, count, origin=""',
        ),
        "claim",
        (
            "nil, label[5], label[6], label[7])",
            "nil, '', label[6], label[7])",
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
        "origin=verdict.origin, came",
        'origin="", came',
        _DELIVERIES,
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
        "(waits.displaced or not terms.in_turn)",
        "True",
        _MUTEX,
    ),
    *pair(
        "in turn: another call's interruption is not one's own",
        ("anothers = it.ask.in_turn and not it.mine", "anothers = False"),
        "claim",
        ("anothers = in_turn and not mine", "anothers = false"),
    ),
    *pair(
        "in turn: nor is that of a claim that was given up",
        ("if record.nonce and (mine or not ask.in_turn) else 0", "if record.nonce else 0"),
        "claim",
        ("#record.nonce > 0 and (mine or not in_turn)", "#record.nonce > 0"),
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
        "in turn: only with a window of 0",
        "settings.py",
        'if options.after_wait != "answer" and options.ttl:',
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
