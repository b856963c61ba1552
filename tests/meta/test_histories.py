"""The checker of histories: what breaks a promise it names, and it excuses only what is excused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.histories.checker import RULES, Terms, check
from tests.support.histories.operations import Operation, read, write

LEASE_S = 10.0


def _history(text: str) -> list[Operation]:
    """Read a history: a time, what happened, and its fields, as ``name=value``."""
    operations = []
    for line in filter(str.strip, text.splitlines()):
        at, what, *fields = line.split()
        given = dict(field.split("=", 1) for field in fields)
        until = float(given.pop("until", 0))
        operations.append(Operation(float(at), what, until=until, **given))
    return operations


def _broken(text: str, **terms: bool) -> list[str]:
    return [one.rule for one in check(_history(text), LEASE_S, terms=Terms(**terms))]


#: Two calls of a key; the second gets the first one's outcome, after a takeover that was excused.
RIGHT = """
 0 published call=a key=k value=link by=caller
 0 published call=b key=k by=caller
 1 began call=a key=k run=1 by=p/1
 2 stalled by=p until=30
14 began call=a key=k run=2 by=q/2
15 ended call=a key=k run=2 state=returned value=2 by=q/2
15 accepted call=a key=k run=2 by=q/2
15 settled call=a key=k run=2 state=succeeded by=q/2
16 sent call=a state=link value=tail by=q/2
16 stored call=a state=SUCCESS value=2 by=q/2
17 stored call=b state=SUCCESS value=2 by=q/3
31 ended call=a key=k run=1 state=returned value=1 by=p/1
40 left call=a state=SUCCESS value=2
40 left call=b state=SUCCESS value=2
"""


def test_a_right_history_breaks_nothing() -> None:
    """A takeover after a stall, a refused end, a duplicate's replay: all of it is promised."""
    # Given such a history; when it is checked; then nothing is found
    assert _broken(RIGHT) == []


BEGAN = """
0 published call=a key=k by=caller
1 began call=a key=k run=1 by=p/1
"""
DONE = """
3 ended call=a key=k run=1 state=returned value=1 by=p/1
3 accepted call=a key=k run=1 by=p/1
3 settled call=a key=k run=1 state=succeeded by=p/1
4 stored call=a state=SUCCESS value=1 by=p/1
"""
LEFT = "90 left call=a state=SUCCESS value=1\n"
FAILED = """
3 ended call=a key=k run=1 state=raised value=oops by=p/1
3 settled call=a key=k run=1 state=released by=p/1
4 stored call=a state=FAILURE value=oops by=p/1
90 left call=a state=FAILURE value=oops
"""
SECOND = "0 published call=b key=k by=caller\n"


#: A call shares the outcome of another one, and a copy of its message comes later.
def _shared(window: int, memory: int) -> str:
    return f"""{SECOND}
    0 published call=a key=k by=caller
    1 began call=a key=k run=1 by=p/1
    3 ended call=a key=k run=1 state=returned value=1 by=p/1
    3 accepted call=a key=k run=1 by=p/1 until={window}
    3 settled call=a key=k run=1 state=succeeded by=p/1
    4 stored call=a state=SUCCESS value=1 by=p/1
    5 stored call=b state=SUCCESS value=1 by=q/2 until={memory}
    40 began call=b key=k run=2 by=q/3
    41 ended call=b key=k run=2 state=returned value=2 by=q/3
    41 settled call=b key=k run=2 state=succeeded by=q/3 until=80
    90 left call=a state=SUCCESS value=1
    90 left call=b state=SUCCESS value=1"""


#: A run stands still; its copy is rejected, and another call runs.
TAKEN_OVER = f"""{BEGAN}{SECOND}
2 stalled by=p until=30
15 began call=a key=k run=2 value=0 by=q/2
16 ended call=a key=k run=2 state=rejected value=Reject by=q/2
16 settled call=a key=k run=2 state=released by=q/2
17 stored call=a state=FAILURE value=Reject by=q/2
20 began call=b key=k run=3 value=0 by=q/3
21 ended call=b key=k run=3 state=returned value=3 by=q/3
21 accepted call=b key=k run=3 by=q/3
21 settled call=b key=k run=3 state=succeeded by=q/3
21 stored call=b state=SUCCESS value=3 by=q/3
90 left call=b state=SUCCESS value=3
90 left call=a state=SUCCESS value=3
"""

