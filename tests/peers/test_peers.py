"""What three libraries document is played on each and on us, and the documentation says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.__main__ import play
from tests.peers.bench import Case, Seen
from tests.peers.report import PEERS, table_path, verdict_of, without_versions

pytestmark = [pytest.mark.system, pytest.mark.long(60)]


@pytest.mark.parametrize("name", PEERS)
def test_the_table_is_what_happens(name: str, tmp_path: Path) -> None:
    """Each documented behaviour, there and here; where they differ, the table says why."""
    # When
    table = play(name, tmp_path)
    # Then
    kept = table_path(name).read_text(encoding="utf-8")
    assert without_versions(table) == without_versions(kept)


@pytest.mark.parametrize(
    ("here", "verdict", "why"),
    [("2 runs", "same", ""), ("1 run", "better", "why"), ("2 runs", "different", "")],
)
def test_a_verdict_that_was_not_seen_is_refused(here: str, verdict: str, why: str) -> None:
    """What is said to be the same was seen to be, and what is not has a reason."""
    case = Case("It runs once.", lambda side: Seen(("1 run",)), verdict, why)
    with pytest.raises(AssertionError):
        verdict_of(case, Seen(("1 run",), ("TheirError",)), Seen((here,), ("OurError",)))


def test_names_of_errors_are_no_difference() -> None:
    """Each library has its own."""
    case = Case("It is refused.", lambda side: Seen(("refused",)))
    there, here = Seen(("refused",), ("TheirError",)), Seen(("refused",), ("OurError",))
    assert verdict_of(case, there, here) == "the same"
