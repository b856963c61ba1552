"""What the ledger and the fault log say: figures, and each thing that must not be."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.chaos.account import account_of
from tests.chaos.evidence import Answer, Done, Entry, Evidence, Published, Verdict, Violation
from tests.chaos.limits import Limits
from tests.chaos.plan import LEASE_S, Act

#: A lease is renewed at each third. So when its process stops, at least this much of it is left.
LEFT_S = LEASE_S / 2
#: How long a heartbeat may need after a stall to renew its lease, or to learn that another run has
#: taken the key.
RECOVERY_S = 2.0


@dataclass
class _Body:
    """One run of a body."""

    key: str
    task_id: str
    pid: int
    node: str
    token: Any
    #: Just before it asked for its key, which it was granted.
    asked: float
    began: float
    ended: float = math.inf
    #: When the store had taken its end, or refused it.
    settled: float = math.inf
    #: When its process was killed, as a time before and one after.
    killed: tuple[float, float] | None = None

    @property
    def over(self) -> float:
        """When it can't have done anything any more."""
        return min(self.ended, math.inf if self.killed is None else self.killed[0])


def judge(evidence: Evidence) -> Verdict:
    """Judge a run of chaos."""
    return _Judge(evidence).verdict()


class _Judge:
    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.bodies = _bodies(evidence)
        self.effects: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        self.step_records: dict[tuple[str, str, Any], float] = {}
        for entry in evidence.entries:
            if entry["event"] == "effect":
                self.effects[entry["key"], entry["step"]].append(entry)
            elif entry["event"] == "recorded" and entry["step"]:
                self.step_records[entry["key"], entry["step"], entry["token"]] = entry["at"]
        self.limits = Limits(evidence)
        self.violations: list[Violation] = []
        self.figures: Counter[str] = Counter()

    def verdict(self) -> Verdict:
        evidence = self.evidence
        self._overlaps()
        self._accepted_twice()
        self.ends = sum(e["event"] == "settled" and e["taken"] for e in evidence.entries)
        repeated = self._repeated_effects()
        self._rows()
        self._lost()
        self._answers(repeated)
        acts = Counter(fault.act for fault in evidence.faults)
        events = Counter(entry["event"] for entry in evidence.entries)
        keys = {key for one in evidence.published for key in one.keys.values()}
        figures = {
            "keys": len(keys),
            "calls": sum(len(one.keys) for one in evidence.published),
            "messages": events["sent"],
            "deliveries": events["received"],
            "bodies": events["begin"],
            "ends that were recorded": self.ends,
            "kills of processes": acts[Act.KILL_CHILD] + acts[Act.KILL_WORKER],
            "workers that ended by themselves": acts[Act.ENDED],
            "stops": acts[Act.STOP_CHILD] + acts[Act.STOP_WORKER],
            "kills of the server": acts[Act.KILL_SERVER],
            "pauses of the server": acts[Act.PAUSE_SERVER],
            "cuts": acts[Act.CUT],
            "stalls longer than the lease": sum(it.is_long_stall for it in evidence.faults),
            "effects": events["effect"] + sum(evidence.rows.values()),
            "repeated effects, each with its fault": self.figures["repeated"],
            "overlaps after a lost lease": self.figures["excused overlaps"],
            "answers by a run that was not recorded": self.figures["own answers"],
            "chords that Celery gave up in an outage": self.figures["chords given up"],
            "chords cut off as Celery counted a part": self.figures["chords not sent"],
            "messages lost by kombu": len(evidence.lost),
            "calls that went with them": self.figures["gone with them"],
        }
        return Verdict(figures, self._by_kind(), self.violations)

    def _by_kind(self) -> dict[str, Counter[str]]:
        table: dict[str, Counter[str]] = defaultdict(Counter)
        kinds: dict[str, str] = {}
        for one in self.evidence.published:
            name = f"{one.part} {one.kind}"
            table[name]["published"] += 1
            table[name]["calls"] += len(one.keys)
            for key in one.keys.values():
                if key not in kinds:
                    kinds[key] = name
                    table[name]["keys"] += 1
        for body in self.bodies:
            if body.key in kinds:
                table[kinds[body.key]]["bodies"] += 1
        for (key, _), effects in self.effects.items():
            if key in kinds:
                table[kinds[key]]["effects"] += len(effects)
        for key, count in self.evidence.rows.items():
            if key in kinds:
                table[kinds[key]]["effects"] += count
        return dict(table)

    # --- what must not be ------------------------------------------------------------------------

    def _overlaps(self) -> None:
        """No body begins while another one of its key holds the lease."""
        for key, bodies in _by_key(self.bodies).items():
            for first, later in _followed(bodies):
                second = next((body for body in later if body.began < first.over), None)
                if second is None:
                    continue
                # The next one only: from then on the first one holds nothing any more.
                if self._lease_was_lost(first, second):
                    self.figures["excused overlaps"] += 1
                else:
                    self._blame("overlap", key, "a body began while another held the lease")

    def _lease_was_lost(self, body: _Body, by: _Body) -> bool:
        """Whether a stall had cost a body its lease when the other one got it.

        It had not where some of the lease was left, or where the stall had been over for long
        enough that the lease was renewed before anybody took over.
        """
        return any(
            fault.is_long_stall
            and self._hits(fault, body)
            and body.asked <= fault.ended
            and max(fault.began, body.asked) + LEFT_S <= by.began
            and by.asked <= fault.ended + RECOVERY_S
            for fault in self.evidence.faults
        )

    def _accepted_twice(self) -> None:
        """One run of a key is accepted."""
        tokens: dict[str, set[Any]] = defaultdict(set)
        for entry in self.evidence.entries:
            if entry["event"] == "recorded" and not entry["step"]:
                tokens[entry["key"]].add(entry["token"])
        for key, accepted in tokens.items():
            if len(accepted) > 1:
                self._blame("accepted twice", key, f"the runs {sorted(accepted)} were accepted")

    def _repeated_effects(self) -> set[str]:
        """An effect is repeated only where a fault fell between the claim and the record.

        A step: between its own effect and its own record.
        """
        bodies = {(body.key, body.token, body.pid): body for body in self.bodies}
        repeated = set()
        for (key, step), effects in self.effects.items():
            if len(effects) == 1:
                continue
            # One is the run's that counts. Every other one needs a reason.
            unexplained = [
                effect
                for effect in effects
                if not self._was_cut_off(
                    bodies.get((key, effect["token"], effect["pid"])), effect, step
                )
            ]
            if len(unexplained) > 1:
                what = f"step {step} of the key" if step else "the key"
                self._blame("repeated effect", key, f"{what} had an effect again without a fault")
            else:
                self.figures["repeated"] += len(effects) - 1
                repeated.add(key)
        return repeated

    def _was_cut_off(self, body: _Body | None, effect: Entry, step: str) -> bool:
        if body is None:
            return False
        since, until = body.asked, body.settled
        if step:
            # It asked for the key just before: a run that stood still since then does not know.
            since = effect.get("asked", effect["at"])
            until = self.step_records.get((body.key, step, body.token), math.inf)
        if body.killed is not None and since <= body.killed[1] and body.killed[0] <= until:
            return True
        return any(
            fault.is_long_stall
            and self._hits(fault, body)
            and since <= fault.ended
            and fault.began <= until
            for fault in self.evidence.faults
        )

    def _rows(self) -> None:
        """A session or a keyed insert has one row a key, whatever fell where."""
        for key, count in self.evidence.rows.items():
            if count > 1:
                self._blame("repeated row", key, f"{count} rows, where there can be one")

    def _lost(self) -> None:
        """Every key that was called has had its effect."""
        happened = {key for key, _ in self.effects} | set(self.evidence.rows)
        callers: dict[str, list[Published]] = defaultdict(list)
        for one in self.evidence.published:
            for key in set(one.keys.values()):
                callers[key].append(one)
        given_up = {
            key
            for one in self.evidence.published
            for task_id, key in one.keys.items()
            if self.limits.was_never_sent(one, task_id)
            or self.limits.celery_gave_it_up(one, task_id, self.evidence.answers.get(task_id))
        }
        for key, publications in callers.items():
            if key in happened or key in given_up:
                continue
            if all(self.limits.took(one) for one in publications):
                continue
            ids = {task_id for one in publications for task_id in one.keys}
            why = f"no run of it has had its effect; the calls it belongs to: {sorted(ids)}"
            self._blame("lost", key, why, *ids)

    def _answers(self, repeated: set[str]) -> None:
        """Every call is answered, with its key's one outcome."""
        outcomes: dict[str, dict[str, str]] = defaultdict(dict)
        for one in self.evidence.published:
            for task_id, key in one.keys.items():
                answer = self.evidence.answers.get(task_id, Answer("PENDING"))
                if not answer.ready:
                    if self.limits.took(one):
                        self.figures["gone with them"] += 1
                    elif self.limits.was_never_sent(one, task_id):
                        self.figures["chords not sent"] += 1
                    else:
                        why = f"the call {task_id} is {answer.state}, of {one.part} {one.kind}"
                        self._blame("unanswered", key, why, *one.keys)
                elif self.limits.celery_gave_it_up(one, task_id, answer):
                    self.figures["chords given up"] += 1
                elif answer.state != "SUCCESS":
                    self._blame("failed", key, f"the call {task_id} got {answer.result}", *one.keys)
                else:
                    outcomes[key][task_id] = repr(answer.result)
        for key, answers in outcomes.items():
            if len(set(answers.values())) == 1:
                continue
            if key in repeated:
                self.figures["own answers"] += 1
            else:
                self._blame("differing answers", key, f"its calls got {answers}")

    # --- what is known ---------------------------------------------------------------------------

    def _hits(self, fault: Done, body: _Body) -> bool:
        if fault.act in (Act.KILL_SERVER, Act.PAUSE_SERVER):
            return body.node not in self.evidence.apart
        if fault.act in (Act.STOP_CHILD, Act.KILL_CHILD):
            return fault.pid == body.pid
        return fault.node == body.node

    def _blame(self, what: str, key: str, why: str, *ids: str) -> None:
        account = f"{why}\n{account_of(self.evidence, key, set(ids))}"
        self.violations.append(Violation(what, key, account))


