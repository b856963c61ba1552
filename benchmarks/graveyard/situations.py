"""The situations: each a public report in our own words, what is right, and how it is played.

A situation that needs a fault yields where it strikes: all that wait for the same one are played
up to there, it strikes once, and each goes on.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from celery import chain, chord, group
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedule

from benchmarks.graveyard.bench import Bench, Seen
from benchmarks.playing.bench import Call

__all__ = ["CLAIMS", "PROJECTS", "SITUATIONS", "STRIKES", "Situation"]

#: What a situation can need of a library.
CLAIMS = {
    "lock": "one run at a time from the call to the end, then the next call runs",
    "window": "a call that succeeded is not run again for a time",
    "turn": "each call runs, one at a time, and waits for its turn",
    "early": "a body can free the key before it ends",
    "result": "a duplicate gets the first call's result",
    "again": "a message that is delivered again is not run again",
    "onward": "what follows a call, a link or the rest of a chain, is sent once",
    "unlost": "a run whose worker was lost is made up for",
    "forget": "an operator can free a key",
}
#: Faults that strike several situations at one time.
STRIKES = ("time", "kill")
PROJECTS = {
    "celery-once": "cameronmaske/celery-once",
    "celery-singleton": "steinitzu/celery-singleton",
    "celery-heimdall": "TkTech/celery-heimdall",
    "sidekiq-unique-jobs": "zoolutions/sidekiq-unique-jobs",
    "BullMQ": "taskforcesh/bullmq",
    "Oban": "oban-bg/oban",
    "Celery": "celery/celery",
    "kombu": "celery/kombu",
}

Play = Callable[[Bench, str], Seen] | Callable[[Bench, str], Generator[None, None, Seen]]


@dataclass(frozen=True)
class Situation:
    """One report."""

    project: str
    number: int
    needs: tuple[str, ...]
    #: The report in one sentence.
    told: str
    #: Who is right, and what is right.
    right: str
    play: Play
    strike: str = ""
    kind: str = "issues"

    @property
    def name(self) -> str:
        """What ``-k`` looks at, and what its orders are called."""
        return f"{self.project}-{self.number}"

    @property
    def address(self) -> str:
        """The public report."""
        return f"https://github.com/{PROJECTS[self.project]}/{self.kind}/{self.number}"


_TABLE: list[Situation] = []


def report(
    project: str,
    number: int,
    *needs: str,
    told: str,
    right: str,
    strike: str = "",
    kind: str = "issues",
) -> Callable[[Play], Play]:
    """Put a play into the table, with the report that it is made of."""

    def add(play: Play) -> Play:
        assert bool(strike) == inspect.isgeneratorfunction(play), play.__name__
        assert set(needs) <= set(CLAIMS), needs
        _TABLE.append(Situation(project, number, needs, told, right, play, strike, kind))
        return play

    return add


# -- celery-once -----------------------------------------------------------------------------------


@report(
    "celery-once",
    19,
    "lock",
    told="The key is made of the arguments' text, so that two objects with one text share a key.",
    right="The reporter: a number and a text that look alike are two calls, and both run.",
)
def same_text(b: Bench, order: str) -> Seen:
    b.hold(order)
    calls = [b.call("lock_all", order, data) for data in (1, "1")]
    b.let(order)
    return b.judge(order, *calls, effects=2)


@report(
    "celery-once",
    36,
    "lock",
    strike="time",
    told="A task that runs for days loses its lock while it runs, and another worker starts it.",
    right="The reporter: a lock holds for as long as its run is alive, however long that is.",
)
def outlives_its_lock(b: Bench, order: str) -> Generator[None, None, Seen]:
    b.hold(order)
    first = b.call("lock_short", order)
    b.wait_for_runs(order)
    yield
    second = b.call("lock_short", order)
    b.let(order)
    return b.judge(order, first, second)


@report(
    "celery-once",
    43,
    "window",
    told="The lock is gone as soon as the task has ended; the reporter wants it kept for minutes.",
    right="Both: one wants a lock, the other a window; in a window the second call does not run.",
)
def kept_after_the_end(b: Bench, order: str) -> Seen:
    first = b.call("window", order)
    b.answers(first)
    return b.judge(order, first, b.call("window", order))


@report(
    "celery-once",
    58,
    "lock",
    told="With ``autoretry_for``, or a dictionary as an argument, the key at the end differs from "
    "the key at the call, and the lock stays.",
    right="The reporter: the order of a dictionary does not matter, and the end frees the key.",
)
def autoretry_and_dictionaries(b: Bench, order: str) -> Seen:
    b.hold(order)
    b.script(order, fails=1)
    first = b.call("lock_auto", order, {"spam": 1, "eggs": {"x": 1, "y": 2}})
    b.wait_for_runs(order)
    during = b.call("lock_auto", order, {"eggs": {"y": 2, "x": 1}, "spam": 1})
    b.let(order)
    seen = b.judge(order, first, during)
    after = b.call("lock_auto", order, {"spam": 1, "eggs": {"x": 1, "y": 2}})
    later = b.judge(order, first, after, effects=2)
    later.faults = seen.faults + later.faults
    return later


@report(
    "celery-once",
    72,
    "lock",
    told="Beat reports that it could not apply a task, when that task has a lock.",
    right="The reporter: a suppressed tick is no error of the schedule.",
)
def beat_ticks_while_it_runs(b: Bench, order: str) -> Seen:
    b.hold(order)
    first = b.call("lock", order)
    b.wait_for_runs(order)
    scheduler = Scheduler(b.app, lazy=True)
    entry = ScheduleEntry(
        name=order, task="graveyard.lock", schedule=schedule(60), args=(order,), app=b.app
    )
    tick = b.attempt(lambda: scheduler.apply_async(entry, advance=False))
    b.let(order)
    return b.judge(order, first).must(tick.refusal is None, f"beat: {tick.refusal}")


@report(
    "celery-once",
    104,
    "window",
    told="A mail must not be sent again within an hour, and may be sent after it.",
    right="The reporter: within the window the call does not run; after it, it does.",
)
def after_the_window(b: Bench, order: str) -> Seen:
    first = b.call("window_short", order)
    b.answers(first)
    within = b.call("window_short", order)
    seen = b.judge(order, first, within)
    b.let_time_pass(4.5)
    after = b.call("window_short", order)
    later = b.judge(order, first, after, effects=2)
    later.faults = seen.faults + later.faults
    return later


@report(
    "celery-once",
    128,
    "lock",
    kind="pull",
    told="An argument that is left out, and the same one given with its default, are two keys.",
    right="The reporter: it is one call in two spellings.",
)
def defaults(b: Bench, order: str) -> Seen:
    b.hold(order)
    first = b.call("lock_all", order)
    second = b.call("lock_all", order, None)
    b.let(order)
    return b.judge(order, first, second)


@report(
    "celery-once",
    130,
    "lock",
    told="A task that is ended by its hard time limit keeps its lock.",
    right="The reporter: the run is over, so that the next call runs.",
)
def hard_time_limit(b: Bench, order: str) -> Seen:
    # Only the first run waits, and it is never let go: it is killed there.
    b.hold(f"{order}-1")
    first = b.call("lock", order, time_limit=1)
    b.wait_for(lambda: b.state(first) == "FAILURE", "the limit is reached")
    b.let_time_pass(0.5)
    second = b.call("lock", order)
    seen = b.judge(order, first, second, fails=True)
    return seen.must(seen.callers[1] == "a result", f"the next call got {seen.callers[1]}")


@report(
    "celery-once",
    136,
    "lock",
    told="A task that beat sends by its name runs beside the one that runs already.",
    right="The reporter: the lock holds however the call was sent.",
)
def sent_by_name(b: Bench, order: str) -> Seen:
    b.hold(order)
    first = b.call_by_name("lock", order)
    b.wait_for_runs(order)
    second = b.call_by_name("lock", order)
    b.wait_until_met(second)
    b.let(order)
    return b.judge(order, first, second)


@report(
    "celery-once",
    147,
    "lock",
    strike="kill",
    told="After a worker was killed its locks stay, and the same tasks can't be called until they "
    "expire.",
    right="The reporter: once a worker is there again, the call is carried out within seconds.",
)
def killed_with_its_lock(b: Bench, order: str) -> Generator[None, None, Seen]:
    b.hold(order)
    b.call("lock", order)
    b.wait_for_runs(order)
    yield
    b.let(order)
    # The lost run may be made up for, too: it was a call of its own.
    return b.judge(order, b.call("lock", order), effects=None).must(
        b.most_at_once(order) == 1, "two ran at one time"
    )


# -- celery-singleton ------------------------------------------------------------------------------


@report(
    "celery-singleton",
    3,
    "lock",
    "early",
    told="Data changes after the running task has read it, and the call that would look again is "
    "taken for a duplicate.",
    right="The reporter: a body that freed its key does not stop the next call.",
)
def data_changed_meanwhile(b: Bench, order: str) -> Seen:
    b.hold(order)
    first = b.call("lock_early", order)
    b.wait_for_runs(order)
    second = b.call("lock_early", order)
    b.let(order)
    return b.judge(order, first, second, effects=2)


@report(
    "celery-singleton",
    4,
    "lock",
    told="Between a lock that can't be taken and the look at who has it the task ends, and the "
    "caller gets an AttributeError.",
    right="The reporter: whatever ends meanwhile, a caller gets an answer.",
)
def ends_while_it_is_called(b: Bench, order: str) -> Seen:
    calls = [b.call("lock", order) for _ in range(40)]
    effects = len({call.task_id for call in calls if call.task_id})
    return b.judge(order, *calls, effects=effects)


@report(
    "celery-singleton",
    19,
    "lock",
    told="Two chains begin with the same task; the second one is lost with its tail.",
    right="The reporter: the common task runs once, and each chain goes on.",
)
def chains_with_one_head(b: Bench, order: str) -> Seen:
    b.hold(order)
    head = b.shop.tasks["lock"]
    chains = [chain(head.si(order), b.shop.tail.si(f"{order}-{n}")) for n in ("one", "two")]
    calls = [b.attempt(it.apply_async) for it in chains]
    b.wait_until_met(*calls)
    b.let(order)
    seen = b.judge(order, *calls)
    for call, n in zip(calls, ("one", "two"), strict=True):
        tails = len(b.ledger.events("tail", order_id=f"{order}-{n}"))
        # Who was refused at once knows it, and can call again.
        seen.must(
            tails == 1 or call.refusal is not None, f"the tail of chain {n} ran {tails} times"
        )
    return seen


@report(
    "celery-singleton",
    20,
    "lock",
    told="``raise self.retry()`` schedules nothing: the retry is taken for a duplicate of its own.",
    right="The reporter: a retry is the same call, and runs.",
)
def retry_of_its_own(b: Bench, order: str) -> Seen:
    b.script(order, retries=1)
    return b.judge(order, b.call("lock", order))


@report(
    "celery-singleton",
    29,
    "lock",
    told="A task was revoked while it was queued, and every later call gets its revoked id.",
    right="The reporter: a revoked call stops no other.",
)
def revoked_while_queued(b: Bench, order: str) -> Seen:
    message = b.call_aside("lock", order)
    b.app.control.revoke(message.call.task_id, reply=True, timeout=1)
    b.deliver(message)
    b.wait_for(lambda: b.state(message.call) == "REVOKED", "it is revoked")
    return b.judge(order, b.call("lock", order))


@report(
    "celery-singleton",
    36,
    "lock",
    told="A call with a UUID among its arguments fails, which Celery itself can send.",
    right="The reporter: what can be sent can be compared.",
)
def uuid_argument(b: Bench, order: str) -> Seen:
    return b.judge(order, b.call("lock_all", order, uuid.UUID(int=7)))


@report(
    "celery-singleton",
    40,
    "lock",
    told="A hard time limit ends the task, and later calls are duplicates of a dead one.",
    right="The reporter: who called while it ran gets an answer, and the next call runs.",
)
def duplicate_of_a_dead_task(b: Bench, order: str) -> Seen:
    b.hold(f"{order}-1")
    first = b.call("lock", order, time_limit=1)
    b.wait_for_runs(order)
    during = b.call("lock", order)
    b.wait_for(lambda: b.state(first) == "FAILURE", "the limit is reached")
    b.let_time_pass(0.5)
    answers = b.answers(first, during)
    third = b.call("lock", order)
    # Who called meanwhile may have been told of the end, or may have run in its turn.
    seen = b.judge(order, third, effects=None)
    seen.callers[:0] = [str(answer) for answer in answers]
    return seen.must(answers[1].kind != "never", "who called meanwhile got no answer")


@report(
    "celery-singleton",
    51,
    "window",
    "result",
    kind="pull",
    told="The result is to be kept for a time, so that the same input is not computed again.",
    right="The reporter, who sends the change: the second caller gets the first one's result.",
)
def result_is_kept(b: Bench, order: str) -> Seen:
    first = b.call("window", order)
    b.answers(first)
    second = b.call("window", order)
    one, other = b.answers(first, second)
    return b.judge(order, first, second).must(one == other, "the results differ")


@report(
    "celery-singleton",
    53,
    "lock",
    "early",
    told="A task calls itself again with a countdown, and is stopped by its own lock.",
    right="The reporter: with the key freed first, the next round runs.",
)
def calls_itself_again(b: Bench, order: str) -> Seen:
    b.script(order, again=1)
    first = b.call("lock_early", order)
    b.answers(first)
    b.let_time_pass(1.0)
    return b.judge(order, first, effects=2)


@report(
    "celery-singleton",
    55,
    "lock",
    told="A task that raises, with ``autoretry_for``, ends the whole worker.",
    right="The reporter: it is retried, and the worker goes on.",
)
def autoretry_ends_the_worker(b: Bench, order: str) -> Seen:
    b.script(order, fails=1)
    first = b.call("lock_auto", order)
    seen = b.judge(order, first)
    other = f"{order}-other"
    answers = b.answers(b.call("lock_auto", other))
    return seen.must(answers[0].kind == "result", f"another order's caller got {answers[0]}")


# -- celery-heimdall -------------------------------------------------------------------------------


@report(
    "celery-heimdall",
    6,
    "lock",
    kind="pull",
    told="The worker looks at the lock, too; a comment notes that a direct call then takes it and "
    "never gives it back.",
    right="The commenter: after a direct call the next published one runs.",
)
def direct_call(b: Bench, order: str) -> Seen:
    direct = b.attempt(lambda: _Answered(b.shop.tasks["lock"](order)))
    seen = b.judge(order, b.call("lock", order), effects=2)
    return seen.must(direct.refusal is None, f"the direct call: {direct.refusal}")


class _Answered:
    """A direct call's result, which has no id."""

    id = None

    def __init__(self, value: Any) -> None:
        self.value = value


