"""Turns of phrase that make a reader stop, and what to write; ``python -m`` lists them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
#: What readers of the documentation read; the changelog is history, and what is measured is data.
TEXTS = sorted(
    [
        *(ROOT / "docs").glob("*.rst"),
        *(ROOT / "docs").glob("cookbook/*.rst"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        # The page of the settings is made of its comments that open with "#:".
        ROOT / "celery_idempotent" / "core" / "options.py",
    ]
)

#: Each turn, as a regular expression in lower case, and what is better.
TURNS = {
    r"is one that had luck": "Picking the closest favours noise, so it is measured again",
    r"what you know of and want": "List accepted findings in ...",
    r"(held|given up) for lost": "presumed dead",
    r"may end after all": "may still finish",
    r"takes no message": "If republishing fails",
    r"\b(is|are|was|were) none\b(?! of)": "is not a ..., or: there is no ...",
    r"\b(is|are|be) (not )?spoken of": "is reported, or is no longer reported",
    r"\b(is|are) told (again|of)\b": "is written again; gets a signal",
    r"\bthe (other|others) (is|are) told\b": "the other learns that ...",
    r"\bgoes on telling\b": "writes it again",
    r"\b(signal|event)s? .{0,40} tells? of it": "the signal is sent",
    r"\bthough it lives|though they live\b": "although it is alive",
    r"\bwhat (was|were|is) never \w+ can't be\b": "A ... that was never ... can't ...",
    r"\brather not at all\b": "Do not ...",
    r"\bis not said\b": "any of them may ...",
    r"\bat hand\b": "that it was working on",
    r"\bto the letter\b": "exactly",
    r"\bleaves without a trace\b": "reports nothing",
    r"\bby the book\b": "as described in ...",
    r"\b(nothing|nobody|none) of ours\b": "not a part of this library",
    r"\bas a rule\b": "usually",
    r"\bbe it\b": "whether it is",
    r"^(told|asked|had|were) (again|it|they),?": "the subject first: 'If it is asked again, ...'",
    r"\bnot earlier than\b.{0,20}\bnot\b": "one negation a sentence",
    r"\bso that it (is|be) so\b|see that it is so": "test it",
    r"\bwhich no \w+ (\w+ )?makes it\b": "which a ... can't guarantee",
    r"\b(has|have) what it hasn't\b": "the subject and the verb in full",
    r"\bone of them is none\b": "is not one of them",
    r"\bbear (that|it)\b": "does no harm; is safe",
    r"\bit would meet is its own\b": "its own lock would stop it",
    r"\bdoes neither\b": "say what it does",
}
_LITERAL = re.compile(r"``[^`]*``|`[^`]*`|^\.\. .*$", re.MULTILINE)


class Found(NamedTuple):
    """A turn in a text, on which line, and what is better."""

    path: Path
    line: int
    words: str
    better: str

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}: {self.words!r}: write {self.better!r}"


def turns_in(text: str, path: Path) -> Iterator[Found]:
    """Find each turn of the list, over line ends too; code is left out."""
    if path.suffix == ".py":
        lines = text.split("\n")
        text = "\n".join(it.partition("#:")[2] if "#:" in it else "" for it in lines)
    plain = _LITERAL.sub(lambda found: " " * len(found[0]), text.lower())
    for turn, better in TURNS.items():
        for found in re.finditer(re.sub(r"(?<!\\) ", r"\\s+", turn), plain, re.MULTILINE):
            words = " ".join(found[0].split())
            yield Found(path, text.count("\n", 0, found.start()) + 1, words, better)


def all_turns() -> list[Found]:
    """Find the turns in all texts."""
    return [found for path in TEXTS for found in turns_in(path.read_text("utf-8"), path)]


if __name__ == "__main__":
    for one in all_turns():
        print(one)  # noqa: T201
    sys.exit(bool(all_turns()))
