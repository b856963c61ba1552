"""What the ledger and the fault log say, as a history: see ``tests.support.histories``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from tests.chaos.evidence import Answer, Evidence
from tests.chaos.limits import Limits
from tests.chaos.plan import Act
from tests.support.histories.operations import Operation

__all__ = ["history_of"]


def history_of(evidence: Evidence) -> Sequence[Operation]:
    """Give the history of a run of chaos, without the calls that Celery or kombu lost."""
    return sorted(_History(evidence).operations(), key=lambda one: one.at)


class _History:
    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.limits = Limits(evidence)
        self.zero = min((entry["at"] for entry in evidence.entries), default=0.0)
        self.pids: dict[str, set[int]] = defaultdict(set)
        for entry in evidence.entries:
            if "node" in entry and entry["event"] in ("begin", "end"):
                self.pids[entry["node"]].add(entry["pid"])
        #: What a run is known by, and the call and key of each.
        self.runs: dict[tuple[str, Any], dict[str, str]] = {}

    def operations(self) -> Iterator[Operation]:
        yield from self._callers()
        yield from self._faults()
        chains = {
            task_id
            for one in self.evidence.published
            if one.kind == "chain"
            for task_id in one.keys
        }
        for entry in self.evidence.entries:
            yield from self._of_entry(entry, chains)

    def _at(self, at: float) -> float:
        return at - self.zero

    def _callers(self) -> Iterator[Operation]:
        end = max((entry["at"] for entry in self.evidence.entries), default=self.zero)
        for one in self.evidence.published:
            for task_id, key in one.keys.items():
                answer = self.evidence.answers.get(task_id, Answer("PENDING"))
                if (
                    self.limits.took(one)
                    or self.limits.was_never_sent(one, task_id)
                    or self.limits.celery_gave_it_up(one, task_id, answer)
                ):
                    continue
                about = {"call": task_id, "key": key, "by": "caller"}
                yield Operation(self._at(one.at), "published", **about)
                value = _shown(answer.state, answer.result)
                yield Operation(self._at(end), "left", state=answer.state, value=value, **about)

    def _faults(self) -> Iterator[Operation]:
        for fault in self.evidence.faults:
            if fault.act in (Act.KILL_SERVER, Act.PAUSE_SERVER):
                apart = self.evidence.apart
                pids = {pid for node in self.pids if node not in apart for pid in self.pids[node]}
            elif fault.act in (Act.KILL_CHILD, Act.STOP_CHILD):
                pids = {fault.pid}
            elif fault.node:
                pids = self.pids[fault.node]
            else:
                continue  # a connection to the broker: copies come, and nobody stood still
            for pid in sorted(pids):
                if fault.is_kill:
                    # It died at some time in between.
                    yield Operation(self._at(fault.ended), "killed", by=str(pid))
                else:
                    began, ended = self._at(fault.began), self._at(fault.ended)
                    yield Operation(began, "stalled", by=str(pid), until=ended)

    def _of_entry(self, entry: Any, chains: set[str]) -> Iterator[Operation]:
        event, at = entry["event"], self._at(entry["at"])
        by = f"{entry['pid']}/{entry.get('copy') or entry.get('by') or ''}"
        if event == "begin":
            run = f"{entry['key']} {entry['token']} {entry['pid']}"
            about = {"call": entry["id"], "key": entry["key"], "run": run}
            self.runs[entry["key"], entry["token"]] = about
            yield Operation(at, "began", by=by, **about)
        elif event == "end":
            about = self.runs[entry["key"], entry["token"]]
            value = _shown("SUCCESS", entry.get("value"))
            state = entry.get("state", "returned")
            yield Operation(at, "ended", by=by, state=state, value=value, **about)
        elif event == "settled" and entry["taken"]:
            known = self.runs.get((entry["key"], entry["token"]))
            if known is not None and entry["state"] in ("succeeded", "failed"):
                yield Operation(at, "accepted", by=by, **known)
                yield Operation(at, "settled", by=by, state=entry["state"], **known)
        elif event == "stored" and not _is_of_a_chord(entry["value"]):
            value = _shown(entry["state"], entry["value"])
            yield Operation(
                at, "stored", call=entry["id"], by=by, state=entry["state"], value=value
            )
        elif event == "sent" and entry.get("sender") in chains:
            yield Operation(
                at, "sent", call=entry["sender"], by=by, state="link", value=entry["id"]
            )


def _is_of_a_chord(value: Any) -> bool:
    """Whether Celery gave up a chord there: it stores that as its body's, which may yet come."""
    return isinstance(value, dict) and value.get("exc_type") == "ChordError"


def _shown(state: str, result: Any) -> str:
    if state in ("FAILURE", "RETRY") and isinstance(result, dict):
        return f"{result.get('exc_type')}: {result.get('exc_message')}"
    return json.dumps(result)
