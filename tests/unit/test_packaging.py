"""What a release holds: every file that its tests need, and a changelog that names it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import celery_idempotent

ROOT = Path(__file__).parents[2]
MANIFEST = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
#: What setuptools takes without being told.
TAKEN = {"celery_idempotent", "MANIFEST.in", "pyproject.toml", "setup.cfg", "setup.py"}


def test_the_sdist_holds_whatever_is_in_the_repository() -> None:
    """Tests read files of all folders: each folder and file at the top is named in MANIFEST.in."""
    # Given
    if not (ROOT / ".git").exists():
        pytest.skip("this is no repository")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    # Then
    named = {name for line in MANIFEST for name in line.split()[1:]}
    assert {name.partition("/")[0] for name in listed} - named <= TAKEN


def test_the_changelog_names_the_version() -> None:
    """The version has a section with its date, below what is not released."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d{2}-\d{2}))?$", text, re.MULTILINE)
    assert heads[0] == ("Unreleased", "")
    released = dict(heads[1:])
    assert released[celery_idempotent.__version__]
    assert all(released.values())