# -- sidekiq-unique-jobs ---------------------------------------------------------------------------


@report(
    "sidekiq-unique-jobs",
    93,
    "lock",
    told="A job for later is never run: when it comes due it is taken for a duplicate of itself.",
    right="The reporter: it is the same call, and runs.",
)
def due_later(b: Bench, order: str) -> Seen:
    return b.judge(order, b.call("lock", order, countdown=1))


@report(
    "sidekiq-unique-jobs",
    334,
    "lock",
    told="Two jobs with the same arguments, both scheduled for later, are both scheduled and run.",
    right="The reporter: the second one is a duplicate while the first waits for its time.",
)
def scheduled_twice(b: Bench, order: str) -> Seen:
    first = b.call("lock", order, countdown=1)
    second = b.call("lock", order, countdown=1)
    return b.judge(order, first, second)


@report(
    "sidekiq-unique-jobs",
    394,
    "lock",
    told="A job failed and waits for its retry; the same job can be queued again meanwhile.",
    right="The reporter: while it is to be retried it is not over.",
)
def waits_for_its_retry(b: Bench, order: str) -> Seen:
    b.script(order, retries=1)
    first = b.call("lock", order)
    b.wait_for(lambda: b.state(first) == "RETRY", "it waits for its retry")
    return b.judge(order, first, b.call("lock", order))


