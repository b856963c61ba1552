"""Whether a history keeps the contract: one accepted run a key, its outcome for all, nothing lost.

It knows the contract, and nothing of the library. Where the contract says "unless the process
dies or stands still", the history has to show that it did.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tests.support.histories.operations import Operation

__all__ = ["RULES", "Terms", "Violation", "check"]

_FINAL = ("SUCCESS", "FAILURE", "REVOKED")
#: Errors that a call may get without a run of its own, and without its key's outcome.
_TYPED = (
    *("OutcomeUnknown", "IdempotencyInProgress", "IdempotencyKeyMismatch", "ResultNotKept"),
    *("StoreUnavailable", "RecordCorrupt"),
)
#: How a body ends whose call then has no result.
_WITHOUT_RESULT = ("ignored", "rejected", "replaced")


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that a history breaks."""

    #: One of :data:`RULES`.
    rule: str
    #: The call, or the key.
    whose: str
    key: str
    why: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.whose}: {self.why}"


@dataclass(frozen=True, slots=True)
class Terms:
    """What the task of a history promises besides."""

    #: Whether bodies run without a claim while the store is away.
    fails_open: bool = False
    #: Whether the key is free when its run ends: its outcome is for those that waited for it.
    frees: bool = False
    #: Whether each call runs in its turn, and gets its own outcome.
    in_turn: bool = False


def check(
    history: Sequence[Operation],
    lease_s: float,
    rules: Iterable[str] | None = None,
    *,
    terms: Terms = Terms(),
) -> list[Violation]:
    """Give what a history breaks; ``rules``: only those, of :data:`RULES`."""
    known = _History(history, lease_s, terms)
    return [
        Violation(rule, whose, known.keys.get(_id_of(whose), whose), why)
        for rule in (RULES if rules is None else rules)
        for whose, why in RULES[rule](known)
    ]


class _Run:
    """One execution of a body, put together."""

    def __init__(self, began: Operation) -> None:
        self.began = began
        self.ended: Operation | None = None
        self.accepted: Operation | None = None
        self.settled: Operation | None = None

    @property
    def over(self) -> float:
        return math.inf if self.ended is None else self.ended.at

    @property
    def is_open(self) -> bool:
        """Whether it held no claim, so that it neither stopped others nor was stopped."""
        return self.began.state == "open"


