"""A few shapes of SVG, styled by ``_static/diagrams.css``, so that diagrams need no program."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape

__all__ = ["CHARACTER_WIDTH", "LINE_HEIGHT", "Drawing", "wrapped"]

#: About what one character takes at the size that the style sheet sets, in pixels.
CHARACTER_WIDTH = 6.2
LINE_HEIGHT = 16
_HEAD = 8


def wrapped(text: str, width: float) -> list[str]:
    """Break a text into lines that are at most so many pixels wide."""
    return textwrap.wrap(text, max(8, int(width / CHARACTER_WIDTH))) or [""]


class Drawing:
    """Shapes on a canvas, one after the other.

    Args:
        title: what it shows, for those who can't see it.
        words: the same, one sentence for each part, for those who can't see it and for narrow
            screens.
    """

    def __init__(self, title: str, words: Sequence[str] = ()) -> None:
        self._title = title
        self._words = words
        self._shapes: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, kind: str = "box") -> None:
        """A rectangle with round corners."""
        self._shapes.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
            ' rx="6"/>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "line") -> None:
        """A straight line."""
        self._shapes.append(
            f'<line class="{kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'
        )

    def text(
        self, x: float, y: float, lines: list[str], kind: str = "label", anchor: str = "middle"
    ) -> None:
        """Lines of text; ``y`` is where the first one stands."""
        for number, line in enumerate(lines):
            at = y + number * LINE_HEIGHT
            self._shapes.append(
                f'<text class="{kind}" x="{x:g}" y="{at:g}" text-anchor="{anchor}">'
                f"{escape(line)}</text>"
            )

    def arrow(self, points: list[tuple[float, float]], kind: str = "arrow") -> None:
        """A line through points, with a head at the last one."""
        (x1, y1), (x2, y2) = points[-2:]
        length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5 or 1
        dx, dy = (x2 - x1) / length * _HEAD, (y2 - y1) / length * _HEAD
        way = " ".join(f"{x:g},{y:g}" for x, y in points)
        head = (
            f"{x2:.1f},{y2:.1f} {x2 - dx - dy / 2:.1f},{y2 - dy + dx / 2:.1f} "
            f"{x2 - dx + dy / 2:.1f},{y2 - dy - dx / 2:.1f}"
        )
        self._shapes.append(f'<polyline class="{kind}" points="{way}"/>')
        self._shapes.append(f'<polygon class="head" points="{head}"/>')

    def add(self, other: Drawing) -> None:
        """All shapes of another drawing, on top."""
        self._shapes += other._shapes

    def html(self, width: float, height: float) -> str:
        """The whole as an element for a page."""
        return (
            f'<figure class="diagram"><svg xmlns="http://www.w3.org/2000/svg" role="img" '
            f'viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px">'
            f"<title>{escape(self._title)}</title><desc>{escape('; '.join(self._words))}</desc>"
            f"{''.join(self._shapes)}</svg>"
            f"<ol>{''.join(f'<li>{escape(line)}</li>' for line in self._words)}</ol></figure>"
        )