BROKEN = {
    "a duplicate runs while its answer is to be remembered": (
        "ran after its answer",
        _shared(15, 41),
    ),
    "a duplicate runs while its key's window lasts": ("ran after its answer", _shared(41, 15)),
    "a call gets an outcome over its answer before its run is retried": (
        "answer changed",
        f"""{TAKEN_OVER}
        60 ended call=a key=k run=1 state=retried value=Retry by=p/1
        50 stored call=a state=SUCCESS value=3 by=r/4""",
    ),
    "a call gets an outcome over its answer, and no run of it was retried": (
        "answer changed",
        f"""{TAKEN_OVER}
        31 ended call=a key=k run=1 state=rejected value=Reject by=p/1
        50 stored call=a state=SUCCESS value=3 by=r/4""",
    ),
    "two runs of a key are accepted": (
        "accepted twice",
        f"""{BEGAN}{DONE}{LEFT}{SECOND}
        5 began call=b key=k run=2 by=q/2
        6 ended call=b key=k run=2 state=returned value=1 by=q/2
        6 accepted call=b key=k run=2 by=q/2
        7 stored call=b state=SUCCESS value=1 by=q/2
        90 left call=b state=SUCCESS value=1""",
    ),
    "a copy of a failed call runs": (
        "ran again",
        f"""{BEGAN}{FAILED}
        20 began call=a key=k run=2 by=q/2
        21 ended call=a key=k run=2 state=raised value=oops by=q/2""",
    ),
    "a copy runs though the first process died: its end was recorded": (
        "ran again",
        f"""{BEGAN}{FAILED}
        4 killed by=p
        20 began call=a key=k run=2 by=q/2
        21 ended call=a key=k run=2 state=raised value=oops by=q/2""",
    ),
    "a duplicate that shared an outcome runs": (
        "ran after its answer",
        f"""{BEGAN}{DONE}{LEFT}{SECOND}
        5 stored call=b state=SUCCESS value=1 by=q/2
        9 began call=b key=k run=2 by=q/3
        9 ended call=b key=k run=2 state=returned value=1 by=q/3
        90 left call=b state=SUCCESS value=1""",
    ),
    "STARTED is stored over an answer": (
        "answer changed",
        f"{BEGAN}{DONE}{LEFT}20 stored call=a state=STARTED by=q/2",
    ),
    "a failure becomes a success": (
        "answer changed",
        f"{BEGAN}{FAILED}20 stored call=a state=SUCCESS value=oops by=q/2",
    ),
    "a call was told that nobody knows, and gets something else": (
        "answer changed",
        f"""{BEGAN}
        1.5 stalled by=p until=30
        20 stored call=a state=FAILURE value=OutcomeUnknown by=q/2
        31 ended call=a key=k run=1 state=returned value=1 by=p/1
        31 accepted call=a key=k run=1 by=p/1
        31 settled call=a key=k run=1 state=succeeded by=p/1
        31 stored call=a state=SUCCESS value=1 by=p/1
        90 left call=a state=SUCCESS value=1""",
    ),
    "an answer that was not recorded changes": (
        "answer changed",
        f"""{BEGAN}
        20 stored call=a state=SUCCESS value=2 by=q/2
        31 ended call=a key=k run=1 state=returned value=1 by=p/1
        31 settled call=a key=k run=1 state=succeeded by=p/1
        31 stored call=a state=SUCCESS value=1 by=p/1
        90 left call=a state=SUCCESS value=1""",
    ),
    "a copy runs whose first run could not be recorded": (
        "ran after its answer",
        f"""{BEGAN}
        3 ended call=a key=k run=1 state=returned value=1 by=p/1
        3 away by=p/1 state=settle
        4 stored call=a state=SUCCESS value=1 by=p/1
        20 began call=a key=k run=2 by=q/2
        90 left call=a state=SUCCESS value=1""",
    ),
    "a zombie answers its caller": (
        "wrong answer",
        f"""{BEGAN}{SECOND}
        1.5 stalled by=p until=20
        12 began call=b key=k run=2 by=q/2
        13 ended call=b key=k run=2 state=returned value=2 by=q/2
        13 accepted call=b key=k run=2 by=q/2
        13 settled call=b key=k run=2 state=succeeded by=q/2
        30 ended call=a key=k run=1 state=returned value=1 by=p/1
        30 stored call=a state=SUCCESS value=1 by=p/1
        90 left call=a state=SUCCESS value=1
        90 left call=b state=SUCCESS value=2""",
    ),
    "RETRY is left over an answer by a process that lives": (
        "answer changed",
        f"""{BEGAN}{FAILED.replace("90 left call=a state=FAILURE value=oops", "")}
        2 stalled by=q until=20
        20 stored call=a state=RETRY value=busy by=q/2
        90 left call=a state=RETRY""",
    ),
    "a call has no answer": ("lost", f"{BEGAN}90 left call=a state=PENDING"),
    "a call waits for ever": ("lost", f"{BEGAN}2 stored call=a state=RETRY by=p/1"),
    "a duplicate gets something else": (
        "wrong answer",
        f"{BEGAN}{DONE}{LEFT}{SECOND}90 left call=b state=SUCCESS value=2",
    ),
    "a duplicate gets an error that nobody had": (
        "wrong answer",
        f"{BEGAN}{DONE}{LEFT}{SECOND}90 left call=b state=FAILURE value=ValueError:1",
    ),
    "a body begins while another one runs": (
        "overlap",
        f"""{BEGAN}{DONE}{LEFT}
        2 began call=a key=k run=2 by=q/2
        2.5 ended call=a key=k run=2 state=returned value=1 by=q/2""",
    ),
    "a short stall costs no lease": (
        "overlap",
        f"""{BEGAN}{DONE}{LEFT}
        1.5 stalled by=p until=2
        2.1 began call=a key=k run=2 by=q/2
        2.5 ended call=a key=k run=2 state=returned value=1 by=q/2""",
    ),
    "a stall that is long over costs no lease": (
        "overlap",
        f"""{SECOND}{BEGAN}
        1.5 stalled by=p until=12
        40 began call=b key=k run=2 by=q/2
        41 ended call=b key=k run=2 state=returned value=1 by=q/2
        50 ended call=a key=k run=1 state=returned value=1 by=p/1
        50 settled call=a key=k run=1 state=succeeded by=p/1
        90 left call=a state=SUCCESS value=1
        90 left call=b state=FAILURE value=IdempotencyInProgress""",
    ),
    "a sender that dies long after it has sent": (
        "callbacks twice",
        f"""{BEGAN}{DONE}{LEFT}
        3.5 sent call=a state=link by=p/1
        20 killed by=p
        30 sent call=a state=link by=q/2""",
    ),
    "two copies send the link": (
        "callbacks twice",
        f"""{BEGAN}{DONE}{LEFT}
        3.5 sent call=a state=link by=p/1
        3.6 sent call=a state=link by=q/2""",
    ),
    "an errback goes out, and the link": (
        "callbacks twice",
        f"""{BEGAN}{DONE}{LEFT}
        1.5 stalled by=p until=2.9
        2.5 sent call=a state=errback by=q/2
        3.5 sent call=a state=link by=p/1""",
    ),
    "a stalled run sends its link after its copy's errback": (
        "callbacks twice",
        f"""{BEGAN}
        1.5 stalled by=p until=30
        20 sent call=a state=errback by=q/2
        20 stored call=a state=FAILURE value=OutcomeUnknown by=q/2
        31 ended call=a key=k run=1 state=returned value=1 by=p/1
        31 accepted call=a key=k run=1 by=p/1
        31 sent call=a state=link by=p/1
        90 left call=a state=SUCCESS value=1""",
    ),
    "the errback of who was told that nobody knows is never sent": (
        "callbacks lost",
        BEGAN.replace("by=caller", "value=errback by=caller")
        + """
        20 stored call=a state=FAILURE value=OutcomeUnknown by=q/2
        90 left call=a state=FAILURE value=OutcomeUnknown""",
    ),
    "a body runs without a claim": (
        "ran open",
        BEGAN.replace("by=p/1", "state=open by=p/1")
        + "0.9 away by=p/1 state=claim\n"
        + "3 ended call=a key=k run=1 state=ignored value=Ignore by=p/1\n",
    ),
    "the link is never sent": (
        "callbacks lost",
        BEGAN.replace("by=caller", "value=link by=caller") + DONE + LEFT,
    ),
}