@report(
    "sidekiq-unique-jobs",
    432,
    "turn",
    told="Jobs that are to run one after another: when the first one raises, others are lost.",
    right="The reporter: each is run in its turn, whatever became of the one before.",
)
def turns_after_a_failure(b: Bench, order: str) -> Seen:
    b.hold(order)
    b.script(order, fails=1)
    first = b.call("turn", order)
    b.wait_for_runs(order)
    others = [b.call("turn", order) for _ in range(2)]
    b.let(order)
    seen = b.judge(order, first, *others, effects=2, fails=True)
    return seen.must(b.most_at_once(order) == 1, "two ran at one time")


@report(
    "sidekiq-unique-jobs",
    440,
    "lock",
    strike="time",
    told="The queue is empty and nothing runs, and still some jobs are taken for duplicates until "
    "the night.",
    right="The reporter: nothing is left of a job that is gone, once its lock's time is over.",
)
def gone_from_the_queue(b: Bench, order: str) -> Generator[None, None, Seen]:
    b.call_aside("lock_short", order)
    b.empty_queue()
    yield
    return b.judge(order, b.call("lock_short", order))


@report(
    "sidekiq-unique-jobs",
    488,
    "lock",
    strike="time",
    told="What cleans up takes the lock of a job that has been running for long, and the same job "
    "is queued beside it.",
    right="The reporter: nothing that looks for dead locks takes a living one.",
)
def cleaned_up_while_it_runs(b: Bench, order: str) -> Generator[None, None, Seen]:
    b.hold(order)
    first = b.call("lock", order)
    b.wait_for_runs(order)
    yield
    seconds = [b.call("lock", order) for _ in range(3)]
    b.let(order)
    return b.judge(order, first, *seconds).must(b.most_at_once(order) == 1, "two ran at one time")


