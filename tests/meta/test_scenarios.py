"""No fault is without a test, and no test that is named has gone."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from tests.faults.scenarios import SCENARIOS


def found(node: str) -> Any:
    """The test function that a name means."""
    path, *names = node.split("::")
    thing: Any = importlib.import_module("tests." + path.removesuffix(".py").replace("/", "."))
    for name in names:
        # The classes of a unit test's module need not be named.
        thing = getattr(thing, name, None) or next(
            getattr(kind, name)
            for kind in vars(thing).values()
            if isinstance(kind, type) and hasattr(kind, name)
        )
    return thing


def test_every_number_is_there() -> None:
    """One to fifty and what use has found since, each once and with a test."""
    numbers = [it.number for it in SCENARIOS]
    assert numbers[:50] == list(range(1, 51))
    assert numbers == sorted(set(numbers))
    assert all(it.fault and it.outcome and it.tests for it in SCENARIOS)


@pytest.mark.parametrize("node", sorted({node for it in SCENARIOS for node in it.tests}))
def test_each_test_that_is_named_exists(node: str) -> None:
    """It is a test, says what it shows, and isn't skipped."""
    test = found(node)
    assert test.__name__.startswith("test_")
    assert test.__doc__
    marks = {mark.name for mark in getattr(test, "pytestmark", [])}
    assert not marks & {"skip", "skipif", "xfail"}


def test_fault_tests_name_numbers_that_list_them() -> None:
    """A docstring that begins with a number and this table say the same."""
    for scenario in SCENARIOS:
        for node in scenario.tests:
            if not node.startswith("faults/test_") or node.startswith("faults/test_topologies"):
                continue
            docstring = found(node).__doc__
            assert docstring.startswith("Scenario"), node