@pytest.mark.parametrize(("rule", "text"), BROKEN.values(), ids=BROKEN)
def test_what_breaks_a_promise_is_named(rule: str, text: str) -> None:
    """Each kind of violation is found, and nothing else is said of it."""
    # Given a history that breaks one promise; when it is checked; then that is what is found
    assert _broken(text) == [rule]


EXCUSED = {
    "a run stood still before its rejection was recorded, which its parent had stored": f"""
        {BEGAN}
        3 ended call=a key=k run=1 state=rejected value=Reject by=p/1
        4 stored call=a state=FAILURE value=Reject by=parent
        4.5 stalled by=p until=30
        16 began call=a key=k run=2 by=q/2
        17 ended call=a key=k run=2 state=returned value=2 by=q/2
        17 accepted call=a key=k run=2 by=q/2
        17 settled call=a key=k run=2 state=succeeded by=q/2
        17 stored call=a state=SUCCESS value=2 by=q/2
        90 left call=a state=SUCCESS value=2""",
    "the first run's process died": f"""{SECOND}{BEGAN}
        2 killed by=p
        14 began call=a key=k run=2 by=q/2
        15 ended call=a key=k run=2 state=returned value=1 by=q/2
        15 accepted call=a key=k run=2 by=q/2
        15 settled call=a key=k run=2 state=succeeded by=q/2
        90 left call=a state=SUCCESS value=1
        90 left call=b state=FAILURE value=IdempotencyInProgress""",
    "its process stood still between the grant and the body": f"""{BEGAN}{DONE}{LEFT}
        0.5 stalled by=q until=20
        20 began call=a key=k run=2 by=q/2
        21 ended call=a key=k run=2 state=returned value=1 by=q/2""",
    "it died between sending and noting": f"""{BEGAN}{DONE}{LEFT}
        3.5 sent call=a state=link by=p/1
        3.6 killed by=p
        9 sent call=a state=link by=q/2""",
    "it stood still between its end and sending": f"""{BEGAN}{DONE}{LEFT}
        3.5 stalled by=p until=30
        14 sent call=a state=link by=q/2
        31 sent call=a state=link by=p/1""",
    "the body ignored its message": f"""{BEGAN}
        3 ended call=a key=k run=1 state=ignored value=Ignore by=p/1
        3 settled call=a key=k run=1 state=released by=p/1
        90 left call=a state=PENDING""",
    "a run that was not recorded answers its own caller": f"""{BEGAN}{DONE}{LEFT}{SECOND}
        0.5 began call=b key=k run=2 by=q/2
        0.5 stalled by=q until=20
        21 ended call=b key=k run=2 state=returned value=2 by=q/2
        22 stored call=b state=SUCCESS value=2 by=q/2
        90 left call=b state=SUCCESS value=2""",
    "the process died before it heard that its run was accepted": f"""{BEGAN}{SECOND}
        3 ended call=a key=k run=1 state=returned value=1 by=p/1
        4 killed by=p
        20 stored call=a state=SUCCESS value=1 by=q/2
        90 left call=a state=SUCCESS value=1
        90 left call=b state=SUCCESS value=1""",
    "who stored RETRY over an answer had stood still before that, and died after it": f"""{BEGAN}
        3 ended call=a key=k run=1 state=raised value=oops by=p/1
        3 settled call=a key=k run=1 state=released by=p/1
        4 stored call=a state=FAILURE value=oops by=p/1
        2 stalled by=q until=20
        20 stored call=a state=RETRY value=busy by=q/2
        20.1 killed by=q
        90 left call=a state=RETRY""",
    "who stored RETRY over an answer stood still for a moment, and it is told again": f"""{BEGAN}
        3 ended call=a key=k run=1 state=raised value=oops by=p/1
        3 settled call=a key=k run=1 state=released by=p/1
        3.9 stalled by=q until=4.5
        4 stored call=a state=FAILURE value=oops by=p/1
        4.5 stored call=a state=RETRY value=busy by=q/2
        5 stored call=a state=FAILURE value=oops by=r/3
        90 left call=a state=FAILURE value=oops""",
    "who stored RETRY over a rejection had stood still while it was made": f"""{BEGAN}
        2 ended call=a key=k run=1 state=retried value=Retry by=p/1
        2 stalled by=p until=20
        15 began call=a key=k run=2 value=1 by=q/2
        16 ended call=a key=k run=2 state=rejected value=Reject by=q/2
        16 settled call=a key=k run=2 state=released by=q/2
        17 stored call=a state=FAILURE value=Reject by=q/2
        20 stored call=a state=RETRY value=oops by=p/1
        90 left call=a state=RETRY""",
    "its own claim stood still, and the run before it had stood still before that": f"""{BEGAN}
        2 stalled by=p until=14
        13 stalled by=q until=26
        26 began call=a key=k run=2 by=q/2
        27 ended call=a key=k run=2 state=returned value=2 by=q/2
        27 accepted call=a key=k run=2 by=q/2
        27 settled call=a key=k run=2 state=succeeded by=q/2
        40 ended call=a key=k run=1 state=returned value=1 by=p/1
        90 left call=a state=SUCCESS value=2""",
    "a retry that a run had published comes after a copy that left no result": f"""{BEGAN}
        2 ended call=a key=k run=1 state=retried value=Retry by=p/1
        2.1 killed by=p
        15 began call=a key=k run=2 value=0 by=q/2
        16 ended call=a key=k run=2 state=rejected value=Reject by=q/2
        16 settled call=a key=k run=2 state=released by=q/2
        17 stored call=a state=FAILURE value=Reject by=q/2
        17 sent call=a state=errback by=q/2
        29.9 stored call=a state=STARTED by=q/3
        30 began call=a key=k run=3 value=1 by=q/3
        31 ended call=a key=k run=3 state=returned value=3 by=q/3
        31 accepted call=a key=k run=3 by=q/3
        31 settled call=a key=k run=3 state=succeeded by=q/3
        31 sent call=a state=link by=q/3
        31 stored call=a state=SUCCESS value=3 by=q/3
        90 left call=a state=SUCCESS value=3""",
    "a run stood still before its body, and its retry comes after a copy that left no result": """
        0 published call=a key=k by=caller
        1 stalled by=p until=30
        15 began call=a key=k run=1 value=0 by=q/2
        16 ended call=a key=k run=1 state=rejected value=Reject by=q/2
        16 settled call=a key=k run=1 state=released by=q/2
        16 stored call=a state=FAILURE value=Reject by=q/2
        30 stored call=a state=STARTED by=p/1
        30 began call=a key=k run=2 value=0 by=p/1
        31 ended call=a key=k run=2 state=retried value=Retry by=p/1
        40 began call=a key=k run=3 value=1 by=q/3
        41 ended call=a key=k run=3 state=returned value=3 by=q/3
        41 accepted call=a key=k run=3 by=q/3
        41 settled call=a key=k run=3 state=succeeded by=q/3
        41 stored call=a state=SUCCESS value=3 by=q/3
        90 left call=a state=SUCCESS value=3""",
    "a retry of a run that stood still gets another call's outcome": f"""{TAKEN_OVER}
        31 ended call=a key=k run=1 state=retried value=Retry by=p/1
        40 stored call=a state=RETRY value=busy by=r/4
        50 stored call=a state=SUCCESS value=3 by=r/5""",
    "a copy of a duplicate comes when nobody remembers its answer": _shared(15, 39),
    "a run stood still before its body, and lost its key to one without an outcome": f"""
        {BEGAN}{SECOND}
        1.5 stalled by=q until=30
        2 killed by=p
        15 began call=a key=k run=2 value=0 by=r/2
        16 ended call=a key=k run=2 state=rejected value=Reject by=r/2
        16 settled call=a key=k run=2 state=released by=r/2
        16 stored call=a state=FAILURE value=Reject by=r/2
        30 began call=b key=k run=3 value=0 by=q/3
        50 ended call=b key=k run=3 state=returned value=3 by=q/3
        50 stored call=b state=SUCCESS value=3 by=q/3
        90 left call=a state=FAILURE value=Reject
        90 left call=b state=SUCCESS value=3""",
    "nobody knew, who told that died before noting it, and the run settles it": f"""{BEGAN}
        1.5 stalled by=p until=30
        20 stored call=a state=FAILURE value=OutcomeUnknown by=q/2
        21 killed by=q
        31 ended call=a key=k run=1 state=returned value=1 by=p/1
        31 accepted call=a key=k run=1 by=p/1
        31 stored call=a state=SUCCESS value=1 by=p/1
        90 left call=a state=SUCCESS value=1""",
}