@report(
    "sidekiq-unique-jobs",
    580,
    "window",
    "again",
    strike="time",
    told="What cleans up does not know the lock of a running job by its name, and the job runs "
    "twice.",
    right="The reporter: a copy that comes during the run does not run.",
)
def copy_during_the_run(b: Bench, order: str) -> Generator[None, None, Seen]:
    b.hold(order)
    message = b.call_aside("window_late", order)
    b.deliver(message)
    b.wait_for_runs(order)
    yield
    b.deliver(message, redelivered=True)
    b.let_time_pass(0.5)
    b.let(order)
    return b.judge(order, message.call).must(b.most_at_once(order) == 1, "two ran at one time")


@report(
    "sidekiq-unique-jobs",
    628,
    "lock",
    told="Jobs whose arguments are alike but not equal are taken for duplicates.",
    right="The reporter: other arguments are another call.",
)
def alike_but_not_equal(b: Bench, order: str) -> Seen:
    b.hold(order)
    data = ([1, 11], [11, 1], {"a": "b"}, {"b": "a"})
    calls = [b.call("lock_all", order, it) for it in data]
    b.let(order)
    return b.judge(order, *calls, effects=4)


@report(
    "sidekiq-unique-jobs",
    630,
    "lock",
    "unlost",
    strike="time",
    told="A job is stopped by a lock that it holds itself, on each attempt, until it is given up.",
    right="The reporter: a call's own lock does not stop it when it comes again.",
)
def stopped_by_its_own_lock(b: Bench, order: str) -> Generator[None, None, Seen]:
    b.script(order, dies=1)
    first = b.call("lock_late", order)
    b.wait_for_runs(order)
    yield
    return b.judge(order, first)


