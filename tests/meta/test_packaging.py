"""What a release holds: every file that its tests need, and a changelog that names it."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import celery_idempotent

ROOT = Path(__file__).parents[2]
#: What setuptools takes without being told, and what it makes.
TAKEN = {"celery_idempotent", "MANIFEST.in", "pyproject.toml", "setup.cfg", "setup.py", "PKG-INFO"}


def lines_of(name: str) -> list[str]:
    return (ROOT / name).read_text(encoding="utf-8").splitlines()


def test_the_sdist_holds_whatever_is_in_the_repository() -> None:
    """Tests read files of all folders: each folder and file at the top is named in MANIFEST.in."""
    # Given
    ignored = [".git", *(line.rstrip("/") for line in lines_of(".gitignore"))]
    named = {name for line in lines_of("MANIFEST.in") for name in line.split()[1:]}
    # When
    found = {path.name for path in ROOT.iterdir()}
    # Then
    kept = {name for name in found if not any(fnmatch(name, it) for it in ignored)}
    assert kept - named <= TAKEN


def test_the_changelog_names_the_version() -> None:
    """The version has a section with its date, below what is not released."""
    # When
    text = "\n".join(lines_of("CHANGELOG.md"))
    heads = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d{2}-\d{2}))?$", text, re.MULTILINE)
    # Then
    assert heads[0] == ("Unreleased", "")
    released = dict(heads[1:])
    assert released[celery_idempotent.__version__]
    assert all(released.values())
