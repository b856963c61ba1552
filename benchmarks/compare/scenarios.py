"""The scenarios: each plays a fault on the bench's contender and returns a finding."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from celery import chord

from benchmarks.compare.bench import Bench
from benchmarks.playing.bench import Answer, BenchError, Call
from benchmarks.playing.ledger import Run

__all__ = ["GROUPS", "SCENARIOS", "Finding", "Group", "Scenario"]


@dataclass(frozen=True)
class Finding:
    """The behaviour of one contender in one scenario."""

    #: A few words, for a cell of a wide table.
    brief: str
    #: One or two clauses.
    text: str
    #: The numbers behind it.
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenario:
    """One row of the comparison."""

    name: str
    title: str
    play: Callable[[Bench], Finding]

    @property
    def setting(self) -> str:
        """A sentence that describes it."""
        return " ".join((self.play.__doc__ or "").split())


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: 1 effect, 2 effects."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def told(answer: Answer, call: Call, first: Call, charges: list[Run]) -> str:
    """Return an answer in words; a result is described by the charge that it reports."""
    if answer.kind == "result":
        charger = next((run.task_id for run in charges if run.run_id == answer.detail), None)
        if charger is None:
            return "a result that no charge gave"
        if charger == call.task_id and call is first:
            return "its result"
        if charger == first.task_id:
            return "the first call's result"
        return "a result of its own" if charger == call.task_id else "another call's result"
    if answer.kind == "refused":
        return f"a refusal ({answer.detail})"
    if answer.kind == "error":
        return f"an error ({answer.detail})"
    return "None" if answer.kind == "none" else "no answer"


def _finding(
    charges: list[Run],
    answers: list[Answer],
    *,
    text: str,
    brief: str = "",
    **facts: Any,
) -> Finding:
    """Make a finding that begins with the effects, with the numbers that all findings have."""
    effects = count(len(charges), "effect")
    kinds = dict(Counter(answer.kind for answer in answers))
    return Finding(
        brief=f"{effects}{brief}",
        text=f"{effects}{text}",
        facts={"effects": len(charges), "answers": kinds, **facts},
    )


def _answered(answers: list[Answer]) -> str:
    return f"{sum(answer.kind == 'result' for answer in answers)} of {len(answers)} answered"


def at_once(bench: Bench) -> Finding:
    """Ten callers at the same moment, each in a process of its own."""
    bench.start_worker()
    calls = bench.call_at_once(10, "at-once", work=1.0)
    answers = bench.answers(*calls)
    text = f"; {_answered(answers)}"
    refusals = {str(answer.detail) for answer in answers if answer.kind == "refused"}
    if refusals:
        text += f", the others refused ({', '.join(sorted(refusals))})"
    return _finding(
        bench.ledger.charges("at-once"), answers, brief=f", {_answered(answers)}", text=text
    )


def later(bench: Bench) -> Finding:
    """The same call again, after the first was answered."""
    first = bench.call("later")
    bench.answers(first)
    second = bench.call("later")
    answers = bench.answers(second)
    charges = bench.ledger.charges("later")
    return _finding(
        charges, answers, text=f"; the duplicate got {told(answers[0], second, first, charges)}"
    )


def backoff(bench: Bench) -> Finding:
    """Two duplicates while the first call waits for its retry."""
    first = bench.call("backoff", refusals=1)
    bench.wait_for(lambda: bench.state(first) == "RETRY", "the first attempt is to be retried")
    duplicates = [bench.call("backoff", refusals=1) for _ in range(2)]
    answers = bench.answers(first, *duplicates)
    charges = bench.ledger.charges("backoff")
    retried = sum(run.task_id == first.task_id for run in bench.ledger.runs("backoff")) > 1
    words = Counter(
        told(answer, call, first, charges)
        for answer, call in zip(answers[1:], duplicates, strict=True)
    )
    text = "" if retried else "; the retry never ran"
    text += f"; first caller: {told(answers[0], first, first, charges)}; duplicates: "
    text += ", ".join(f"{number} times {word}" for word, number in words.items())
    brief = f", {_answered(answers)}" + ("" if retried else ", retry lost")
    return _finding(charges, answers, brief=brief, text=text, retry_ran=retried)


def chord_header(bench: Bench) -> Finding:
    """A chord of three, two of which are the same call."""
    charge, summary = bench.shop.charge, bench.shop.summary
    header = [charge.s(order_id=name, work=0.5) for name in ("chord", "chord", "chord-other")]
    call = bench.attempt(lambda: chord(header)(summary.s(order_id="chord")))
    answers = bench.answers(call)
    bodies = bench.ledger.events("summed", order_id="chord")
    if call.refusal is not None:
        brief = f", chord refused ({call.refusal})"
    elif not bodies:
        brief = ", chord never completes"
    else:
        brief = f", chord body ran {count(len(bodies), 'time')}"
    parts = bodies[0]["receipts"] if bodies else []
    text = f" of the doubled call{brief}"
    if bodies:
        text += f" with {len(parts)} parts"
        text += f", {parts.count(None)} of them None" if None in parts else ""
    return _finding(
        bench.ledger.charges("chord"), answers, brief=brief, text=text, bodies=len(bodies)
    )


def failed(bench: Bench) -> Finding:
    """A call that failed for good, then the same call after the cause is gone."""
    bench.ledger.switch("declined-failed")
    first = bench.call("failed")
    before = bench.answers(first)
    if before[0].kind != "error":
        raise BenchError(f"the first call did not fail: {before[0]}")
    bench.ledger.switch("declined-failed", on=False)
    second = bench.call("failed")
    answers = bench.answers(second)
    charges = bench.ledger.charges("failed")
    ran = "the next call runs" if charges else "the next call doesn't run"
    text = f"; {ran}; it got {told(answers[0], second, second, charges)}"
    return _finding(charges, answers, brief=f", {ran}", text=text)


def other_arguments(bench: Bench) -> Finding:
    """The same key with another amount, while the first call (of 100) runs and after it."""
    first = bench.call("other", amount=100, work=1.5)
    bench.wait_for(lambda: bench.ledger.runs("other"), "the first charge begins")
    during = bench.call("other", amount=200)
    early = bench.answers(first, during)
    after = bench.call("other", amount=300)
    late = bench.answers(after)
    charges = bench.ledger.charges("other")
    amounts = [run.amount for run in charges]
    said = {
        "200 while it ran": told(early[1], during, first, charges),
        "300 later": told(late[0], after, first, charges),
    }
    text = f" ({', '.join(map(str, amounts))}); "
    text += "; ".join(f"{call} got {words}" for call, words in said.items())
    brief = f" ({', '.join(map(str, amounts))})"
    others = {words for words in said.values() if words != "a result of its own"}
    brief += f", else {' or '.join(sorted(others))}" if others else ""
    return _finding(charges, [early[1], *late], brief=brief, text=text, amounts=amounts)


def _killed(bench: Bench, order_id: str) -> Finding:
    worker = bench.start_worker()
    known = set(bench.locks())
    first = bench.call(order_id, work=1.5)
    bench.wait_for(lambda: bench.ledger.runs(order_id), "the charge begins")
    bench.kill_worker(worker)
    killed_at = time.monotonic()
    second = bench.call(order_id, work=1.5)
    bench.start_worker()
    answers = bench.answers(first, second)
    charges = bench.ledger.charges(order_id)
    left = {name: left for name, left in bench.locks().items() if name not in known}
    again = [run for run in bench.ledger.runs(order_id)[1:] if run.task_id == first.task_id]
    # A lock that outlives a charge may be intended. A lock under which nothing was charged keeps
    # the order from being charged.
    locked = "" if charges else "".join(_lock_words(seconds) for seconds in left.values())
    if again:
        text = f"; the killed call ran again after {again[0].begun - killed_at:.0f} s"
    else:
        text = "; the killed call did not run again"
    text += f", its caller got {told(answers[0], first, first, charges)}"
    text += f"; a call made meanwhile got {told(answers[1], second, first, charges)}{locked}"
    return _finding(
        charges,
        answers,
        brief=f", {_answered(answers)}{locked}",
        text=text,
        reruns=len(again),
        locked_for=list(left.values()),
    )


def _lock_words(seconds: float | str) -> str:
    if isinstance(seconds, str):
        return f"; still locked {seconds}"
    return f"; still locked for {seconds / 60:.0f} min"


def killed(bench: Bench) -> Finding:
    """A worker is lost during a task, with late acks: the broker delivers the message again."""
    return _killed(bench, "killed")


def killed_own_acks(bench: Bench) -> Finding:
    """The same with the contender's own acks; Celery's default is early acks."""
    return _killed(bench, "killed-own-acks")


def stored(bench: Bench) -> Finding:
    """A worker is lost after it stored the result and before it acked the message (late acks)."""
    # The only worker is the one that is lost.
    bench.kill_all()
    worker = bench.start_worker()
    bench.ledger.switch("linger-stored")
    first = bench.call("stored")
    bench.wait_for(lambda: bench.ledger.events("stored", order_id="stored"), "it is stored")
    bench.kill_worker(worker)
    bench.ledger.switch("linger-stored", on=False)
    bench.start_worker()
    _wait_for_redelivery(bench, first)
    answers = bench.answers(first)
    charges = bench.ledger.charges("stored")
    text = f"; the caller got {told(answers[0], first, first, charges)}"
    return _finding(charges, answers, text=text)


def overlap(bench: Bench) -> Finding:
    """A message whose visibility timeout ends while it runs is delivered again (late acks)."""
    bench.start_worker()
    bench.start_worker()
    first = bench.call("overlap", work=6.5)
    _wait_for_redelivery(bench, first)
    answers = bench.answers(first)
    at_most = _most_at_a_time(bench.ledger.runs("overlap"))
    copies = len(bench.ledger.events("received", task_id=first.task_id, redelivered=True))
    brief = f", {count(at_most, 'copy', 'copies')} at a time"
    return _finding(
        bench.ledger.charges("overlap"),
        answers,
        brief=brief,
        text=f"{brief}; {_answered(answers)}",
        redelivered=copies,
        at_a_time=at_most,
    )


def _wait_for_redelivery(bench: Bench, call: Call) -> None:
    # Without it the scenario would prove nothing and look like a success.
    bench.wait_for(
        lambda: bench.ledger.events("received", task_id=call.task_id, redelivered=True),
        "the broker hands the message out again",
    )


def _most_at_a_time(runs: list[Run]) -> int:
    return max(
        (
            sum(run.begun <= start and (run.ended is None or run.ended > start) for run in runs)
            for start in [run.begun for run in runs]
        ),
        default=0,
    )


SCENARIOS = (
    Scenario("at_once", "10 duplicates at once", at_once),
    Scenario("later", "a duplicate after completion", later),
    Scenario("backoff", "2 duplicates in a retry's back-off", backoff),
    Scenario("killed", "worker SIGKILLed mid-task, late acks", killed),
    Scenario(
        "killed_own_acks", "worker SIGKILLed mid-task, the contender's own acks", killed_own_acks
    ),
    Scenario("stored", "worker SIGKILLed after the result, before the ack", stored),
    Scenario("overlap", "redelivered while it still runs", overlap),
    Scenario("chord", "chord with a duplicate in its header", chord_header),
    Scenario("failed", "the next call after one that failed for good", failed),
    Scenario("other_arguments", "same key, other arguments", other_arguments),
)


@dataclass(frozen=True)
class Group:
    """Scenarios that share one server, in the order in which they are played."""

    name: str
    scenarios: tuple[str, ...]
    #: Whether the broker delivers unacked messages again after seconds, and not after an hour.
    redelivers: bool = True
    #: Late acks, whatever the contender's own setting is.
    acks_late: bool = True


GROUPS = (
    Group(
        "calls",
        ("at_once", "later", "backoff", "chord", "failed", "other_arguments"),
        redelivers=False,
        acks_late=False,
    ),
    Group("lost", ("killed", "stored")),
    Group("slow", ("overlap",)),
    Group("acks", ("killed_own_acks",), acks_late=False),
)
