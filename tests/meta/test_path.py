"""A first execution goes one way down through the files: see ``python -m tests.meta.path -v``."""

from __future__ import annotations

from unittest import mock

import pytest

from celery_idempotent import observers
from tests.meta.path import Call, Way, first_execution

#: The house was rebuilt from 58 changes of file, 16 calls deep. It may only become less.
MOST_CHANGES = 24
DEEPEST = 12


@pytest.fixture(scope="module")
def way() -> Way:
    # Others of these tests may have registered some.
    with mock.patch.object(observers, "observers", []):
        return first_execution()


def test_no_call_goes_back_up(way: Way) -> None:
    """Whoever reads on never has to come back into a file that waits for what it called."""
    assert way.back == []


def test_the_way_is_short(way: Way) -> None:
    """In files that one opens, and in calls that wait for one another."""
    assert way.changes <= MOST_CHANGES
    assert way.depth <= DEEPEST


@pytest.mark.parametrize(
    ("stack", "back"),
    [
        (("task", "guard", "task"), True),
        (("task", "guard", "claim", "guard"), True),
        (("task", "task"), False),
        (("task", None, "task"), False),
        (("task", "guard", None, "claim", "store"), False),
    ],
)
def test_back_is_where_one_has_been(stack: tuple[str | None, ...], back: bool) -> None:
    """What Celery or the body calls is a way of its own, and so is another function of a file."""
    assert Call(str(stack[-1]), "called", stack).goes_back is back


def test_a_call_behind_a_call_of_the_same_file_is_no_change() -> None:
    """Changes are counted between one call and the next."""
    calls = [Call(file, "called", (file,)) for file in ("a", "a", "b", "a")]
    assert Way(tuple(calls)).changes == 2