def _bodies(evidence: Evidence) -> list[_Body]:
    bodies: list[_Body] = []
    open_ones: dict[tuple[int, str, Any], _Body] = {}
    asked: dict[tuple[str, Any], float] = {}
    settled: dict[tuple[str, Any], float] = {}
    kills = [fault for fault in evidence.faults if fault.is_kill]
    for entry in evidence.entries:
        if entry["event"] == "claimed":
            asked[entry["key"], entry["token"]] = entry["asked"]
        elif entry["event"] == "begin":
            body = _Body(
                entry["key"],
                entry["id"],
                entry["pid"],
                entry["node"],
                entry["token"],
                asked.get((entry["key"], entry["token"]), entry["at"]),
                entry["at"],
            )
            bodies.append(body)
            open_ones[body.pid, body.key, body.token] = body
        elif entry["event"] == "end":
            ended = open_ones.pop((entry["pid"], entry["key"], entry["token"]), None)
            if ended is not None:
                ended.ended = entry["at"]
        elif entry["event"] == "settled":
            settled.setdefault((entry["key"], entry["token"]), entry["at"])
    for body in bodies:
        body.settled = settled.get((body.key, body.token), math.inf)
        for kill in kills:
            hit = kill.pid == body.pid if kill.act is Act.KILL_CHILD else kill.node == body.node
            if hit and kill.ended >= body.asked:
                body.killed = (kill.began, kill.ended)
                break
    return bodies


def _by_key(bodies: Iterable[_Body]) -> dict[str, list[_Body]]:
    found: dict[str, list[_Body]] = defaultdict(list)
    for body in bodies:
        found[body.key].append(body)
    return found


def _followed(bodies: list[_Body]) -> Iterator[tuple[_Body, list[_Body]]]:
    """Each body, and those that began later."""
    bodies = sorted(bodies, key=lambda body: body.began)
    for place, first in enumerate(bodies):
        yield first, bodies[place + 1 :]
