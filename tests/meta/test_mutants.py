"""Each guard that `make mutants` takes out is where it says, and its tests are there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mutants import __main__ as program
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
    assert all((ROOT / one.partition("::")[0]).is_file() for one, *_ in mutant.stages)


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


def test_a_copy_has_all_that_tests_share() -> None:
    """Without it no test of a mutant can be collected, and nothing can be shown."""
    # Given what all tests import
    shared = [ROOT / "tests" / "conftest.py", *(ROOT / "tests" / "support").rglob("*.py")]
    imported = {
        found.partition(".")[0]
        for path in shared
        for found in re.findall(r"^from (\S+) import", path.read_text(), re.MULTILINE)
    }
    # Then what of it is in this project is copied
    assert {name for name in imported if (ROOT / name).is_dir()} <= set(program.COPIED)


GUARD = Mutant("a guard", "errors.py", "guarded", "bare", (("tests/one.py",), ("tests/two.py",)))
FAILED = """
ERROR    celery.app.trace:trace.py:288 Task shop.charge raised unexpected
FAILED tests/two.py::TestIt::test_this[a case-1] - AssertionError: 1 - 2
"""


class Copied(program.Copy):
    """A copy of one file, whose tests end as they are told to once the guard is out."""

    endings: Sequence[int] = ()

    def __init__(self, directory: Path) -> None:
        self.tree = directory
        (directory / "celery_idempotent").mkdir(parents=True)
        self.source.write_text("guarded\n")

    @property
    def source(self) -> Path:
        return self.tree / "celery_idempotent" / "errors.py"

    def test(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        out = self.source.read_text() == "bare\n"
        code = self.endings[arguments[0] == "tests/two.py"] if out else 0
        return subprocess.CompletedProcess([], code, FAILED)


@pytest.mark.parametrize(
    ("endings", "outcome", "code"),
    [
        ((0, 1), "noticed   two.py::TestIt::test_this[a case-1]", 0),
        ((0, 0), "SURVIVED", 1),
        ((2, 1), "ERROR", 1),
    ],
    ids=["noticed", "not noticed", "no tests"],
)
def test_every_guard_has_to_be_noticed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    endings: Sequence[int],
    outcome: str,
    code: int,
) -> None:
    """By a test that fails; one that is missed by none, or by no test that ran, is an error."""
    # Given
    monkeypatch.setattr(program, "MUTANTS", [GUARD])
    monkeypatch.setattr(program, "Copy", Copied)
    monkeypatch.setattr(Copied, "endings", endings)
    monkeypatch.setattr(sys, "argv", ["mutants", "-j", "1"])
    # When
    ended = program.main()
    # Then
    told = capsys.readouterr().out
    assert ended == code
    assert f"a guard  Python  {outcome}" in told
    assert f"1 guards, {code} not noticed" in told


def test_a_guard_that_can_not_be_taken_out_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its text has changed since: the tests have shown nothing of it."""
    # Given
    changed = Mutant("a guard", "errors.py", "another text", "", GUARD.stages)
    monkeypatch.setattr(program, "MUTANTS", [changed])
    monkeypatch.setattr(program, "Copy", Copied)
    monkeypatch.setattr(sys, "argv", ["mutants"])
    # Then
    assert program.main() == 1
    assert "put the mutant right" in capsys.readouterr().out


def test_no_compiled_file_hides_a_change(tmp_path: Path) -> None:
    """Python compares whole seconds and sizes: each change has seconds that the file never had."""
    # Given
    copy = Copied(tmp_path)
    # When it changes several times within a second
    times = []
    for text in ("one\n", "two\n", "one\n"):
        copy.source.write_text(text)
        copy.has_changed(copy.source)
        times.append(int(copy.source.stat().st_mtime))
    # Then
    assert len(set(times)) == len(times)


def test_tests_that_fail_by_themselves_show_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With every guard in its place they have to pass, or no guard is looked at."""
    # Given
    monkeypatch.setattr(program, "MUTANTS", [GUARD])
    monkeypatch.setattr(program, "Copy", Copied)
    monkeypatch.setattr(
        Copied, "test", lambda *_: subprocess.CompletedProcess([], 1, "1 failed in 2.00s")
    )
    monkeypatch.setattr(sys, "argv", ["mutants"])
    # Then
    assert program.main() == 1
    assert "nothing can be shown" in capsys.readouterr().out