class _History:
    def __init__(self, history: Sequence[Operation], lease_s: float, terms: Terms) -> None:
        self.lease_s = lease_s
        self.terms = terms
        self.by_kind: dict[str, list[Operation]] = defaultdict(list)
        for operation in sorted(history, key=lambda one: one.at):
            self.by_kind[operation.what].append(operation)
        self.keys = {one.call: one.key for one in self.by_kind["published"]}
        self.runs = {one.run: _Run(one) for one in self.by_kind["began"]}
        for kind in ("ended", "accepted", "settled"):
            for one in self.by_kind[kind]:
                if one.run in self.runs:
                    setattr(self.runs[one.run], kind, one)

        #: Calls of which a retry comes after a body without a result: it may have published that by
        #: itself, so it is no copy.
        self.retried_by_hand = {
            run.began.call
            for run in self.runs.values()
            if run.settled is not None and self.how_ended(run.began.run) in _WITHOUT_RESULT
            for other in self.of_call(run.began.call)
            if (_retry_of(other) > _retry_of(run) and other.began.at > run.began.at)
            or (_retry_of(other) >= _retry_of(run) and self.how_ended(other.began.run) == "retried")
        }

        #: The deliveries whose bodies held no claim.
        open_runs = [run for run in self.runs.values() if run.is_open]
        self.open = {run.began.by for run in open_runs}
        self.open_values = {run.ended.value for run in open_runs if run.ended is not None}

    def is_untold(self, answer: Operation) -> bool:
        """Whether the store did not learn of an answer that was given while it was away."""
        is_open = answer.by in self.open or answer.value in self.open_values
        return is_open or answer.value.startswith("StoreUnavailable")

    def published_at(self, call: str) -> float:
        """When a call was made."""
        return min((one.at for one in self["published"] if one.call == call), default=-math.inf)

    def of_key(self, key: str) -> list[_Run]:
        return [run for run in self.runs.values() if run.began.key == key]

    def of_call(self, call: str, *, nested: bool = False) -> list[_Run]:
        return [
            run
            for run in self.runs.values()
            if run.began.call == call or (nested and _id_of(run.began.call) == call)
        ]

    def retried_while_unknown(self, call: str, until: float) -> bool:
        """Whether a call was told that nobody knows, and its run was then retried.

        The retry sends its own callbacks: what was sent before is forgotten with the attempt.
        """
        told = [one.at for one in self["stored"] if one.call == call and _is_open(one)]
        return any(
            one.call == call and one.state == "retried" and min(told, default=until) < one.at
            for one in self["ended"]
        )

    def how_ended(self, run: str) -> str:
        ended = self.runs[run].ended if run in self.runs else None
        return "" if ended is None else ended.state

    def unheard(self, key: str) -> list[str]:
        """The outcomes of runs whose process did not live to hear that they were accepted."""
        return [
            run.ended.value
            for run in self.of_key(key)
            if run.ended is not None and self.died(run.ended.process, run.ended.at, math.inf)
        ]

    def met_outage(self, one: Operation) -> bool:
        """Whether the delivery that did this could not ask the store."""
        return any(
            away.by == one.by and one.at - self.lease_s <= away.at <= one.at
            for away in self["away"]
        )

    def end_of_body(self, one: Operation) -> float:
        """When the body ended of the delivery that did this; a body asks nobody while it runs."""
        ends = [run.over for run in self.runs.values() if run.began.by == one.by]
        return min(ends, default=-math.inf)

    def died(self, process: str, since: float, until: float) -> bool:
        """Whether a process died in that time."""
        return any(one.process == process and since <= one.at <= until for one in self["killed"])

    def stood_still(self, process: str, since: float, until: float) -> bool:
        """Whether a process stood still in that time, long enough to lose a lease."""
        return any(
            one.process == process
            and one.at <= until
            and one.until >= since
            # A lease is renewed at each third: that much of it may be gone when it stops.
            and one.until - one.at >= self.lease_s / 3
            for one in self["stalled"]
        )

    def stood_still_at(self, process: str, at: float) -> bool:
        """Whether a process may have decided something before then, and done it after it."""
        return self.stood_still(process, at - self.lease_s / 3, at + self.lease_s / 3)

    def decided_before(self, one: Operation, at: float) -> bool:
        """Whether a process stood still at that instant, however shortly, and did this after it."""
        return any(
            stall.process == one.process
            and stall.at <= at <= stall.until <= one.at + self.lease_s / 3
            for stall in self["stalled"]
        )

    def granted_at(self, run: _Run) -> float:
        """When a run can have got its key: before its process stood still, if it just did."""
        began = run.began.at
        return min(
            (
                stall.at
                for stall in self["stalled"]
                if stall.process == run.began.process
                and stall.at <= began <= stall.until + self.lease_s / 3
            ),
            default=began,
        )

    def was_granted_before(self, run: _Run, at: float) -> bool:
        """Whether a run may have had its key since before then, and stood still before its body."""
        return self.stood_still_at(run.began.process, at)

    def was_cut_off_soon(self, one: Operation, until: float) -> bool:
        """Whether the process that did this may not have come to note it before ``until``."""
        return self.was_cut_off(one.process, one.at, min(until, one.at + self.lease_s))

    def is_retried_by_hand(self, run: _Run, earlier: Sequence[_Run]) -> bool:
        """Whether a run may be the retry that an earlier one published, which left no result."""
        least = min(map(_retry_of, earlier), default=math.inf)
        return run.began.call in self.retried_by_hand and _retry_of(run) > least

    def comes_of_a_retry(self, call: str, first: Operation, later: Operation) -> bool:
        """Whether something is done by the retry of a run that left no result, or after that."""
        runs = self.of_call(call)
        earlier = [run for run in runs if run.began.at < first.at]
        return self.answers_a_retry(call, later) or any(
            self.is_retried_by_hand(run, earlier)
            and (run.began.by == later.by or run.began.at <= later.at)
            for run in runs
        )

    def answers_a_retry(self, call: str, later: Operation) -> bool:
        """Whether something is done without a run, after a retry beside a run without a result.

        The retry, which may have been published by hand, gets the outcome of another call.
        """
        runs = self.of_call(call)
        left = {one.call: one.state for one in self["left"]}
        if left.get(call, _FINAL[0]) not in _FINAL or later.by in {run.began.by for run in runs}:
            return False
        return any(
            run.settled is not None
            and self.how_ended(run.began.run) in _WITHOUT_RESULT
            and run.settled.at <= later.at
            and self.how_ended(other.began.run) == "retried"
            and other.over <= later.at
            and _retry_of(other) >= _retry_of(run)
            for run in runs
            for other in runs
        )

    def is_forgotten(self, run: _Run) -> bool:
        """Whether a run came so late that nobody remembers its call's answer."""
        call, at = run.began.call, run.began.at
        known = [one for one in self["settled"] if one.call == call and one.until and one.at < at]
        return min((one.until for one in known), default=self.shared_until(call)) < at

    def shared_until(self, call: str) -> float:
        """Until when the answer is remembered of a call that has another one's outcome."""
        answers = [one for one in self["stored"] if one.call == call and one.state in _FINAL]
        if not answers or not answers[0].until:
            return math.inf
        key, first = self.keys.get(_id_of(call), ""), answers[0]
        windows = [one.until for one in self["accepted"] if one.key == key and one.at <= first.at]
        return max(first.until, *windows) if windows else first.until

    def is_replaced_at(self, call: str, at: float) -> bool:
        """Whether a run may not have heard of its call's answer before another task replaced it."""
        return any(
            self.how_ended(run.began.run) == "replaced"
            and self.stood_still_at(run.began.process, at)
            for run in self.of_call(call, nested=True)
        )

    def may_answer_alone(self, run: _Run) -> bool:
        """Whether a run's own outcome may answer its caller: not where it has lost its key."""
        if run.ended is None:
            return False
        if run.is_open or self.terms.in_turn:
            return True
        if run.settled is not None or run.ended.state == "replaced":
            return True  # the replacement is out before it is known whether the key is lost
        if any(
            other.settled is not None
            and self.how_ended(other.began.run) in _WITHOUT_RESULT
            and other.settled.at < run.ended.at
            and (run.began.at < other.settled.at or self.was_granted_before(run, other.settled.at))
            for other in self.of_key(run.began.key)
        ):
            return True  # it has lost its key to one that left no outcome
        at, most = run.ended.at, run.ended.at + self.lease_s
        return self.stood_still_at(run.ended.process, at) or any(
            away.by == run.ended.by and at <= away.at <= most for away in self["away"]
        )

    def was_cut_off(self, process: str, since: float, until: float) -> bool:
        return self.died(process, since, until) or self.stood_still(process, since, until)

    def __getitem__(self, kind: str) -> list[Operation]:
        return self.by_kind[kind]

    def answers(self) -> dict[str, list[Operation]]:
        """What the result backend stored of each call, beginning with its first answer."""
        stored: dict[str, list[Operation]] = defaultdict(list)
        # The parent stores that a body rejected its message: what is recorded of that, and when,
        # is up to the process that ran it.
        rejected = {
            (run.began.call, run.ended.value): run.ended.by
            for run in self.runs.values()
            if run.ended is not None and run.ended.state == "rejected"
        }
        for one in self["stored"]:
            one = replace(one, by=rejected.get((one.call, one.value), one.by))
            if one.state in _FINAL or stored[one.call]:
                stored[one.call].append(one)
        return {call: states for call, states in stored.items() if states}