@report(
    "sidekiq-unique-jobs",
    749,
    "turn",
    told="Two jobs are queued that must not run at one time; the second is dropped, not run later.",
    right="The reporter: it waits, and runs when the first has ended.",
)
def dropped_instead_of_run_later(b: Bench, order: str) -> Seen:
    b.hold(order)
    calls = [b.call("turn", order) for _ in range(2)]
    b.wait_for_runs(order)
    b.let_time_pass(0.5)
    b.let(order)
    seen = b.judge(order, *calls, effects=2)
    return seen.must(b.most_at_once(order) == 1, "two ran at one time")


@report(
    "sidekiq-unique-jobs",
    779,
    "window",
    strike="time",
    told="A duplicate waits for a job of 20 minutes; after one minute the cleaning lets it run.",
    right="The reporter: it waits for as long as the first one runs.",
)
def waits_for_a_long_run(b: Bench, order: str) -> Generator[None, None, Seen]:
    b.hold(order)
    first = b.call("window", order)
    b.wait_for_runs(order)
    second = b.call("window", order)
    yield
    b.let(order)
    return b.judge(order, first, second).must(b.most_at_once(order) == 1, "two ran at one time")


@report(
    "sidekiq-unique-jobs",
    788,
    "lock",
    strike="time",
    told="A job that was queued for longer than its lock's time is dropped without a word.",
    right="The reporter: it is run, even if nobody can say any more that it is the only one.",
)
def queued_longer_than_its_lock(b: Bench, order: str) -> Generator[None, None, Seen]:
    message = b.call_aside("lock_short", order)
    yield
    b.deliver(message)
    return b.judge(order, message.call)


