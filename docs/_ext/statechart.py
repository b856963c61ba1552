"""The states of a record and what leads from one to another: the data, checked by a test, and its
drawing.
"""

from __future__ import annotations

from dataclasses import dataclass

from _ext.svg import LINE_HEIGHT, Drawing

__all__ = ["ANYWHERE", "EDGES", "LATE", "STATES", "Edge", "draw", "edges_of"]

Point = tuple[float, float]


@dataclass(frozen=True)
class Edge:
    """What leads from one state to another, and how it is drawn."""

    source: str
    target: str
    label: str
    points: tuple[Point, ...]
    at: Point
    anchor: str = "middle"


#: Each state with its place, and what it means.
STATES: dict[str, tuple[Point, list[str]]] = {
    "absent": ((14, 196), ["no record: never", "used, or expired"]),
    "running": ((350, 196), ["a run holds the", "key, by a lease"]),
    "retrying": ((350, 14), ["the run asked for", "a retry, due at ..."]),
    "released": ((350, 378), ["the key is free; keeps", "a failure to share"]),
    "succeeded": ((736, 14), ["the result answers", "every duplicate"]),
    "failed": ((736, 196), ["the failure answers", "every duplicate"]),
    "unknown": ((736, 378), ["cut off; nobody knows", "what it did"]),
}
_WIDTH, _HEIGHT = 164, 72

EDGES = (
    Edge("absent", "running", "a delivery claims it", ((178, 232), (350, 232)), (258, 250)),
    Edge("running", "retrying", "self.retry()", ((414, 196), (414, 86)), (406, 128), "end"),
    Edge(
        "retrying",
        "running",
        "its next message comes,\nor is overdue by a lease",
        ((454, 86), (454, 196)),
        (464, 112),
        "start",
    ),
    Edge(
        "running",
        "released",
        "fails; Ignore,\nReject, replace",
        ((414, 268), (414, 378)),
        (406, 318),
        "end",
    ),
    Edge(
        "released",
        "running",
        "the next call\nclaims it",
        ((454, 378), (454, 268)),
        (464, 326),
        "start",
    ),
    Edge("running", "succeeded", "returns", ((514, 212), (736, 50)), (650, 134), "start"),
    Edge(
        "running",
        "failed",
        "fails, and failures\nare stored",
        ((514, 232), (736, 232)),
        (634, 210),
    ),
    Edge(
        "running",
        "unknown",
        'cut off too often, or\npolicy "unknown"',
        ((514, 252), (736, 414)),
        (646, 316),
        "start",
    ),
    Edge(
        "running",
        "running",
        "cut off, and\nclaimed again",
        ((368, 196), (368, 166), (322, 166), (322, 212), (350, 212)),
        (314, 166),
        "end",
    ),
)

#: A run that was held for lost may end after all, as long as nobody took over: this settles
#: "unknown" as it would have settled "running".
LATE = {"unknown": ("succeeded", "failed", "released", "retrying")}
#: What leads there from everywhere: ``forget``, and the end of a record's time.
ANYWHERE = ("released", "absent")


def edges_of() -> set[tuple[str, str]]:
    """All that the chart says can happen, save the ways to :data:`ANYWHERE`."""
    drawn = {(edge.source, edge.target) for edge in EDGES}
    return drawn | {(source, target) for source, targets in LATE.items() for target in targets}


def draw() -> str:
    """Draw it."""
    words = [f"{e.source} to {e.target}: {' '.join(e.label.split())}" for e in EDGES]
    chart = Drawing("The states of a record", "; ".join(words))
    for edge in EDGES:
        chart.arrow(list(edge.points))
        x, y = edge.at
        chart.text(x, y, edge.label.split("\n"), anchor=edge.anchor)
    for name, ((x, y), lines) in STATES.items():
        chart.box(x, y, _WIDTH, _HEIGHT, "party" if name != "absent" else "pause")
        chart.text(x + _WIDTH / 2, y + 22, [name], "name")
        chart.text(x + _WIDTH / 2, y + 24 + LINE_HEIGHT, lines, "small")
    return chart.html(914, 464)
