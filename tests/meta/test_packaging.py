"""What a release holds: every file that its tests need, and a changelog that names it."""

from __future__ import annotations

import re
import runpy
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


SETUP = runpy.run_path(str(ROOT / "setup.py"))
LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")


def test_no_link_of_the_long_description_leads_nowhere() -> None:
    """On an index there is no file beside the README: the name of the file stands there instead."""
    # Given
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = [target for _, target in LINK.findall(readme)]
    # When
    shown = SETUP["description"]()
    # Then
    assert len(linked) > 15
    assert [target for _, target in LINK.findall(shown) if "://" not in target] == []
    for target in linked:
        assert f"`{target}`" in shown


def test_its_links_lead_to_the_source_once_it_has_an_address() -> None:
    """And what is no link to a file stays as it is."""
    # Given
    text = "[docs/a.rst](docs/a.rst), [BSD](LICENSE), [there](https://x.test/b), [below](#c)"
    # When
    alone, linked = (SETUP["standing_alone"](text, it) for it in (None, "https://x.test/s/"))
    # Then
    rest = "[there](https://x.test/b), [below](#c)"
    assert alone == f"`docs/a.rst`, BSD (`LICENSE`), {rest}"
    assert linked == (
        f"[docs/a.rst](https://x.test/s/docs/a.rst), [BSD](https://x.test/s/LICENSE), {rest}"
    )


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
