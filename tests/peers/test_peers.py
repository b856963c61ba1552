"""What three libraries document is played on each and on us, and the documentation says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.__main__ import play
from tests.peers.report import PEERS, table_path, without_versions

pytestmark = [pytest.mark.system, pytest.mark.long(60), pytest.mark.timeout(600)]


@pytest.mark.parametrize("name", PEERS)
def test_the_table_is_what_happens(name: str, tmp_path: Path) -> None:
    """Each documented behaviour, there and here; where they differ, the table says why."""
    # When
    table = play(name, tmp_path)
    # Then
    kept = table_path(name).read_text(encoding="utf-8")
    assert without_versions(table) == without_versions(kept)
