"""The guards of a run that gives its key back before its end (``release()``)."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, Stages, pair

__all__ = ["GIVEN_BACK"]

_DELIVERIES: Stages = (("tests/delivery/test_hand_back.py",),)


def _both(guard: str, python: tuple[str, str], script: str, lua: tuple[str, str]) -> list[Mutant]:
    return pair(f"released: {guard}", python, script, lua)


GIVEN_BACK: list[Mutant] = [
    *_both(
        "its end goes into its slip",
        ("if slip is not None and slip.released and slip.token == new.token:", "if False:"),
        "settle",
        ("if slip and slip.released and slip.token == new.token then", "if false then"),
    ),
    *_both(
        "its lease is renewed in its slip",
        ("slip.token == held.token and holds_no_key:", "slip.token == held.token and False:"),
        "renew",
        ("if slip and slip.released and slip.token == held.token then", "if false then"),
    ),
    *_both(
        "its outcome is not shared",
        ("if awaited is not None and awaited.released:", "if False:"),
        "claim",
        ("  if awaited and awaited.released then awaited = nil end\n", ""),
    ),
    *_both(
        "one that was cut off counts",
        ("cut_off = max(cut_off, slip.interruptions + 1)", "pass"),
        "claim",
        ("    cut_off = math.max(cut_off, (string.byte(slip.outcome) or 0) + 1)\n", ""),
    ),
    *_both(
        "a retry counts no interruption",
        ("slip.is_run and ask.candidate.retries <= slip.retries:", "slip.is_run:"),
        "claim",
        (
            "not slip.answered and new.retries <= slip.retries then\n    -- An earlier run",
            "not slip.answered then\n    -- An earlier run",
        ),
    ),
    *_both(
        "a requeued message comes again",
        ("state is State.RELEASED and not new.outcome and event.slip is None:", "state is None:"),
        "settle",
        ("elseif new.state == RELEASED and not new.done and not left then", "elseif false then"),
    ),
    *_both(
        "one that is cut off ends its lease",
        ("Write(None, slip=slip._replace(sending_ms=now_ms))", "None"),
        "settle",
        ("    slip.sending_ms = now_ms\n    save_slip(slip_key, slip)\n  elseif", "  elseif"),
    ),
    Mutant(
        "released: nothing that is kept with the key is used before it",
        "run/context.py",
        "if run.transaction.is_open or (",
        "if False and (",
        _DELIVERIES,
    ),
    Mutant(
        "released: nor after it",
        "run/context.py",
        "if self._run is not None and self._run.is_released:",
        "if False:",
        _DELIVERIES,
    ),
    Mutant(
        "released: an eager call has no copies to answer",
        "run/run.py",
        "if self.is_released and not self.claimant.slip_key:",
        "if False:",
        _DELIVERIES,
    ),
]
