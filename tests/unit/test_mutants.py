"""Each guard that `make mutants` takes out is where it says, and its tests are there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Mutant, SourceChanged

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: f"{one.guard} ({one.language})")
def test_a_guard_can_be_taken_out(mutant: Mutant, tmp_path: Path) -> None:
    """Its source text is there once, what is left is a program, and its tests exist."""
    # Given
    copy = tmp_path / "celery_idempotent" / mutant.path
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / "celery_idempotent" / mutant.path, copy)
    before = copy.read_text()
    # When
    mutant.apply(tmp_path)
    # Then
    after = copy.read_text()
    assert after != before
    if copy.suffix == ".py":
        compile(after, str(copy), "exec")
    assert all((ROOT / arguments[0]).is_file() for arguments in mutant.stages)


def test_a_guard_whose_text_is_gone_is_an_error(tmp_path: Path) -> None:
    """It is never passed over in silence."""
    # Given
    path = tmp_path / "celery_idempotent" / "errors.py"
    path.parent.mkdir()
    path.write_text("one\none\n")
    # Then
    for old in ("two", "one"):
        with pytest.raises(SourceChanged):
            Mutant("a guard", "errors.py", old, "", ()).apply(tmp_path)
    assert path.read_text() == "one\none\n"
