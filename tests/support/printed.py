"""The Python that README and documentation print, as a reader copies it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.rst"), *DOCS.glob("cookbook/*.rst")])
#: Where a sample that goes on with checks for us ends for the reader.
END = "# [end]\n"

_INCLUDE = re.compile(
    r"^\.\. literalinclude:: (\S*examples/\S+\.py)\n((?:   :.*\n)*)", re.MULTILINE
)
_README = re.compile(r"<!-- docs/examples/(\S+) -->\n```python\n(.*?)```", re.DOTALL)


class Sample(NamedTuple):
    """A block of Python as printed, on which page, and from which file."""

    page: str
    name: str
    text: str
    options: str


def samples() -> list[Sample]:
    """Every block that is printed, in the order of the pages."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = [Sample("README.md", name, text, "") for name, text in _README.findall(readme)]
    for page in PAGES:
        for include, options in _INCLUDE.findall(page.read_text(encoding="utf-8")):
            path = page.parent / include
            text = path.read_text(encoding="utf-8")
            if ":end-before: [end]" in options:
                text = text.partition(END)[0]
            found.append(Sample(str(page.relative_to(DOCS)), path.name, text, options))
    return found
