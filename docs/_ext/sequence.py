"""Sequence diagrams from a few lines of text: who tells whom what, from top to bottom.

::

    broker -> worker: a message
    worker --> broker: an answer
    worker: what it does by itself
    ...: what happens in between
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from _ext.svg import LINE_HEIGHT, Drawing, wrapped

__all__ = ["Step", "draw", "parse"]

_GAP = 200
_MARGIN = 90
_HEAD_HEIGHT = 30
_NOTE_WIDTH = 170
_MESSAGE = re.compile(r"(?P<source>[^:]+?) (?P<arrow>-->|->) (?P<target>[^:]+?): (?P<text>.+)")
_NOTE = re.compile(r"(?P<source>[^:]+): (?P<text>.+)")


@dataclass(frozen=True)
class Step:
    """One line of a diagram. Without a target it is a note; ``...`` stands for everyone."""

    source: str
    text: str
    target: str | None = None
    is_answer: bool = False

    def __str__(self) -> str:
        return (
            f"{self.source} to {self.target}: {self.text}"
            if self.target
            else (self.text if self.source == "..." else f"{self.source}: {self.text}")
        )


def parse(lines: list[str]) -> list[Step]:
    """Read a diagram; an indented line goes on with the one above.

    Raises:
        ValueError: a line is none of the kinds.
    """
    joined: list[str] = []
    for line in lines:
        if line.startswith(" ") and joined:
            joined[-1] += f" {line.strip()}"
        elif line.strip():
            joined.append(line.strip())
    steps = []
    for line in joined:
        if found := _MESSAGE.fullmatch(line):
            answer = found["arrow"] == "-->"
            steps.append(Step(found["source"], found["text"], found["target"], answer))
        elif found := _NOTE.fullmatch(line):
            steps.append(Step(found["source"], found["text"]))
        else:
            raise ValueError(f"not a line of a sequence diagram: {line!r}")
    if not steps:
        raise ValueError("a sequence diagram has its steps below it, after an empty line")
    return steps


def draw(title: str, steps: list[Step]) -> str:
    """Draw it; the parties stand in the order in which they first appear."""
    parties: list[str] = []
    for step in steps:
        for name in (step.source, step.target):
            if name and name != "..." and name not in parties:
                parties.append(name)
    at = {name: _MARGIN + number * _GAP for number, name in enumerate(parties)}
    width = 2 * _MARGIN + (len(parties) - 1) * _GAP
    rows = Drawing(title)
    y = float(_HEAD_HEIGHT + 14)
    for step in steps:
        y = _row(rows, step, at, width, y)
    page = Drawing(title, [str(step) for step in steps])
    for name, x in at.items():
        page.line(x, _HEAD_HEIGHT, x, y + 4, "lifeline")
        page.box(x - 66, 1, 132, _HEAD_HEIGHT, "party")
        page.text(x, 20, [name], "name")
    page.add(rows)
    return page.html(width, y + 8)


def _row(rows: Drawing, step: Step, at: dict[str, int], width: float, y: float) -> float:
    """Draw one step below ``y``, and give where the next one begins."""
    if step.source == "...":
        lines = wrapped(step.text, width - 120)
        height = len(lines) * LINE_HEIGHT
        rows.box(8, y + 4, width - 16, height + 10, "pause")
        rows.text(width / 2, y + 20, lines, "aside")
        return y + height + 24
    if step.target is None:
        lines = wrapped(step.text, _NOTE_WIDTH - 16)
        height = len(lines) * LINE_HEIGHT + 10
        x = min(max(at[step.source], _NOTE_WIDTH / 2 + 2), width - _NOTE_WIDTH / 2 - 2)
        rows.box(x - _NOTE_WIDTH / 2, y + 4, _NOTE_WIDTH, height, "note")
        rows.text(x, y + 20, lines)
        return y + height + 14
    x1, x2 = at[step.source], at[step.target]
    lines = wrapped(step.text, abs(x2 - x1) - 20)
    bottom = y + len(lines) * LINE_HEIGHT + 6
    rows.text((x1 + x2) / 2, y + 14, lines)
    rows.arrow([(x1, bottom), (x2, bottom)], "answer" if step.is_answer else "arrow")
    return bottom + 8
