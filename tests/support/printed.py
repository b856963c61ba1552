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


class Block(NamedTuple):
    """A block of anything but Python: on which page, in which language, and what stands in it."""

    page: str
    language: str
    text: str
    #: Whether the page says that it shows something, and is not to be run.
    is_fragment: bool

    def commands(self) -> list[str]:
        """What a reader types, one line each; a comment at its end goes."""
        text = self.text.replace("\\\n", " ")
        lines = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        return [re.sub(r"\s+# .*", "", line) for line in lines]


_BLOCK = re.compile(
    r"^\.\. code-block:: (\w+)\n((?:   :.*\n)*)\n((?:   .*\n|\n)+)"
    r"|^[^.\n].*(::)\n\n((?:   .*\n|\n)+)",
    re.MULTILINE,
)
_FENCE = re.compile(r"(<!-- fragment -->\n)?^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: Where the README says what a file is called, and the file; or what to type.
_STEP = re.compile(r"as\s+`(\w+\.py)`|^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> list[Block]:
    """Every block that is no Python, in the order of the pages."""
    found = []
    for name in ("README.md", "CONTRIBUTING.md"):
        for mark, language, text in _FENCE.findall((ROOT / name).read_text(encoding="utf-8")):
            if language != "python":
                found.append(Block(name, language, text, bool(mark)))
    for page in PAGES:
        where = str(page.relative_to(DOCS))
        for language, options, text, plain, more in _BLOCK.findall(page.read_text("utf-8")):
            body = "\n".join(line[3:] for line in (text or more).splitlines())
            fragment = bool(plain) or ":class: fragment" in options
            found.append(Block(where, language or "text", body.strip() + "\n", fragment))
    return found


def steps_of_the_readme() -> list[tuple[str, str]]:
    """What a reader of the README does, in order: saves a file by its name, or types a command."""
    steps, name = [], ""
    for called, language, text in _STEP.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        if called:
            name = called
        elif language == "python":
            steps.append((name, text))
        else:
            steps += [("", command) for command in Block("", "", text, False).commands()]
    return steps
