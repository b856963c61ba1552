"""The guards of what a store decides: each once in Python, and once in Lua."""

from __future__ import annotations

from tests.mutants.mutant import LUA, PYTHON, Mutant

__all__ = ["DECISIONS"]

#: What follows it in ``claim`` are the states, in turn.
_LIVE = "    live = now_ms < record.until_ms"

_SETTLED = {
    "complete": "SUCCEEDED",
    "fail": "FAILED",
    "retry": "RETRYING",
    "release": "RELEASED",
    "interrupt": "RUNNING",
    "compensate": "COMPENSATING",
    "give up as unknown": "UNKNOWN",
}


def _pair(
    guard: str,
    python: tuple[str, str] | tuple[str, str, str],
    script: str,
    lua: tuple[str, str] | tuple[str, str, str],
) -> list[Mutant]:
    """Give a guard in both languages; a third text says after which the first is looked for."""
    return [
        Mutant(guard, "core/transitions.py", python[0], python[1], PYTHON, *python[2:]),
        Mutant(guard, f"stores/lua/{script}.lua", lua[0], lua[1], LUA, *lua[2:]),
    ]


def _tokens() -> list[Mutant]:
    mutants = []
    for name, state in _SETTLED.items():
        mutants += _pair(
            f"token in {name}",
            (
                "        if record.token != new.token:",
                f"        if record.token != new.token and new.state is not State.{state}:",
            ),
            "settle",
            (
                "if record.token ~= new.token then",
                f"if record.token ~= new.token and new.state ~= {state} then",
            ),
        )
    mutants += _pair(
        "token in renew",
        ("if record.token != held.token:", "if False:", "def renew("),
        "renew",
        ("if record.token ~= held.token then", "if false then"),
    )
    mutants += _pair(
        "token in step",
        ("elif record.token != held.token:", "elif False:", "def step("),
        "step",
        ("elseif record.token ~= held.token then", "elseif false then"),
    )
    mutants += _pair(
        "token in note",
        ("record.token != token or not", "not", "def note("),
        "note",
        ("record.token == tonumber(ARGV[1]) and ", ""),
    )
    mutants += _pair(
        "a claim's token is higher",
        ("max(record.token + 1, now_us)", "now_us", "def _take("),
        "claim",
        ("math.max(record.token + 1, now)", "now", "local function take"),
    )
    mutants += _pair(
        "a release's token is higher",
        ("token = new.token + 1 if releases else new.token", "token = new.token"),
        "settle",
        ("if new.state == RELEASED then token = token + 1 end", ""),
    )
    return mutants + _pair(
        "an accepted run is accepted once",
        ("if record.state in (State.SUCCEEDED, State.FAILED):", "if False:", "def settle("),
        "settle",
        ("if record.state == SUCCEEDED or record.state == FAILED then", "if false then"),
    )


