"""The guards of waiting: who marks a record, and who is told that its run is over."""

from __future__ import annotations

from tests.mutants.mutant import Mutant, pair

__all__ = ["WAITED"]

WAITED: list[Mutant] = [
    *pair(
        "a busy claim marks the record",
        ("if record.is_awaited or not _keeps_waiting(record, 0):", "if True:"),
        "claim",
        ("if not is_awaited(record.flags) and keeps_waiting", "if false and keeps_waiting"),
    ),
    *pair(
        "the mark goes with the end of the run",
        ("is_awaited=not wakes), wakes=wakes)", "is_awaited=True), wakes=wakes)"),
        "record",
        (
            "  flags = flags % 2\n  if keeps_waiting",
            "  flags = flags % 2 + AWAITED\n  if keeps_waiting",
        ),
    ),
    *pair(
        "the mark stays while a run goes on",
        ("_replace(is_awaited=not wakes)", "_replace(is_awaited=False)"),
        "record",
        ("    flags = flags + AWAITED\n", ""),
    ),
    *pair(
        "the lease of a dead process keeps nobody waiting",
        ("    if record.until_ms <= now_ms:\n        return 0\n", ""),
        "record",
        ("  if until_ms <= now_ms then return 0 end\n", ""),
    ),
]
