"""What Celery and kombu lose by themselves, told apart by exactly what it leaves in the ledger."""

from __future__ import annotations

import re

from tests.chaos.evidence import Answer, Evidence, Published
from tests.chaos.plan import Act

#: How Celery fails a chord if broker or result backend are away at the moment at which it publishes
#: the body, or counts or reads the parts. It does not try that again.
_CHORD_GIVEN_UP = re.compile(
    r"(Callback error: |Join error: |Dependency \S+ raised )\S*(OperationalError|ConnectionError)"
)


class Limits:
    """The messages and chords of a run that Celery or kombu lost, and not this library."""

    def __init__(self, evidence: Evidence) -> None:
        self._faults = evidence.faults
        self._sent = {entry["id"] for entry in evidence.entries if entry["event"] == "sent"}
        self._counting = _cut_off_counting(evidence)
        #: The ids of messages that kombu lost.
        self._lost = set(evidence.lost.values())

    def took(self, one: Published) -> bool:
        """Whether kombu lost a message of this publication."""
        return not set(one.keys).isdisjoint(self._lost)

    def was_never_sent(self, one: Published, task_id: str) -> bool:
        """Whether it is a chord's body whose sender was cut off as it counted a part.

        Celery's backend gives whoever counts the last part a claim on sending the body, for as long
        as that could take: 21 seconds by default. If its process dies then, or the answer is lost
        with the server, the message's next delivery finds the claim taken, and nobody sends it.
        """
        return (
            _is_a_chords_body(one, task_id)
            and task_id not in self._sent
            and not self._counting.isdisjoint(one.keys)
        )

    def celery_gave_it_up(self, one: Published, task_id: str, answer: Answer | None) -> bool:
        """Whether it is a chord's body that Celery failed while broker or backend were away."""
        if answer is None or not _is_a_chords_body(one, task_id):
            return False
        if answer.state != "FAILURE" or answer.result["exc_type"] != "ChordError":
            return False
        away = (Act.KILL_SERVER, Act.PAUSE_SERVER, Act.CUT)
        return any(map(_CHORD_GIVEN_UP.match, map(str, answer.result["exc_message"]))) and any(
            fault.act in away and fault.part in ("", one.part) and fault.ended >= one.at
            for fault in self._faults
        )


def _cut_off_counting(evidence: Evidence) -> set[str]:
    """The chord parts whose counting began and did not end, by a kill or with the server.

    Celery may count such a part again, in the same process too: that finds the claim taken.
    """
    began: list[tuple[str, int, float]] = []
    for entry in evidence.entries:
        if entry["event"] == "counting":
            began.append((entry["id"], entry["pid"], entry["at"]))
        elif entry["event"] == "counted":
            # What ended is what this process had begun last.
            mine = [one for one in began if one[:2] == (entry["id"], entry["pid"])]
            began = [one for one in began if one not in mine[-1:]]
    nodes = {entry["pid"]: entry["node"] for entry in evidence.entries if "node" in entry}
    return {
        task_id
        for task_id, pid, at in began
        for fault in evidence.faults
        if fault.ended >= at
        and (
            (fault.act is Act.KILL_CHILD and fault.pid == pid)
            or (fault.is_kill and fault.node and fault.node == nodes.get(pid))
            or fault.act is Act.KILL_SERVER
        )
    }


def _is_a_chords_body(one: Published, task_id: str) -> bool:
    return one.kind == "chord" and one.keys[task_id].startswith("tail-")