_Found = Iterator[tuple[str, str]]


def _accepted_twice(known: _History) -> _Found:
    """From a key's first claim to the end of its window at most one run is accepted."""
    windows: dict[str, Operation] = {}
    for one in known["accepted"]:
        first = windows.setdefault(one.key, one)
        if first.run == one.run:
            continue
        if not first.until or one.at < first.until:
            yield one.key, f"{first.run} and {one.run} were accepted"
        windows[one.key] = one


def _ran_again(known: _History) -> _Found:
    """A call whose answer is recorded never begins again."""
    settled: dict[str, Operation] = {}
    for one in (*known["settled"], *known["accepted"]):
        if known.how_ended(one.run) == "requeued":
            continue  # it is to run again
        if one.call not in settled or one.at < settled[one.call].at:
            settled[one.call] = one
    for call, one in settled.items():
        first = known.runs[one.run]
        for run in known.of_call(call):
            if known.is_retried_by_hand(run, [first]) or known.is_forgotten(run):
                continue
            if run.is_open:
                continue  # it could not ask
            if run.began.at > one.at and not known.was_granted_before(run, one.at):
                yield call, f"{run.began.run} began at {run.began.at:.3f}, settled by {one.run}"


def _ran_after_answer(known: _History) -> _Found:
    """A call that was answered is never run, though its answer is not recorded."""
    for call, (first, *_) in known.answers().items():
        earlier = [run for run in known.of_call(call) if run.began.at < first.at]
        if any(known.how_ended(run.began.run) == "replaced" and not run.settled for run in earlier):
            continue  # its replacement has answered: the store can't know that
        if known.is_untold(first):
            continue
        for run in known.of_call(call):
            if run.began.at <= first.at or known.is_retried_by_hand(run, earlier):
                continue
            if run.is_open:
                continue
            if any(one.call == call and one.at <= run.began.at for one in known["settled"]):
                continue  # it is recorded
            if known.was_cut_off_soon(first, run.began.at) or known.is_forgotten(run):
                continue  # before it could be recorded that the call has its answer, or long after
            if not known.was_granted_before(run, first.at):
                yield call, f"{run.began.run} began, its answer was {first.state} {first.value}"