@pytest.mark.parametrize("text", EXCUSED.values(), ids=EXCUSED)
def test_what_the_contract_allows_is_no_violation(text: str) -> None:
    """Where a process died or stood still, what the contract says of that is allowed."""
    # Given a history with that fault in it; when it is checked; then nothing is found
    assert _broken(text) == []


#: A run without a claim, beside a run of the same key.
OPEN = f"""{BEGAN}{SECOND}
2 began call=b key=k run=2 state=open by=q/2
2.5 ended call=b key=k run=2 state=returned value=2 by=q/2
2.5 stored call=b state=SUCCESS value=2 by=q/2
{DONE}{LEFT}
90 left call=b state=SUCCESS value=2
"""


def test_a_task_may_run_open_only_while_the_store_is_away() -> None:
    """Then it neither stops others nor is stopped, and its end is its own caller's answer."""
    away = "1.9 away by=q/2 state=claim\n"
    assert _broken(OPEN + away, fails_open=True) == []
    assert _broken(OPEN, fails_open=True) == ["ran open"]
    # Another call has no right to that answer
    shared = OPEN.replace("left call=a state=SUCCESS value=1", "left call=a state=SUCCESS value=2")
    assert _broken(shared + away, fails_open=True) == ["wrong answer"]


@pytest.mark.parametrize(("until", "broken"), [(19, []), (60, ["answer changed"])])
@pytest.mark.parametrize("state", ["open", ""])
def test_a_run_that_went_on_may_retry_when_nobody_remembers_the_answer(
    until: int, broken: list[str], state: str
) -> None:
    """A copy of its call was answered meanwhile, and it has published its next attempt itself."""
    # Given
    text = f"""
    0 published call=b key=k by=caller
    0.9 away by=q/2 state=claim
    1 began call=b key=k run=2 {state and "state="}{state} by=q/2
    3 stored call=b state=FAILURE value=1 by=p/1 until={until}
    40 ended call=b key=k run=2 state=retried by=q/2
    50 began call=b key=k run=3 value=1 by=q/3
    51 ended call=b key=k run=3 state=returned value=3 by=q/3
    51 settled call=b key=k run=3 state=released by=q/3
    51 stored call=b state=SUCCESS value=3 by=q/3
    90 left call=b state=SUCCESS value=3"""
    # Then
    found = _broken(text, fails_open=True, frees=True)
    assert [it for it in found if it == "answer changed"] == broken


