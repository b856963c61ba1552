"""The page "Works with": its table is made of the last recorded run, and of the catalogue."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from tests.ecosystem.catalogue import NOT_RUN, ROWS

__all__ = ["RUN", "TABLE", "is_right", "record", "table"]

DOCS = Path(__file__).parents[2] / "docs"
#: What the last recorded run found, and the table that is made of it.
RUN = DOCS / "works-with-run.json"
TABLE = DOCS / "works-with-table.inc"


def is_right(answer: dict[str, Any]) -> bool:
    """Whether all that was tried of a row holds."""
    return set(answer["cases"].values()) == {"ok"}


def record(found: dict[str, dict[str, Any]]) -> None:
    """Write down what a run found; rows that it left out keep what is written of them."""
    known: dict[str, Any] = json.loads(RUN.read_text("utf-8")) if RUN.exists() else {}
    today = datetime.date.today().isoformat()
    for adapter, answer in found.items():
        known[adapter] = {"version": answer["version"], "on": today, "cases": answer["cases"]}
    rows = {row.adapter: known[row.adapter] for row in ROWS if row.adapter in known}
    RUN.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    TABLE.write_text(table(rows), "utf-8")


def table(rows: dict[str, Any]) -> str:
    """Return the table of the page, in reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 25 20 13 42", ""]
    lines += ["   * - With", "     - Version", "     - Last run", "     - What to know"]
    for row in ROWS:
        version = f"{row.package} {rows[row.adapter]['version']}"
        lines += [f"   * - {row.title}", f"     - {version}", f"     - {rows[row.adapter]['on']}"]
        lines += [f"     - {row.know}".rstrip()]
    for left in NOT_RUN:
        lines += [f"   * - {left.title}", "     - not run", "     -", f"     - {left.why}"]
    return "\n".join(lines) + "\n"