@report(
    "sidekiq-unique-jobs",
    861,
    "lock",
    "unlost",
    strike="kill",
    told="A worker is ended by force; its job comes back, but the lock is still there, and neither "
    "it nor a new one runs.",
    right="The reporter: the job that comes back runs, and who called meanwhile gets an answer.",
)
def comes_back_to_its_lock(b: Bench, order: str) -> Generator[None, None, Seen]:
    b.hold(order)
    first = b.call("lock_late", order)
    b.wait_for_runs(order)
    yield
    second = b.call("lock_late", order)
    b.let(order)
    # Whether the second one is a duplicate depends on who comes first.
    return b.judge(order, first, second, effects=None).must(
        b.most_at_once(order) == 1, "two ran at one time"
    )


@report(
    "sidekiq-unique-jobs",
    955,
    "lock",
    "forget",
    told="After a crash the job is nowhere, new ones are refused, and nobody finds the lock to "
    "take it away.",
    right="The reporter: an operator can free the order, and the next call runs.",
)
def freed_by_hand(b: Bench, order: str) -> Seen:
    b.call_aside("lock", order)
    b.empty_queue()
    b.adapter.forget(b.shop.tasks["lock"], order)
    return b.judge(order, b.call("lock", order))


# -- BullMQ ----------------------------------------------------------------------------------------


@report(
    "BullMQ",
    458,
    "lock",
    told="A job is added twice with one id, minutes apart, and both are in the queue.",
    right="The reporter: while the first is queued the second is a duplicate.",
)
def added_twice(b: Bench, order: str) -> Seen:
    message = b.call_aside("lock", order)
    second = b.call("lock", order, queue="aside")
    if second.task_id not in (None, message.call.task_id):
        b.deliver(b.take_aside(second))
    b.deliver(message)
    return b.judge(order, message.call, second)


@report(
    "BullMQ",
    1163,
    "window",
    "result",
    told="One child stands in several flows, and not all of its parents hear of its end.",
    right="The reporter: the child runs once, and each place that waits for it gets its result.",
)
def chord_with_a_duplicate(b: Bench, order: str) -> Seen:
    task = b.shop.tasks["window"]
    header = [task.si(order), task.si(order), task.si(f"{order}-other")]
    call = b.attempt(lambda: chord(header)(b.shop.summary.s(order=order)))
    seen = b.judge(order, call)
    parts = [event["parts"] for event in b.ledger.events("summed", order_id=order)]
    whole = [len(it) for it in parts] == [3] and None not in parts[0]
    return seen.must(whole, f"the chord's body ran {len(parts)} times")


