"""Shows the progress of the acts, then one table."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from celery_idempotent.errors import how_to_install
from examples.demo.acts import Act
from examples.demo.scene import LABELS, Scene
from examples.demo.stage import IDEMPOTENT, PLAIN

try:
    from rich import box
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text
except ImportError as exc:
    raise ImportError(f"the demo draws its table with rich: {how_to_install('demo')}") from exc

_CAVEAT = (
    "Both sides had the same broker, acks_late and reject_on_worker_lost.\n"
    "What no task queue can do by itself: a crash after the money moved, before that is recorded, "
    "runs the body again. The last act shows what makes that harmless: hand "
    "self.idempotency.key_for(...) to the bank, write through self.idempotency.session, or go in "
    "steps, of which only the one that was cut is repeated (here a mail, and not the payment)."
)

__all__ = ["Performance", "Report", "table"]


@dataclass
class Performance:
    """One act on both sides, with its progress.

    Attributes:
        act: the act.
        scenes: by side; empty until it begins.
    """

    act: Act
    scenes: dict[str, Scene] = field(default_factory=dict)

    def verdict(self) -> tuple[str, str]:
        """The table's text on the promises, and its colour."""
        scene = self.scenes.get(IDEMPOTENT)
        if scene is None:
            return "", ""
        if not scene.done:
            return "...", "dim"
        return ("BROKEN", "bold red") if self.broken() else ("held", "bold green")

    def broken(self) -> list[str]:
        """A sentence about what did not hold on the idempotent side, if anything."""
        scene = self.scenes[IDEMPOTENT]
        if scene.failure is not None:
            return [f"{self.act.title}: could not be played to its end: {scene.failure}."]
        seen = scene.evidence
        promises = "; ".join(promise.says for promise in self.act.broken(seen))
        if not promises:
            return []
        figures = (
            f"calls {seen.calls}, bodies begun {seen.attempts}, charges {seen.charges}, "
            f"answered {seen.answered}, redelivered {seen.redeliveries}"
        )
        wrong = [repr(answer) for answer in seen.answers if not isinstance(answer, dict)]
        instead = f"; instead of a receipt: {', '.join(wrong)}" if wrong else ""
        return [f"{self.act.title}: this did not hold: {promises} ({figures}{instead})."]


def table(performances: Sequence[Performance], *, compact: bool = False) -> Table:
    """Return the present figures of all acts on both sides."""
    # Without lines between the acts the table fits into a terminal of 24 rows.
    lines = not compact
    drawn = Table(box=box.HORIZONTALS, pad_edge=False, padding=0)
    drawn.add_column("What happens")
    drawn.add_column("Side", no_wrap=True)
    for name in ("Calls", "Charges", "Answered", "Re-\ndelivered"):
        drawn.add_column(name, justify="right")
    drawn.add_column("Promise")
    for performance in performances:
        sides = {side: _figures(performance.scenes.get(side)) for side in (PLAIN, IDEMPOTENT)}
        words, colour = performance.verdict()
        drawn.add_row(
            performance.act.title,
            Text.assemble((LABELS[PLAIN], "dim"), "\n", (LABELS[IDEMPOTENT], "bold")),
            *(
                f"{plain}\n{ours}"
                for plain, ours in zip(sides[PLAIN], sides[IDEMPOTENT], strict=True)
            ),
            Text.assemble("\n", (words, colour)),
            end_section=lines,
        )
    return drawn


def _figures(scene: Scene | None) -> tuple[str, ...]:
    if scene is None:
        return ("", "", "", "")
    seen = scene.evidence
    return tuple(str(n) for n in (seen.calls, seen.charges, seen.answered, seen.redeliveries))


class Report:
    """Shows progress: on a terminal as a growing table, elsewhere as one line for each event.

    Use it as a context manager around the acts, and call :meth:`conclude` after it.
    """

    def __init__(self, performances: Sequence[Performance]) -> None:
        self._performances = performances
        self._began = time.monotonic()
        self._line = ""
        self._console = Console(highlight=False)
        # Not is_terminal, which FORCE_COLOR makes true in a pipe.
        moving = sys.stdout.isatty() and not self._console.is_dumb_terminal
        # We refresh it ourselves, from the thread that also looks for Ctrl-C.
        self._live = Live(console=self._console, auto_refresh=False) if moving else None

    def __enter__(self) -> Report:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            # The last frame disappears; the final table stays.
            self._live.update(Text(), refresh=True)
            self._live.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._began

    def say(self, what: str, side: str = "") -> None:
        """Report an event."""
        who = f"{LABELS[side]}: " if side else ""
        if self._live is None:
            self._console.print(f"{self.seconds:5.1f}s  {who}{what}", soft_wrap=True, markup=False)
        elif not side:
            self._line = what

    def refresh(self) -> None:
        """Show the figures as they are now."""
        if self._live is not None:
            self._live.update(self._frame(), refresh=True)

    def conclude(self) -> list[str]:
        """Print the table and what it means.

        Returns:
            A sentence for each act that broke a promise.
        """
        self._console.print()
        self._console.print(table(self._performances))
        seen = {
            side: [performance.scenes[side].evidence for performance in self._performances]
            for side in (PLAIN, IDEMPOTENT)
        }
        orders = {order for evidence in seen[IDEMPOTENT] for order in evidence.orders}
        sums = {side: sum(evidence.charges for evidence in seen[side]) for side in seen}
        self._console.print(
            f"Orders to be paid: {len(orders)}. Charges by {LABELS[PLAIN]}: {sums[PLAIN]}; "
            f"by {LABELS[IDEMPOTENT]}: {sums[IDEMPOTENT]}."
        )
        broken = [words for performance in self._performances for words in performance.broken()]
        if not broken:
            self._console.print(f"Every promise held, in {self.seconds:.0f} s.\n\n{_CAVEAT}")
        return broken

    def warn(self, sentences: Sequence[str]) -> None:
        """Print to stderr, unwrapped: a path must stay whole."""
        sys.stdout.flush()
        for sentence in sentences:
            print(sentence, file=sys.stderr)

    def _frame(self) -> RenderableType:
        now = Text(f"{self.seconds:4.0f}s  {self._line}", style="bold")
        doing = [
            Text(f"       {LABELS[side]}: {scene.doing}", style="dim")
            for performance in self._performances
            for side, scene in performance.scenes.items()
            if not scene.done and scene.doing
        ]
        return Group(table(self._performances, compact=True), now, *doing)
