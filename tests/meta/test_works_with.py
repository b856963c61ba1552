"""The page "Works with" says what the last recorded run of ``make ecosystem`` found."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from tests.ecosystem import page
from tests.ecosystem.catalogue import GROUPS, ROWS, Row

ROOT = Path(__file__).parents[2]
RUN = json.loads(page.RUN.read_text("utf-8"))
#: The shared cases, and the other package's own figures.
CASES = {
    "first call",
    "late duplicate",
    "five at once",
    "retry with a duplicate",
    "failure",
    "chord and chain",
    "figures",
}


def test_the_table_is_made_of_the_run() -> None:
    """``python -m tests.ecosystem --all --record`` writes both."""
    assert page.TABLE.read_text("utf-8") == page.table(RUN)
    assert page.TABLE.name in (ROOT / "docs" / "works-with.rst").read_text("utf-8")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.adapter)
def test_a_row_was_run_and_all_of_it_held(row: Row) -> None:
    """With a version that was found, and every case."""
    # Given
    answer = RUN[row.adapter]
    # Then
    assert page.is_right(answer)
    assert set(answer["cases"]) >= CASES
    assert answer["version"]
    assert row.group in GROUPS


def test_the_page_says_what_new_relic_has_to_ignore() -> None:
    """In the words that were tried, and what it names is there."""
    # Given
    apm = (ROOT / "tests" / "ecosystem" / "adapters" / "apm.py").read_text("utf-8")
    page_text = (ROOT / "docs" / "works-with.rst").read_text("utf-8")
    # When
    (ignored,) = re.findall(r"error_collector\.ignore_classes = (.+)", page_text)
    # Then
    for name in ignored.split():
        module, _, kind = name.partition(":")
        assert issubclass(getattr(importlib.import_module(module), kind), Exception)
        assert name in apm


def test_every_adapter_has_a_row() -> None:
    """A class that no row names would never run."""
    # Given
    named = {row.adapter for row in ROWS}
    # When
    found = set()
    for path in (ROOT / "tests" / "ecosystem" / "adapters").glob("*.py"):
        for kind in re.findall(r"^class ([A-Z]\w+)\(", path.read_text("utf-8"), re.MULTILINE):
            found.add(path.stem if kind == "TheAdapter" else f"{path.stem}:{kind}")
    # Then
    assert found == named
    assert importlib.import_module("tests.ecosystem.cases")
