"""README and documentation are plain English: riddles and inversions that were there stay out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.plain import TURNS, all_turns, turns_in


def test_no_turn_of_the_list_is_in_a_text() -> None:
    """Nothing there has to be read twice, as far as a list can tell."""
    assert [str(found) for found in all_turns()] == []


@pytest.mark.parametrize(
    "riddle",
    [
        "The closest of several is one that had luck",
        "What you know of and want to have so goes into the list.",
        "a run that was held\nfor lost may end after all",
        "If the broker takes no message, it waits.",
        "An old copy of the first message is none.",
        "One run counts, and the other is told.",
        "A note that is refused is told again.",
    ],
)
def test_a_riddle_is_found(riddle: str) -> None:
    """Also where it goes over the end of a line, and whatever its first letter."""
    assert list(turns_in(riddle, Path("text")))


@pytest.mark.parametrize(
    "plain",
    [
        "Picking the closest favours noise, so it is measured again, five times longer.",
        "List accepted findings in ``idempotency_accept``.",
        "A run presumed dead may still finish.",
        "If republishing fails, the message goes back to the broker.",
        "``is told again`` is code.",
    ],
)
def test_a_plain_sentence_is_not(plain: str) -> None:
    """Nor is what stands in code."""
    assert list(turns_in(plain, Path("text"))) == []


def test_each_turn_has_something_better() -> None:
    """A reader of the failure knows what to write."""
    assert all(TURNS.values())