def _answer_changed(known: _History) -> _Found:
    """An answer that is recorded stays, RETRY and STARTED included."""
    left = {one.call: one for one in known["left"]}
    for call, (first, *later) in known.answers().items():
        is_recorded = any(
            _id_of(one.call) == call and one.at <= first.at for one in known["settled"]
        )
        runs = known.of_call(call, nested=True)
        late = [
            run.began.by
            for run in runs
            if run.over <= first.at
            and (run.settled is None or run.settled.at > first.at)
            and known.stood_still_at(run.began.process, first.at)
        ]
        memories = [one.until for one in known["settled"] if _id_of(one.call) == call]
        for one in later:
            if (one.state, one.value) == (first.state, first.value):
                continue
            if known.comes_of_a_retry(call, first, one):
                continue
            if known.is_untold(first) or known.is_untold(one):
                continue  # nobody could ask, or could be told
            if 0 < min(memories, default=0.0) < one.at:
                continue  # so late that nobody remembers
            known_until = max(
                same.until
                for same in (first, *later)
                if same.value == first.value and same.at < one.at
            )
            if 0 < known_until < one.at and any(run.began.at < first.at < run.over for run in runs):
                continue  # a run that went on ends when nobody remembers the answer
            if one.state in _FINAL and (one.by in late or known.is_replaced_at(call, first.at)):
                continue  # a run that could not be recorded answers its own caller
            if not is_recorded and known.was_cut_off_soon(first, one.at):
                continue  # before it could record that the call has its answer
            last = left.get(call)
            stays = last is None or last.state == first.state
            stays = stays or known.comes_of_a_retry(call, first, last)
            died = known.died(one.process, one.at, one.at + known.lease_s)
            if (stays or died) and known.stood_still_at(one.process, first.at):
                continue  # decided before the answer, written after it, and answered again
            if one.state == "RETRY" and known.decided_before(one, first.at):
                ends = {known.how_ended(run.began.run) for run in runs}
                if stays or ends & {"ignored", "rejected"}:
                    continue  # said after the answer; told again, unless no outcome is kept of it
            if stays and known.met_outage(one):
                continue  # it could not ask, and is answered again
            answer = f"{first.state} {first.value}"
            yield call, f"{one.state} {one.value} was stored at {one.at:.3f} over {answer}"


def _lost(known: _History) -> _Found:
    """Nothing that was enqueued is lost."""
    left = {one.call: one.state for one in known["left"]}
    answered = known.answers()
    for one in known["published"]:
        state = left.get(one.call, "PENDING")
        if state in _FINAL or one.call in answered:
            continue
        ends = [run.ended.state for run in known.of_call(one.call) if run.ended is not None]
        if not any(end in ("ignored", "rejected") for end in ends):
            yield one.call, f"it is {state} when all is over"


def _wrong_answer(known: _History) -> _Found:
    """Every duplicate gets the accepted run's outcome, or a typed error."""
    outcomes: dict[str, list[str]] = defaultdict(list)
    for one in known["accepted"]:
        ended = known.runs[one.run].ended if one.run in known.runs else None
        if ended is not None:
            outcomes[one.key].append(ended.value)  # one a window
    for one in known["left"]:
        if one.state not in ("SUCCESS", "FAILURE"):
            continue
        key = known.keys[one.call]
        own = [
            run.ended.value
            for run in known.of_call(one.call, nested=True)
            if run.ended and known.may_answer_alone(run)
        ]
        shared = _shared(known, one.call) if known.terms.frees else []
        if one.value in outcomes.get(key, []) or one.value in own or one.value in shared:
            continue
        if key not in outcomes and one.value in known.unheard(key):
            continue
        if one.state == "FAILURE":
            others = [run.ended.value for run in known.of_key(key) if run.ended]
            if one.value.partition(":")[0] in _TYPED or one.value in others:
                continue
        outcome = ", ".join(outcomes.get(key, [])) or "not accepted"
        yield one.call, f"it got {one.value}; the outcome is {outcome}"


