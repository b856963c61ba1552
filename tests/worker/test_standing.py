"""A run that was ended from outside fails its call only while nobody else answers that."""

from __future__ import annotations

import pytest

from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import Process, Record, State
from celery_idempotent.core.slip import Slip
from celery_idempotent.worker.standing import Standing, stands

OWN, OTHER = Owner("mine"), Owner("another")
CHILD, ELSEWHERE = Process("host", 1, "boot").pack(), Process("host", 2, "boot").pack()
MESSAGE = Slip(publication=b"p")
ANSWERED = Slip(answered=True, publication=b"p", outcome=b"\x02no")
ANSWERED_BEFORE = ANSWERED._replace(publication=b"earlier")
TELLING = Slip(publication=b"p", holder=b"n" * 8 + ELSEWHERE, sending_ms=9)
GIVEN_UP = Slip(released=True, publication=b"p", holder=b"n" * 8 + CHILD, sending_ms=9)


def record(
    state: State, owner: Owner | None = OWN, process: bytes = b"", outcome: bytes = b""
) -> Record:
    packed = b"" if owner is None else owner.pack()
    return Record(state, 7, owner=packed, process=process, outcome=outcome)


@pytest.mark.parametrize(
    ("held", "slip", "standing"),
    [
        pytest.param(record(State.RUNNING, OWN, CHILD), None, "HOLDS", id="it has the key"),
        pytest.param(
            record(State.COMPENSATING, OWN, CHILD), None, "HOLDS", id="it has the key, and undoes"
        ),
        pytest.param(
            record(State.RUNNING, OWN, CHILD),
            ANSWERED,
            "HOLDS",
            id="it has the key again, under an id that was used before",
        ),
        pytest.param(record(State.RUNNING, OWN, ELSEWHERE), None, "COPIED", id="a copy has it"),
        pytest.param(record(State.RETRYING), None, "COPIED", id="its next attempt is out"),
        pytest.param(record(State.SUCCEEDED), None, "ANSWERED", id="a copy was done"),
        pytest.param(
            record(State.RELEASED, outcome=b"\x02no"), None, "ANSWERED", id="a copy failed"
        ),
        pytest.param(
            record(State.RUNNING, OTHER, ELSEWHERE), ANSWERED, "ANSWERED", id="then another call"
        ),
        pytest.param(None, ANSWERED, "ANSWERED", id="only the slip is left"),
        pytest.param(
            record(State.RELEASED), ANSWERED, "ANSWERED", id="a copy left without an outcome"
        ),
        pytest.param(
            record(State.RUNNING, OTHER, ELSEWHERE),
            ANSWERED_BEFORE,
            "OVERTAKEN",
            id="another call, and an answer under an id that was used before",
        ),
        pytest.param(
            record(State.RUNNING, OTHER, ELSEWHERE), None, "OVERTAKEN", id="another call runs"
        ),
        pytest.param(record(State.SUCCEEDED, OTHER), None, "OVERTAKEN", id="another call is done"),
        pytest.param(record(State.UNKNOWN, OWN, CHILD), None, "HOLDS", id="nobody knows"),
        pytest.param(
            record(State.UNKNOWN, OWN, CHILD), ANSWERED, "ANSWERED", id="a copy said nobody knows"
        ),
        pytest.param(
            record(State.UNKNOWN, OWN, CHILD), TELLING, "COPIED", id="a copy says nobody knows"
        ),
        pytest.param(record(State.RELEASED, OTHER), None, "HOLDS", id="another call left it free"),
        pytest.param(record(State.RELEASED, None), ANSWERED, "HOLDS", id="it was forgotten"),
        pytest.param(None, None, "HOLDS", id="the store came back empty"),
        pytest.param(
            record(State.RUNNING, OTHER, ELSEWHERE), GIVEN_UP, "HOLDS", id="it gave the key up"
        ),
    ],
)
def test_it_is_known_from_record_and_slip(
    held: Record | None, slip: Slip | None, standing: str
) -> None:
    """Only a run that has the key, or whose key nobody has, is its call's answer."""
    # When it is asked, then
    assert stands(held, slip, OWN, CHILD, MESSAGE).name == standing


@pytest.mark.parametrize("in_turn", [False, True])
def test_another_calls_outcome_is_no_answer_where_each_runs_in_its_turn(in_turn: bool) -> None:
    """As where its body raises: the run's own end is its call's answer then."""
    # Given
    held = record(State.RUNNING, OTHER, ELSEWHERE)
    # When
    standing = stands(held, None, OWN, CHILD, MESSAGE, in_turn=in_turn)
    # Then
    assert standing is (Standing.HOLDS if in_turn else Standing.OVERTAKEN)


def test_a_copy_in_the_same_process_is_another_run() -> None:
    """With threads and greenlets all bodies of a worker have one process."""
    # Given a key that this process has, by another run
    held = record(State.RUNNING, OWN, CHILD)
    # When it is asked without that process, then
    assert stands(held, None, OWN, b"", MESSAGE) is Standing.COPIED
