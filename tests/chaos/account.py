"""What the ledger says of one key, and the faults near it, in the order of time."""

from __future__ import annotations

from tests.chaos.evidence import Entry, Evidence

#: The lines that tell of a message, and not of a key.
_OF_MESSAGES = ("sent", "received", "counting", "counted")


def account_of(evidence: Evidence, key: str, ids: set[str]) -> str:
    """Give the lines of a key, and of the messages with these ids or that ran it."""
    lines = [entry for entry in evidence.entries if entry.get("key") == key]
    ids = ids | {line["id"] for line in lines if "id" in line}
    lines += [
        entry for entry in evidence.entries if entry["event"] in _OF_MESSAGES and entry["id"] in ids
    ]
    lines.sort(key=lambda line: line["at"])
    if not lines:
        return "  the ledger says nothing of it"
    first, last = lines[0]["at"] - 1, lines[-1]["at"] + 1
    told = [(line["at"], _told(line)) for line in lines]
    for fault in evidence.faults:
        if fault.ended >= first and fault.began <= last:
            whom = f"{fault.node} {fault.pid or ''}".strip()
            what = f"-- {fault.act.value} {whom}".rstrip()
            told.append((fault.began, f"{what} ({fault.seconds:.2f} s)"))
    zero = min(entry["at"] for entry in evidence.entries)
    return "\n".join(f"  {at - zero:9.3f} s  {text}" for at, text in sorted(told))


def _told(line: Entry) -> str:
    hidden = ("event", "at", "key", "receipt")
    rest = " ".join(
        f"{name}={value}" for name, value in line.items() if name not in hidden and value
    )
    return f"{line['event']} {rest}"
