"""What was seen, as a table for a terminal and for the documentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.graveyard.situations import SITUATIONS, Situation

__all__ = ["OURS", "Report"]

OURS = "idempotent"
WORDS = {"right": "right", "wrong": "wrong", "not claimed": "not claimed", "error": "not played"}


@dataclass
class Report:
    """All that was seen in one run, with the versions that were played."""

    #: The day of the run, ISO 8601.
    measured_on: str
    #: The versions that all libraries share.
    versions: dict[str, str]
    #: library -> its title and version.
    libraries: dict[str, str] = field(default_factory=dict)
    #: library -> situation -> verdict, effects, callers, faults, seconds.
    seen: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    #: Libraries that could not be played, with the error.
    unavailable: dict[str, str] = field(default_factory=dict)

    def score(self, library: str) -> tuple[int, int]:
        """How many were right, of how many that the library claims."""
        verdicts = [it["verdict"] for it in self.seen.get(library, {}).values()]
        return verdicts.count("right"), len(verdicts) - verdicts.count("not claimed")

    def is_good(self) -> bool:
        """Whether everything could be played, and ours was right in all."""
        found = [it["verdict"] for seen in self.seen.values() for it in seen.values()]
        ours = [it["verdict"] for it in self.seen.get(OURS, {}).values()]
        return not self.unavailable and "error" not in found and set(ours) <= {"right"}

    def cell(self, library: str, situation: Situation) -> str:
        """A verdict, with what was wrong."""
        found = self.seen.get(library, {}).get(situation.name)
        if found is None:
            return "not played"
        if found["verdict"] == "wrong":
            # A play that looks twice can see the same thing twice.
            return f"wrong: {'; '.join(dict.fromkeys(found['faults']))}"
        return WORDS[found["verdict"]]

    def print(self, console: Console) -> None:
        """Print the scores, and each situation that a library got wrong."""
        for library, title in self.libraries.items():
            if library in self.unavailable:
                console.print(f"{title}: could not be played: {self.unavailable[library]}")
                continue
            right, claimed = self.score(library)
            played = len(self.seen.get(library, {}))
            table = Table(
                title=f"{title}: {right} of {claimed}; {played - claimed} not claimed",
                show_header=False,
                title_justify="left",
            )
            for situation in SITUATIONS:
                found = self.seen.get(library, {}).get(situation.name)
                if found and found["verdict"] in ("wrong", "error"):
                    table.add_row(situation.name, self.cell(library, situation))
            console.print(table)

    def rst(self) -> str:
        """The part of the documentation: the scores, then every situation."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines = [
            ".. Written by ``python -m benchmarks.graveyard --rst``: run it again, don't edit it.",
            "",
            f"Played on {self.measured_on} with {versions}.",
            "",
            ".. list-table::",
            "   :header-rows: 1",
            "",
            "   * - Library",
            "     - Right",
            "     - Wrong",
            "     - Not claimed",
        ]
        for library, title in self.libraries.items():
            right, claimed = self.score(library)
            lines += [
                f"   * - {title}",
                f"     - {right}",
                f"     - {claimed - right}",
                f"     - {len(self.seen.get(library, {})) - claimed}",
            ]
        for situation in SITUATIONS:
            heading = f"{situation.project} #{situation.number}"
            lines += [
                "",
                heading,
                "~" * len(heading),
                "",
                f"{situation.told} (`the report <{situation.address}>`__)",
                "",
                f"*Who is right:* {situation.right}",
                "",
            ]
            by_cell: dict[str, list[str]] = {}
            for library, title in self.libraries.items():
                by_cell.setdefault(self.cell(library, situation), []).append(
                    title.rpartition(" ")[0]
                )
            for cell, titles in by_cell.items():
                lines.append(f"- {', '.join(titles)}: {cell}.")
        return "\n".join(lines) + "\n"
