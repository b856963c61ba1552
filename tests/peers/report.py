"""The tables of the documentation, made of what was seen."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from tests.peers.bench import Case, Peer, Seen

#: The modules of the libraries.
PEERS = ("once", "singleton", "heimdall")
DOCS = Path(__file__).parents[2] / "docs"


def table_path(name: str) -> Path:
    """Where the table of a library is kept."""
    return DOCS / f"migrating-{name}.inc"


def verdict_of(case: Case, there: Seen, here: Seen) -> str:
    """Whether the two are the same: that is seen, and what a case says has to agree with it."""
    same = there.facts == here.facts
    assert same == (case.verdict == "same"), (
        f"{case.says} It is said to be {case.verdict}. There: {there}. Here: {here}."
    )
    assert same or case.why, case.says
    return "the same" if same else f"{case.verdict}: {case.why}"


def write(peer: Peer, found: list[tuple[Case, Seen, Seen]]) -> str:
    """The table of a library."""
    version = metadata.version(peer.distribution)
    lines = [
        ".. Written by ``python -m tests.peers``: run it again, don't edit it.",
        "",
        f"Played with {peer.name} {version}.",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: 26 24 24 26",
        "",
        "   * - What it documents",
        f"     - {peer.name}",
        "     - celery-idempotent",
        "     - Is it the same?",
    ]
    for case, there, here in found:
        lines += [
            f"   * - {case.says}",
            f"     - {there}",
            f"     - {here}",
            f"     - {verdict_of(case, there, here)}",
        ]
    return "\n".join(lines) + "\n"


def without_versions(table: str) -> str:
    """A table as it is compared: a newer version that does the same is no difference."""
    return "\n".join(line for line in table.splitlines() if not line.startswith("Played with"))
