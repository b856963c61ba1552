"""The findings as tables for a terminal, for the README and for the documentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.compare.contenders import CONTENDERS, Contender
from benchmarks.compare.scenarios import SCENARIOS

__all__ = ["Report"]


@dataclass
class Report:
    """All findings of one run, with the versions that were compared."""

    #: The day of the run, ISO 8601.
    measured_on: str
    #: The versions that all contenders share: Python, Celery, redis-py, the server.
    versions: dict[str, str]
    #: Each contender's own version, by name.
    contenders: dict[str, str] = field(default_factory=dict)
    #: contender -> scenario -> brief, text, facts, seconds.
    findings: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    #: Contenders that could not be run, with the error.
    unavailable: dict[str, str] = field(default_factory=dict)

    @property
    def measured(self) -> list[Contender]:
        """The contenders of this run, in their usual order."""
        return [item for item in CONTENDERS if item.name in self.contenders]

    @property
    def complete(self) -> bool:
        """Whether every contender was measured in every scenario."""
        cells = [
            self.findings.get(contender.name, {}).get(scenario.name)
            for contender in self.measured
            for scenario in SCENARIOS
        ]
        return all(cell is not None and "error" not in cell["facts"] for cell in cells)

    def cell(self, contender: Contender, scenario: str, detail: str = "text") -> str:
        """Return one finding in words."""
        if contender.name in self.unavailable:
            return "could not be run"
        found = self.findings.get(contender.name, {}).get(scenario)
        return "not measured" if found is None else str(found[detail])

    def basis(self) -> str:
        """Return the versions in one line."""
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())

    def print(self, console: Console) -> None:
        """Return the table for a terminal: each scenario with all contenders below it."""
        table = Table(title="The same faults for each", show_lines=False, header_style="bold")
        table.add_column("Scenario", ratio=2)
        table.add_column("Contender", ratio=2)
        table.add_column("What happened", ratio=5)
        for scenario in SCENARIOS:
            title = scenario.title
            for contender in self.measured:
                table.add_row(title, contender.title, self.cell(contender, scenario.name))
                title = ""
            table.add_section()
        console.print(table)
        for contender in self.measured:
            version = self.contenders[contender.name]
            console.print(f"[bold]{contender.title}[/] {version}: {contender.purpose}")
            if contender.name in self.unavailable:
                console.print(f"  could not be run: {self.unavailable[contender.name]}")
        console.print(f"Measured on {self.measured_on} with {self.basis()}.")

    def markdown(self) -> str:
        """Return the short table, with a row for each scenario and a column for each contender."""
        titles = [f"{item.title} {self.contenders[item.name]}" for item in self.measured]
        lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
        for scenario in SCENARIOS:
            cells = [self.cell(item, scenario.name, "brief") for item in self.measured]
            lines.append("| " + " | ".join([scenario.title, *cells]) + " |")
        lines += ["", f"Measured on {self.measured_on} with {self.basis()}."]
        return "\n".join(lines) + "\n"

    def rst(self) -> str:
        """Return the part of the documentation: the short table, then every finding in full."""
        lines = [
            ".. Written by ``python -m benchmarks.compare --rst``: run it again, don't edit it.",
            "",
            f"Measured on {self.measured_on} with {self.basis()}.",
            "",
            ".. list-table::",
            "   :header-rows: 1",
            "   :stub-columns: 1",
            "",
            "   * -",
        ]
        lines += [f"     - {item.title} {self.contenders[item.name]}" for item in self.measured]
        for scenario in SCENARIOS:
            lines.append(f"   * - {scenario.title}")
            lines += [f"     - {self.cell(item, scenario.name, 'brief')}" for item in self.measured]
        for scenario in SCENARIOS:
            heading = scenario.title[0].upper() + scenario.title[1:]
            lines += ["", heading, "~" * len(heading), "", f"{scenario.setting}", ""]
            for item in self.measured:
                lines.append(f"- **{item.title}**: {self.cell(item, scenario.name)}.")
        for name, error in self.unavailable.items():
            lines += ["", f"``{name}`` could not be run: ``{error}``"]
        return "\n".join(lines) + "\n"