def _shared(known: _History, call: str) -> list[str]:
    """The outcomes that a call may share where a key is free when its run ends.

    They are of runs that ended after the call was made. Where each runs in its turn it shares none.
    """
    if known.terms.in_turn:
        return []
    return [
        run.ended.value
        for run in known.of_key(known.keys[call])
        if run.ended is not None
        and not run.is_open
        # Until its end is recorded, others find it under way.
        and max(run.over, -math.inf if run.settled is None else run.settled.at)
        >= known.published_at(call)
    ]


def _ran_open(known: _History) -> _Found:
    """A body without a claim begins only where that is wanted, and the store did not answer."""
    for run in known.runs.values():
        # However long its process then stood still.
        met_outage = any(it.by == run.began.by and it.at <= run.began.at for it in known["away"])
        if run.is_open and not (known.terms.fails_open and met_outage):
            yield run.began.call, f"{run.began.run} began without a claim"


def _overlap(known: _History) -> _Found:
    """No body of a key begins while another one holds its lease."""
    for key in dict.fromkeys(known.keys.values()):
        guarded = [run for run in known.of_key(key) if not run.is_open]
        runs = sorted(guarded, key=lambda run: run.began.at)
        for at, first in enumerate(runs):
            if any(known.was_granted_before(first, other.began.at) for other in runs[:at]):
                continue  # it had lost its key before it began
            for second in runs[at + 1 :]:
                began = second.began.at
                if first.over <= began:
                    break
                process, late = first.began.process, known.granted_at(second) - known.lease_s
                if known.died(process, first.began.at, began):
                    break
                if known.stood_still(process, late, began):
                    break  # it has lost its key, to this run or another one
                if not known.was_granted_before(second, first.began.at):
                    yield key, f"{second.began.run} began while {first.began.run} ran"


def _callbacks(known: _History) -> _Found:
    """Callbacks are sent once a call, unless the sender died or stood still before noting that."""
    sent: dict[str, list[Operation]] = defaultdict(list)
    for one in known["sent"]:
        if not sent[one.call] or sent[one.call][-1].by != one.by:
            sent[one.call].append(one)
    for call, ones in sent.items():
        windows = [one.until for one in known["accepted"] if one.call == call and one.until]
        for first, second in pairwise(ones):
            if 0 < first.until < second.at or known.retried_while_unknown(call, second.at):
                continue
            if known.comes_of_a_retry(call, first, second):
                continue
            soon = min(second.at, first.at + known.lease_s)
            if known.died(first.process, first.at, soon):
                continue
            if known.met_outage(first) or known.met_outage(second):
                continue  # it could neither ask nor be told
            if any(run.is_open for run in known.of_call(call, nested=True)):
                continue  # so it was when its body began
            if len(windows) > 1 and min(windows) < second.at:
                continue  # by a run that outlived its key's window, and was accepted in another
            since = first.at - known.lease_s
            if not any(
                known.stood_still(one.process, max(since, known.end_of_body(one)), soon)
                for one in (first, second)
            ):
                both = [f"{one.state} by {one.by} at {one.at:.3f}" for one in (first, second)]
                yield call, " and ".join(both)


def _callbacks_lost(known: _History) -> _Found:
    """What hangs on a call's outcome is sent."""
    sent = {_id_of(one.call) for one in known["sent"]}
    told = {
        one.call
        for one in known["stored"]
        if _is_open(one) and not known.was_cut_off_soon(one, math.inf)
    }
    left = {one.call: one.state for one in known["left"]}
    for one in known["published"]:
        ends = [run.ended.state for run in known.of_call(one.call) if run.ended is not None]
        if any(end in _WITHOUT_RESULT for end in ends):
            continue
        wanted = {"SUCCESS": "link", "FAILURE": "errback"}.get(left.get(one.call, ""))
        if one.call in told:
            wanted = "errback"  # that nobody knows was told, and stays told
        if wanted in one.value.split() and one.call not in sent:
            yield one.call, f"its {wanted} was never sent"


def _is_open(answer: Operation) -> bool:
    """Whether it only says that nobody knows: the run may be alive, and settles it when it ends."""
    return answer.value.startswith("OutcomeUnknown")


def _retry_of(run: _Run) -> int:
    return int(run.began.value or 0)


def _id_of(call: str) -> str:
    return call.partition("/")[0]


#: The promises, by name.
RULES = {
    "accepted twice": _accepted_twice,
    "ran again": _ran_again,
    "ran after its answer": _ran_after_answer,
    "ran open": _ran_open,
    "answer changed": _answer_changed,
    "lost": _lost,
    "wrong answer": _wrong_answer,
    "overlap": _overlap,
    "callbacks twice": _callbacks,
    "callbacks lost": _callbacks_lost,
}
