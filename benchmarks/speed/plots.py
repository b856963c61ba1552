"""Pictures of a run, as SVG that changes only where a figure does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.speed.measure import Goal, Section

# Without this it looks for a display.
matplotlib.use("svg")
from matplotlib import pyplot as plt

__all__ = ["draw"]

_HOLDS, _FAILS, _PLAIN = "#2a7f62", "#b3402e", "#5b7db1"
#: Goals that hold by a larger factor are drawn to the edge.
_WIDEST = 6.0
_STYLE = {
    # Fixed, because otherwise every run would change every line.
    "svg.hashsalt": "celery-idempotent",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_PANELS = {
    "first": "first execution",
    "replay": "replay by the worker",
    "enqueue": "duplicate stopped at the enqueue",
    "bytes": "bytes of a finished key",
}


def draw(folder: Path, section: Section) -> list[Path]:
    """Draw the pictures of a run, and return the files that were written."""
    folder.mkdir(exist_ok=True)
    with plt.rc_context(_STYLE):  # type: ignore[arg-type,unused-ignore]
        drawn = {"goals": _goals(section.goals)}
        if "peers" in section.tables:
            drawn["peers"] = _peers(section.tables["peers"])
        if "growth" in section.tables:
            drawn["growth"] = _growth(section.tables["growth"])
        paths = []
        for name, figure in drawn.items():
            paths.append(folder / f"{name}.svg")
            figure.savefig(paths[-1], metadata={"Date": None, "Creator": None}, facecolor="white")
            plt.close(figure)
    return paths


def _goals(goals: Sequence[Goal]) -> Any:
    """Draw each goal's figure divided by its bound, so that a goal on the right side holds."""
    shown = [goal for goal in goals if goal.bound and goal.figure]
    shares = [_share(goal, goal.figure) for goal in shown if goal.figure]
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(shown) + 1.0), layout="constrained")
    places = range(len(shown))
    colors = [_HOLDS if goal.holds else _FAILS for goal in shown]
    # Bars begin at the line: to the right is better than the goal, to the left worse. The dot shows
    # a goal that just holds, which has no bar.
    axes.barh(places, [share - 1 for share in shares], left=1, color=colors, height=0.5)
    axes.scatter(shares, places, c=colors, s=25, zorder=3)
    # One goal that holds by far must not shorten all the other bars.
    axes.set_xlim(min(0.8, *shares) * 0.95, _WIDEST)
    for place, share in zip(places, shares, strict=True):
        if share > _WIDEST:
            axes.annotate(f"{share:.0f} ", (_WIDEST, place), ha="right", va="center", color="white")
    for place, goal in zip(places, shown, strict=True):
        if goal.bounds is not None:
            sure = [_share(goal, figure) for figure in goal.bounds]
            axes.plot(sure, [place, place], color="black", linewidth=1, zorder=2)
    axes.set_yticks(places, [f"{goal.number}  {goal.what}" for goal in shown], fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xticks([0.8, 1, 1.5, 2, 3, 4, 6], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("times what its goal asks for; thin: where it lies with 95 %")
    return figure


def _share(goal: Goal, figure: float) -> float:
    """Return by what factor a figure is better than its goal."""
    bound = goal.bound or 1.0
    return figure / bound if goal.relation == ">=" else bound / figure


def _peers(rows: Sequence[dict[str, Any]]) -> Any:
    """Draw the time of each peer as a multiple of ours."""
    panels = {
        which: [(row, row["ratios"][which]) for row in rows if which in row["ratios"]]
        for which in _PANELS
    }
    panels = {which: found for which, found in panels.items() if found}
    sizes = [len(found) + 1 for found in panels.values()]
    figure, all_axes = plt.subplots(
        len(panels),
        1,
        figsize=(8, 0.38 * sum(sizes) + 0.6 * len(sizes)),
        layout="constrained",
        gridspec_kw={"height_ratios": sizes},
        squeeze=False,
    )
    for axes, (which, found) in zip(all_axes[:, 0], panels.items(), strict=True):
        places, values = range(len(found)), [value for _, value in found]
        bars = axes.barh(
            places, values, color=[_PLAIN if value >= 1 else _FAILS for value in values], height=0.6
        )
        for bar, (row, _) in zip(bars, found, strict=True):
            bar.set_alpha(1 if row["keeps_outcome"] else 0.45)
        axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3, fontsize=8)
        axes.set_yticks(places, [f"{row['name']} {row['version']}" for row, _ in found])
        axes.invert_yaxis()
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xlim(0, max(*values, 1) * 1.12)
        axes.set_title(_PANELS[which], loc="left", fontsize=9, fontweight="bold")
    figure.supxlabel(
        "as a multiple of ours: right of the line we are ahead; pale: keeps no outcome", fontsize=9
    )
    return figure


def _growth(curve: Sequence[dict[str, float]]) -> Any:
    """Draw the time of a claim and completion against the number of records."""
    figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
    axes.plot(
        [1_000, *(point["records"] for point in curve)],
        [1.0, *(point["ratio"] for point in curve)],
        marker="o",
        color=_PLAIN,
    )
    axes.axhline(1.05, color=_FAILS, linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_ylim(0, max(1.3, *(point["ratio"] * 1.1 for point in curve)))
    axes.set_xlabel("records in the store")
    axes.set_ylabel("time, to that at 1,000")
    return figure
