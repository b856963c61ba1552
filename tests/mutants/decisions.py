"""The guards of what a store decides: each once in Python, and once in Lua."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, pair

__all__ = ["DECISIONS"]

#: What follows it in ``claim`` are the states, in turn.
_LIVE = "    live = now_ms < record.until_ms"
_CHECKED = (
    "    if ask.checked and record.fingerprint != new.fingerprint "
    "and not _is_free_for(record, ask):\n"
)
_MISMATCH = "_told(it, record, Mismatch(record))\n"
_CHECKED_IN_LUA = (
    "if checked and record.fingerprint ~= new.fingerprint and not is_free() then\n"
    "    return tell(5, raw)\n"
    "  end"
)

_SETTLED = {
    "complete": "SUCCEEDED",
    "fail": "FAILED",
    "retry": "RETRYING",
    "release": "RELEASED",
    "interrupt": "RUNNING",
    "compensate": "COMPENSATING",
    "give up as unknown": "UNKNOWN",
}


def _tokens() -> list[Mutant]:
    mutants = []
    for name, state in _SETTLED.items():
        mutants += pair(
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
    mutants += pair(
        "token in renew",
        ("if record.token != held.token:", "if False:", "def renew("),
        "renew",
        ("if record.token ~= held.token then", "if false then"),
    )
    mutants += pair(
        "token in step",
        ("elif record.token != held.token:", "elif False:", "def step("),
        "step",
        ("elseif record.token ~= held.token then", "elseif false then"),
    )
    mutants += pair(
        "token in note",
        ("record.token == event.token and ", "", "def note("),
        "note",
        ("record.token == tonumber(ARGV[1]) and ", ""),
    )
    mutants += pair(
        "a claim's token is higher",
        ("max(record.token + 1, now_us)", "now_us", "def _take("),
        "claim",
        ("math.max(record.token + 1, now)", "now", "local function take"),
    )
    mutants += pair(
        "a release's token is higher",
        ("token = new.token + 1 if releases else new.token", "token = new.token"),
        "settle",
        ("if new.state == RELEASED then token = token + 1 end", ""),
    )
    return mutants + pair(
        "an accepted run is accepted once",
        ("if record.state in (State.SUCCEEDED, State.FAILED):", "if False:", "def settle("),
        "settle",
        ("if record.state == SUCCEEDED or record.state == FAILED then", "if false then"),
    )


def _claims() -> list[Mutant]:
    mutants = []
    mutants += pair(
        "nonce: the same claim again",
        ("if new.nonce and record.nonce == new.nonce:", "if False:"),
        "claim",
        ("if #new.nonce > 0 and record.nonce == new.nonce then", "if false then"),
    )
    mutants += pair(
        "nonce: a claim that was given up",
        ("if new.nonce and record.has_given_up(new.nonce):", "if False:"),
        "claim",
        ("if #new.nonce > 0 and has_given_up(record.given_up, new.nonce) then", "if false then"),
    )
    mutants += pair(
        "fingerprint",
        ("if ask.checked and record.fingerprint", "if False and record.fingerprint"),
        "claim",
        ("if checked and record.fingerprint", "if false and record.fingerprint"),
    )
    mutants += pair(
        "fingerprint: not of the owner's own message",
        (
            f"    {_CHECKED}            return {_MISMATCH}",
            f"{_CHECKED}        return {_MISMATCH}",
        ),
        "claim",
        (f"  {_CHECKED_IN_LUA}\nend\n", f"end\n{_CHECKED_IN_LUA}\n"),
    )
    mutants += pair(
        "lease of a run",
        ("if live:", "if False:", _LIVE),
        "claim",
        ("if live then", "if false then", "\nif record.state == RUNNING then"),
    )
    mutants += pair(
        "lease of a compensation",
        ("if live:", "if False:", "\n    if record.state is State.COMPENSATING:"),
        "claim",
        ("if live then", "if false then", "\nif record.state == COMPENSATING then"),
    )
    mutants += pair(
        "delivery lease",
        ("if now_ms < record.until_ms:", "if False:"),
        "claim",
        ("if now_ms < record.until_ms then", "if false then"),
    )
    mutants += pair(
        "delivery lease of a copy that sends the callbacks",
        ("if ask.callbacks and not noted:", "if False:"),
        "claim",
        ("if callbacks and not noted then", "if false then"),
    )
    mutants += pair(
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
    mutants += pair(
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
    mutants += pair(
        "retries: an old copy where a claim was given up",
        ("if mine and record.nonce and new.retries < record.retries:", "if False:"),
        "claim",
        ("if mine and #record.nonce > 0 and new.retries < record.retries then", "if false then"),
    )
    mutants += pair(
        "retries: a retry is no interruption",
        ("if mine and new.retries > record.retries:", "if False:"),
        "claim",
        ("if mine and new.retries > record.retries then", "if false then"),
    )
    mutants += pair(
        "a retry keeps its key until it is overdue",
        ("if mine or now_ms >= record.until_ms + ask.lease_ms:", "if True:"),
        "claim",
        ("if mine or now_ms >= record.until_ms + lease_ms then", "if true then"),
    )
    mutants += pair(
        "an overdue retry frees its key",
        ("if mine or now_ms >= record.until_ms + ask.lease_ms:", "if mine:"),
        "claim",
        ("if mine or now_ms >= record.until_ms + lease_ms then", "if mine then"),
    )
    mutants += pair(
        "who waited for a run shares its failure",
        ("shares = ask.awaited == record.owner", "shares = False"),
        "claim",
        ("local shares = ARGV[2] == record.owner", "local shares = false"),
    )
    mutants += pair(
        "a failure is replayed to its owner's copies",
        ("    if record.is_done:\n        if mine:", "    if record.is_done:\n        if False:"),
        "claim",
        ("if record.done then\n  if mine then", "if record.done then\n  if false then"),
    )
    mutants += pair(
        "interruptions are limited",
        ("if interruptions <= it.ask.max_interruptions:", "if True:"),
        "claim",
        ("if interruptions <= max_interruptions then", "if true then"),
    )
    mutants += pair(
        "interrupted compensations are limited",
        ("if interruptions > ask.max_compensations:", "if False:"),
        "claim",
        ("if interruptions > max_compensations then", "if false then"),
    )
    return mutants + pair(
        "a message that only compensates runs no body",
        ("if ask.compensates_only and (", "if False and ("),
        "claim",
        ("if compensates_only and not", "if false and not"),
    )


def _undone() -> list[Mutant]:
    mutants = pair(
        "abandon undoes a claim",
        (
            "    if record is None:\n        left =",
            "    return None\n    if record is None:\n        left =",
        ),
        "abandon",
        ("if record == false then return end", "do return end"),
    )
    mutants += pair(
        "abandon: only its own claim",
        ("if record.state is State.RUNNING and holds:", "if record.state is State.RUNNING:"),
        "abandon",
        ("if record.state == RUNNING and holds then", "if record.state == RUNNING then"),
    )
    mutants += pair(
        "abandon: only its own compensation",
        ("if compensates and holds:", "if compensates:"),
        "abandon",
        ("elseif compensates and holds then", "elseif compensates then"),
    )
    mutants += pair(
        "abandon: only its own delivery",
        ("if delivers and holds:", "if delivers:"),
        "abandon",
        ("elseif delivers and holds then", "elseif delivers then"),
    )
    mutants += pair(
        "abandon: another's claim stays as it is",
        ("return undone(record, KEEP_TTL)  # another's", "pass  # another's"),
        "abandon",
        ("elseif record.state == RUNNING or compensates or delivers then", "elseif false then"),
    )
    mutants += pair(
        "abandon: once",
        ("if record.has_given_up(given_up.nonce):", "if False:"),
        "abandon",
        ("if has_given_up(record.given_up, given_up.nonce) then return end", ""),
    )
    mutants += pair(
        "abandon: what a release has ended counts no more",
        (
            "record.interruptions if record.nonce or record.state is not State.RELEASED else 0",
            "record.interruptions",
        ),
        "abandon",
        ("if record.state == RELEASED and #record.nonce == 0 then counted = 0 end", ""),
    )
    mutants += pair(
        "given-up claims are known after a takeover",
        ('b"" if record is None else still_given_up(record.given_up, now_ms)', 'b""'),
        "claim",
        ("if record and #record.given_up > 0 then", "if false then"),
    )
    mutants += pair(
        "given-up claims are known after the end of a run",
        ('b"" if record is None else record.given_up', 'b""', "def settle("),
        "settle",
        ("record and record.given_up or ''", "''"),
    )
    mutants += pair(
        "given-up claims are known after the key is forgotten",
        ("still_given_up(record.given_up, now_us // 1000)", 'b""'),
        "forget",
        ("if #given_up > 0 then given_up = NO_NONCE .. given_up end", "given_up = ''"),
    )
    mutants += pair(
        "end of a lease: the owner",
        ("        and record.owner == owner\n", "", "def end_lease("),
        "end_lease",
        ("or record.owner ~= ARGV[1] ", ""),
    )
    mutants += pair(
        "end of a lease: the process",
        ("        and record.process == process\n", "", "def end_lease("),
        "end_lease",
        (" or record.process ~= ARGV[2] then", " then"),
    )
    return mutants + pair(
        "resolve: only what is unknown",
        ("record is None or record.state is not State.UNKNOWN:", "record is None:"),
        "resolve",
        ("if not record or record.state ~= UNKNOWN then", "if not record then"),
    )


DECISIONS: list[Mutant] = [*_tokens(), *_claims(), *_undone()]
