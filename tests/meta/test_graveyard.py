"""The situations of public bug reports: the table, the page, and ours, which is right in all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.graveyard import run
from benchmarks.graveyard.report import OURS, Report
from benchmarks.graveyard.situations import CLAIMS, PROJECTS, SITUATIONS, STRIKES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "graveyard.rst").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
KEPT = ROOT / "docs" / "graveyard-results.json"
NUMBERS = {50: "Fifty"}


def kept() -> Report:
    """The run whose results are on the page."""
    return Report(**json.loads(KEPT.read_text(encoding="utf-8")))


def test_each_situation_is_a_report_of_its_own() -> None:
    """As many as the page's title says, each with an address that no other one has."""
    assert PAGE.startswith(f"{NUMBERS[len(SITUATIONS)]} public bug reports")
    assert Counter(it.address for it in SITUATIONS).most_common(1)[0][1] == 1
    for situation in SITUATIONS:
        assert re.fullmatch(
            rf"https://github\.com/{PROJECTS[situation.project]}/(issues|pull)/\d+",
            situation.address,
        )
        assert situation.told.endswith("."), situation.name
        assert situation.right.endswith("."), situation.name
        assert set(situation.needs) <= set(CLAIMS)
        assert situation.strike in ("", *STRIKES)


def test_the_page_has_each_project_and_what_was_seen() -> None:
    """The tables are what is made of the results that are kept."""
    for project in PROJECTS:
        assert project in PAGE, project
    written = (ROOT / "docs" / "graveyard-results.inc").read_text(encoding="utf-8")
    assert written == kept().rst()


def test_ours_was_right_in_each_situation_that_is_on_the_page() -> None:
    """Nothing is left out, nothing is not claimed, and each library was played."""
    report = kept()
    assert report.score(OURS) == (len(SITUATIONS), len(SITUATIONS))
    assert f"right in {len(SITUATIONS)} of {len(SITUATIONS)}" in README
    assert set(report.seen) == set(run.NAMES)
    for library, seen in report.seen.items():
        assert set(seen) == {it.name for it in SITUATIONS}, library
    assert report.is_good()


@pytest.mark.parametrize(
    ("library", "verdict", "good"),
    [
        (OURS, "right", True),
        (OURS, "wrong", False),
        (OURS, "not claimed", False),
        ("once", "wrong", True),
        ("once", "not claimed", True),
        ("once", "error", False),
    ],
)
def test_a_run_is_good_if_ours_is_right_and_all_was_played(
    library: str, verdict: str, good: bool
) -> None:
    """Others may be wrong, but what could not be played is no result."""
    cell = {"verdict": verdict, "faults": ["2 effects instead of 1"]}
    report = Report("2026-01-01", {}, {library: "it 1"}, {library: {SITUATIONS[0].name: cell}})
    assert report.is_good() is good


def test_the_table_can_be_listed() -> None:
    """Each with its address, and ``-k`` picks some."""
    listed = CliRunner().invoke(run.main, ["--list", "-k", "kombu"])
    assert listed.exit_code == 0, listed.output
    assert "https://github.com/celery/kombu/issues/337" in listed.output
    assert "celery-once-19" not in listed.output
    assert CliRunner().invoke(run.main, ["--list", "-k", "nothing of it"]).exit_code == 2


@pytest.mark.system
@pytest.mark.long(60)
def test_ours_is_right_in_all(tmp_path: Path) -> None:
    """Played with a worker of our own: as many effects as are right, and an answer to each."""
    # When
    command = [sys.executable, "-m", "benchmarks.graveyard", "idempotent", "--limit", "300"]
    command += ["--json", str(tmp_path / "seen.json"), "--logs", str(tmp_path / "logs")]
    output = tmp_path / "output"
    # Into a file: it is there whatever becomes of the run, and nobody waits for its end.
    with (
        output.open("w") as file,
        subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file) as played,
    ):
        try:
            code = played.wait(timeout=360)
        except subprocess.TimeoutExpired:
            played.kill()
            code = None
    # Then
    assert code == 0, output.read_text()
    report = Report(**json.loads((tmp_path / "seen.json").read_text()))
    assert report.score(OURS) == (len(SITUATIONS), len(SITUATIONS))
