"""The table in the documentation of what each adapter does names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent.parent
PAGE = (TESTS.parent / "docs" / "http.rst").read_text(encoding="utf-8")
FILES = [
    *TESTS.glob("http/*.py"),
    TESTS / "django" / "test_middleware.py",
    TESTS / "system" / "test_http_shop.py",
]


def test_each_row_is_shown_by_a_test() -> None:
    """And each says what happens."""
    # Given
    table = PAGE[PAGE.index("What each adapter does") :]
    rows = re.findall(r"   \* - (.+)\n((?:     - .+\n?)+)", table)
    source = "\n".join(path.read_text(encoding="utf-8") for path in FILES)
    # Then
    assert len(rows) > 20
    for situation, rest in rows[1:]:
        outcome, shown = re.findall(r"     - (.+)", rest)
        assert outcome, situation
        assert f"def {shown.strip('`')}(" in source, situation
