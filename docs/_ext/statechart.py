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
    "absent": ((6, 196), ["no record: never", "used, or expired"]),
    "running": ((262, 196), ["a run holds the", "key, by a lease"]),
    "retrying": ((262, 14), ["the run asked for", "a retry, due at ..."]),
    "released": ((262, 430), ["the key is free; keeps", "a failure to share"]),
    "succeeded": ((600, 14), ["the result answers", "every duplicate"]),
    "failed": ((600, 142), ["the failure answers", "every duplicate"]),
    "unknown": ((600, 270), ["cut off; nobody", "knows what it did"]),
    "compensating": ((600, 430), ["it failed; its steps", "are being undone"]),
}
_WIDTH, _HEIGHT = 150, 72

EDGES = (
    Edge("absent", "running", "a delivery\nclaims it", ((156, 232), (262, 232)), (204, 250)),
    Edge("running", "retrying", "self.retry()", ((318, 196), (318, 86)), (310, 128), "end"),
    Edge(
        "retrying",
        "running",
        "its next message\ncomes; or overdue\nby a lease",
        ((358, 86), (358, 196)),
        (368, 108),
        "start",
    ),
    Edge(
        "running",
        "released",
        "fails; Ignore,\nReject, replace",
        ((318, 268), (318, 430)),
        (310, 340),
        "end",
    ),
    Edge(
        "released",
        "running",
        "the next call\nclaims it",
        ((358, 430), (358, 268)),
        (368, 340),
        "start",
    ),
    Edge("running", "succeeded", "returns", ((412, 208), (600, 50)), (514, 142), "start"),
    Edge(
        "running",
        "failed",
        "fails, if that\nis stored",
        ((412, 224), (600, 178)),
        (504, 222),
        "start",
    ),
    Edge(
        "running",
        "unknown",
        "cut off too often\n(or by policy)",
        ((412, 240), (600, 306)),
        (490, 316),
        "start",
    ),
    Edge(
        "running",
        "compensating",
        "fails for good,\nwith steps to undo",
        ((412, 256), (600, 450)),
        (524, 402),
        "end",
    ),
    Edge(
        "running",
        "running",
        "cut off, and\nclaimed again",
        ((280, 196), (280, 166), (236, 166), (236, 212), (262, 212)),
        (228, 164),
        "end",
    ),
    Edge(
        "compensating",
        "released",
        "undone: the key is free",
        ((600, 476), (412, 476)),
        (506, 470),
    ),
    Edge(
        "compensating",
        "failed",
        "undone, if\nthe failure\nis stored",
        ((750, 466), (784, 466), (784, 178), (750, 178)),
        (792, 320),
        "start",
    ),
    Edge(
        "compensating",
        "unknown",
        "cut off\ntoo often",
        ((675, 430), (675, 342)),
        (683, 384),
        "start",
    ),
    Edge(
        "compensating",
        "compensating",
        "cut off, and gone on with",
        ((640, 502), (640, 526), (712, 526), (712, 502)),
        (676, 542),
    ),
)

#: A run that was held for lost may end after all, as long as nobody took over: this settles
#: "unknown" as it would have settled "running".
LATE = {"unknown": ("succeeded", "failed", "released", "retrying", "compensating")}
#: What leads there from everywhere: ``forget``, and the end of a record's time.
ANYWHERE = ("released", "absent")


def edges_of() -> set[tuple[str, str]]:
    """All that the chart says can happen, save the ways to :data:`ANYWHERE`."""
    drawn = {(edge.source, edge.target) for edge in EDGES}
    return drawn | {(source, target) for source, targets in LATE.items() for target in targets}


def draw() -> str:
    """Draw it."""
    words = [f"{e.source} to {e.target}: {' '.join(e.label.split())}" for e in EDGES]
    chart = Drawing("The states of a record", words)
    for edge in EDGES:
        chart.arrow(list(edge.points))
        x, y = edge.at
        chart.text(x, y, edge.label.split("\n"), anchor=edge.anchor)
    for name, ((x, y), lines) in STATES.items():
        chart.box(x, y, _WIDTH, _HEIGHT, "party" if name != "absent" else "pause")
        chart.text(x + _WIDTH / 2, y + 22, [name], "name")
        chart.text(x + _WIDTH / 2, y + 24 + LINE_HEIGHT, lines, "small")
    return chart.html(868, 552)