@report(
    "BullMQ",
    2468,
    "lock",
    "result",
    told="Who adds a duplicate wants to wait for the job that is there, and go on with its result.",
    right="The reporter asks for it; the maintainer has no such thing. The second caller gets the "
    "first one's result.",
)
def waits_for_the_first(b: Bench, order: str) -> Seen:
    b.hold(order)
    first = b.call("lock", order)
    b.wait_for_runs(order)
    second = b.call("lock", order)
    b.let(order)
    one, other = b.answers(first, second)
    return b.judge(order, first, second).must(one == other, "the results differ")


@report(
    "BullMQ",
    2870,
    "window",
    told="A job that failed keeps its id, and the same job can't be added again.",
    right="The reporter: what failed has not been done, and the next call runs.",
)
def failed_for_good(b: Bench, order: str) -> Seen:
    b.script(order, fails=1)
    first = b.call("window", order)
    b.answers(first)
    second = b.call("window", order)
    seen = b.judge(order, first, second, fails=True)
    return seen.must(seen.callers[1] == "a result", f"the next call got {seen.callers[1]}")


@report(
    "BullMQ",
    3232,
    "lock",
    strike="time",
    told="An old job is removed, and takes the key of a newer one with it; then another is let in "
    "beside the newer one.",
    right="The reporter: a run frees its own key, and no other's.",
)
def frees_anothers_lock(b: Bench, order: str) -> Generator[None, None, Seen]:
    b.hold(f"{order}-1")
    b.hold(f"{order}-2")
    first = b.call("lock_short", order)
    b.wait_for_runs(order)
    yield
    second = b.call("lock_short", order)
    b.let_time_pass(0.5)
    b.let(f"{order}-1")
    b.wait_until_over(order)
    third = b.call("lock_short", order)
    b.let_time_pass(0.5)
    b.let(f"{order}-2")
    seen = b.judge(order, first, second, third, effects=None)
    runs = b.ledger.runs(order)
    beside = len(runs) > 2 and (runs[1].ended is None or runs[2].begun < runs[1].ended)
    return seen.must(not beside, "the third ran beside the second")


# -- Oban ------------------------------------------------------------------------------------------


@report(
    "Oban",
    388,
    "window",
    told="When many jobs are inserted at one time, uniqueness is not looked at.",
    right="The reporter: it holds for each of them.",
)
def inserted_in_bulk(b: Bench, order: str) -> Seen:
    task = b.shop.tasks["window"]
    results = group(task.si(order) for _ in range(5))()
    return b.judge(order, *[Call(task_id=result.id) for result in results.results])


@report(
    "Oban",
    424,
    "window",
    "unlost",
    strike="kill",
    told="The application is stopped while a unique job runs; after the start it is running for "
    "ever, and no other is let in.",
    right="The reporter: a run that is dead is found out, and the job is carried out.",
)
def running_for_ever(b: Bench, order: str) -> Generator[None, None, Seen]:
    b.hold(order)
    first = b.call("window_late", order)
    b.wait_for_runs(order)
    yield
    b.let(order)
    return b.judge(order, first, b.call("window_late", order))


@report(
    "Oban",
    1093,
    "lock",
    told="The process that won the race is gone before its job is there; the others trust that it "
    "will be, and no job is left.",
    right="The reporter: a call that was never published stops nobody.",
)
def winner_that_never_published(b: Bench, order: str) -> Seen:
    b.call_and_die("lock", order)
    return b.judge(order, b.call("lock", order))


@report(
    "Oban",
    1505,
    "window",
    told="Several processes insert the same unique job at one time, and some get an error that "
    "names no reason.",
    right="The reporter: one job is there, and each caller gets an answer.",
)
def inserted_at_once(b: Bench, order: str) -> Seen:
    b.script(order, work=0.5)
    calls = b.call_at_once(10, "window", order)
    return b.judge(order, *_winner_first(b, calls))