@pytest.mark.parametrize(
    ("made", "terms", "broken"),
    [
        pytest.param(2, {"frees": True}, [], id="it has waited for that run"),
        pytest.param(3.5, {"frees": True}, ["wrong answer"], id="it was made after it"),
        pytest.param(2, {"frees": True, "in_turn": True}, ["wrong answer"], id="in its turn"),
    ],
)
def test_without_a_window_an_outcome_is_for_those_that_waited(
    made: float, terms: dict[str, bool], broken: list[str]
) -> None:
    """And where each runs in its turn, for nobody else."""
    # Given a call that got the outcome of another call's run, which no window keeps
    text = f"""{BEGAN}
    {made} published call=b key=k by=caller
    3 ended call=a key=k run=1 state=returned value=1 by=p/1
    3 settled call=a key=k run=1 state=released by=p/1
    4 stored call=a state=SUCCESS value=1 by=p/1
    5 stored call=b state=SUCCESS value=1 by=q/2
    90 left call=a state=SUCCESS value=1
    90 left call=b state=SUCCESS value=1"""
    # When it is checked, then
    assert _broken(text, **terms) == broken


def test_each_rule_has_a_history_that_breaks_it() -> None:
    """No rule is there that no history could break."""
    assert {rule for rule, _ in BROKEN.values()} == set(RULES)


def test_a_history_is_kept_in_a_file(tmp_path: Path) -> None:
    """What is written is what is read."""
    # Given a history
    history = _history(RIGHT)
    # When it is written and read
    write(tmp_path / "history", history)
    # Then it is the same
    assert list(read(tmp_path / "history")) == history


def test_an_operation_is_one_of_those_that_are_known() -> None:
    """A name that is misspelt is an error, and not an operation that nobody looks at."""
    with pytest.raises(ValueError, match="no operation"):
        Operation(0.0, "begun")