def _claims() -> list[Mutant]:
    mutants = []
    mutants += _pair(
        "nonce: the same claim again",
        ("if new.nonce and record.nonce == new.nonce:", "if False:"),
        "claim",
        ("if #new.nonce > 0 and record.nonce == new.nonce then", "if false then"),
    )
    mutants += _pair(
        "nonce: a claim that was given up",
        (
            "        return Busy(record, mine, now_ms), None\n\n    live =",
            "        pass\n\n    live =",
        ),
        "claim",
        ("  return busy()\nend\n\nlocal live", "end\n\nlocal live"),
    )
    mutants += _pair(
        "fingerprint",
        ("if ask.checked and not mine and record.fingerprint", "if False and record.fingerprint"),
        "claim",
        ("if checked and not mine and", "if false and"),
    )
    mutants += _pair(
        "fingerprint: not of the owner's own message",
        ("if ask.checked and not mine and", "if ask.checked and"),
        "claim",
        ("if checked and not mine and", "if checked and"),
    )
    mutants += _pair(
        "lease of a run",
        ("if live:", "if False:", _LIVE),
        "claim",
        ("if live then", "if false then", "\nif record.state == RUNNING then"),
    )
    mutants += _pair(
        "lease of a compensation",
        ("if live:", "if False:", "noted), None\n    if record.state is State.COMPENSATING:"),
        "claim",
        ("if live then", "if false then", "\nif record.state == COMPENSATING then"),
    )
    mutants += _pair(
        "delivery lease",
        ("if live:", "if False:", "    if record.is_done:\n        if mine:"),
        "claim",
        ("if live then", "if false then", "if record.done then\n  if mine then"),
    )
    mutants += _pair(
        "delivery lease of a copy that sends the callbacks",
        ("if noted or not ask.callbacks:", "if True:"),
        "claim",
        ("if callbacks and not noted then", "if false then"),
    )
    mutants += _pair(
        "retries: an old copy while the run goes on",
        (
            "if mine and new.retries < record.retries:",
            "if False:",
            _LIVE,
        ),
        "claim",
        (
            "if mine and new.retries < record.retries then",
            "if false then",
            "\nif record.state == RUNNING then",
        ),
    )
    mutants += _pair(
        "retries: an old copy while the retry is awaited",
        (
            "if mine and new.retries < record.retries:",
            "if False:",
            "if record.state is State.RETRYING:",
        ),
        "claim",
        (
            "if mine and new.retries < record.retries then",
            "if false then",
            "if record.state == RETRYING then",
        ),
    )
    mutants += _pair(
        "retries: an old copy where a claim was given up",
        ("if mine and record.nonce and new.retries < record.retries:", "if False:"),
        "claim",
        ("if mine and #record.nonce > 0 and new.retries < record.retries then", "if false then"),
    )
    mutants += _pair(
        "retries: a retry is no interruption",
        ("if mine and new.retries > record.retries:", "if False:"),
        "claim",
        ("if mine and new.retries > record.retries then", "if false then"),
    )
    mutants += _pair(
        "a retry keeps its key until it is overdue",
        ("if mine or now_ms >= record.until_ms + ask.lease_ms:", "if True:"),
        "claim",
        ("if mine or now_ms >= record.until_ms + lease_ms then", "if true then"),
    )
    mutants += _pair(
        "an overdue retry frees its key",
        ("if mine or now_ms >= record.until_ms + ask.lease_ms:", "if mine:"),
        "claim",
        ("if mine or now_ms >= record.until_ms + lease_ms then", "if mine then"),
    )
    mutants += _pair(
        "who waited for a run shares its failure",
        (" and ask.awaited != record.owner:", ":"),
        "claim",
        (" and ARGV[2] ~= record.owner then", " then"),
    )
    mutants += _pair(
        "a failure is replayed to its owner's copies",
        ("    if record.is_done:\n        if mine:", "    if record.is_done:\n        if False:"),
        "claim",
        ("if record.done then\n  if mine then", "if record.done then\n  if false then"),
    )
    mutants += _pair(
        "interruptions are limited",
        ("if interruptions <= ask.max_interruptions:", "if True:"),
        "claim",
        ("if interruptions <= max_interruptions then", "if true then"),
    )
    mutants += _pair(
        "interrupted compensations are limited",
        ("if interruptions > ask.max_compensations:", "if False:"),
        "claim",
        ("if interruptions > max_compensations then", "if false then"),
    )
    mutants += _pair(
        "a message that only compensates runs no body",
        ("if ask.compensates_only and (", "if False and ("),
        "claim",
        ("if compensates_only and not", "if false and not"),
    )
    return mutants + _pair(
        "a message whose callbacks are out does nothing on another's record",
        ("if noted and not mine:", "if False:"),
        "claim",
        ("if noted and not mine then", "if false then"),
    )


def _undone() -> list[Mutant]:
    mutants = _pair(
        "abandon undoes a claim",
        (
            "    if record is None:\n        left =",
            "    return None\n    if record is None:\n        left =",
        ),
        "abandon",
        ("if record == false then return {1} end", "do return {1} end"),
    )
    mutants += _pair(
        "abandon: only its own claim",
        ("if record.nonce != given_up.nonce:", "if False:", "def abandon("),
        "abandon",
        (
            "if record.nonce ~= given_up.nonce then return {1} end",
            "",
            "elseif record.state == RUNNING then",
        ),
    )
    mutants += _pair(
        "abandon: only its own compensation",
        (
            "if record.nonce != given_up.nonce:",
            "if False:",
            "\n    if record.state is State.COMPENSATING and record.process:",
        ),
        "abandon",
        (
            "if record.nonce ~= given_up.nonce then return {1} end",
            "",
            "elseif record.state == COMPENSATING and #record.process > 0 then",
        ),
    )
    mutants += _pair(
        "abandon: only its own delivery",
        (
            "if record.is_done and record.until_ms:\n        if record.nonce != given_up.nonce:",
            "if record.is_done and record.until_ms:\n        if False:",
        ),
        "abandon",
        (
            "if record.nonce ~= given_up.nonce then return {1} end",
            "",
            "elseif record.done and record.until_ms > 0 then",
        ),
    )
    mutants += _pair(
        "end of a lease: the owner",
        ("record.owner != owner or ", "", "def end_lease("),
        "end_lease",
        ("or record.owner ~= ARGV[1] ", ""),
    )
    mutants += _pair(
        "end of a lease: the process",
        (" or record.process != process:", ":", "def end_lease("),
        "end_lease",
        (" or record.process ~= ARGV[2] then", " then"),
    )
    return mutants + _pair(
        "resolve: only what is unknown",
        ("record is None or record.state is not State.UNKNOWN:", "record is None:"),
        "resolve",
        ("if not record or record.state ~= UNKNOWN then", "if not record then"),
    )


DECISIONS: list[Mutant] = [*_tokens(), *_claims(), *_undone()]