def _winner_first(b: Bench, calls: list[Call]) -> list[Call]:
    """The calls with one first that has a result, if there is one."""
    answers = b.answers(*calls)
    order = sorted(range(len(calls)), key=lambda n: answers[n].kind != "result")
    return [calls[n] for n in order]


# -- Celery and kombu ------------------------------------------------------------------------------


@report(
    "Celery",
    3270,
    "window",
    "again",
    told="A producer whose confirmation was lost sends the message again, and both are run.",
    right="The commenter: it is one call, with one id.",
)
def published_twice(b: Bench, order: str) -> Seen:
    b.script(order, work=0.3)
    message = b.call_aside("window", order)
    b.deliver(message, copies=2)
    return b.judge(order, message.call)


@report(
    "Celery",
    3802,
    "window",
    "again",
    told="A task succeeds during a warm shutdown, is not acknowledged, and runs again at the next "
    "start.",
    right="The reporter: what succeeded is not run again.",
)
def not_acknowledged(b: Bench, order: str) -> Seen:
    message = b.call_aside("window_late", order)
    b.deliver(message)
    b.answers(message.call)
    b.deliver(message, redelivered=True)
    return b.judge(order, message.call)


@report(
    "Celery",
    5006,
    "window",
    "again",
    "onward",
    told="The first task of a chain is delivered again after a shutdown, and the whole rest of the "
    "chain runs twice.",
    right="The reporter: the chain goes on once.",
)
def chain_goes_on_twice(b: Bench, order: str) -> Seen:
    task = b.shop.tasks["window_late"]
    work = chain(task.si(order).set(queue="aside"), b.shop.tail.si(order))
    result = work.apply_async()
    head, call = Call(result.parent.id), Call(result.id)
    message = b.take_aside(head)
    b.deliver(message)
    b.answers(head, call)
    b.deliver(message, copies=2, redelivered=True)
    seen = b.judge(order, head, call)
    tails = len(b.ledger.events("tail", order_id=order))
    return seen.must(tails == 1, f"the tail ran {tails} times")


@report(
    "Celery",
    5935,
    "window",
    "again",
    strike="time",
    told="A task that runs for longer than the broker's visibility timeout is delivered again, and "
    "runs beside itself.",
    right="The reporter: it is the same message, and its run is alive.",
)
def longer_than_the_visibility_timeout(b: Bench, order: str) -> Generator[None, None, Seen]:
    b.hold(order)
    first = b.call("window_late", order)
    b.wait_for_runs(order)
    yield
    b.wait_for(
        lambda: b.ledger.events("received", task_id=first.task_id, redelivered=True),
        "the broker hands the message out again",
    )
    b.let_time_pass(0.5)
    b.let(order)
    return b.judge(order, first).must(b.most_at_once(order) == 1, "two ran at one time")


@report(
    "Celery",
    6871,
    "window",
    "again",
    told="A broker delivers the message of a task that has succeeded over and over; five mails are "
    "sent.",
    right="The reporter: one mail, and its result stays what it was.",
)
def over_and_over(b: Bench, order: str) -> Seen:
    message = b.call_aside("window_late", order)
    b.deliver(message)
    before = b.answers(message.call)
    b.deliver(message, copies=5, redelivered=True)
    b.let_time_pass(0.5)
    seen = b.judge(order, message.call)
    return seen.must(b.answers(message.call) == before, "the result was overwritten")


@report(
    "kombu",
    337,
    "window",
    "again",
    told="A task for later is held by its worker for longer than the visibility timeout; others "
    "get it, too, and all run it when it is due.",
    right="The reporter: however many hold it, it runs once.",
)
def held_by_several(b: Bench, order: str) -> Seen:
    message = b.call_aside("window_late", order, countdown=1)
    b.deliver(message)
    b.deliver(message, copies=3, redelivered=True)
    return b.judge(order, message.call)


SITUATIONS = tuple(_TABLE)
