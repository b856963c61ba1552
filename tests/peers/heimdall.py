"""celery-heimdall: what its README documents."""

from __future__ import annotations

from typing import Any

from celery_heimdall import HeimdallTask, RateLimit  # type: ignore[import-untyped]

from celery_idempotent import IdempotentTask
from tests.peers.bench import (
    SHORT_S,
    Case,
    Peer,
    Seen,
    Side,
    count_runs,
    make_app,
    says,
    seen,
    work,
)
from tests.peers.bench import (
    ours as make_ours,
)
from tests.peers.shared import (
    after_its_end,
    killed,
    of,
    one_for_all,
    other_arguments,
    outlives_its_lock,
    while_it_is_queued,
    while_it_runs,
)
from tests.support.ledger import Ledger
from tests.support.waiting import eventually

# A caller that is refused would wait a second for the lock otherwise.
theirs = make_app("celery-heimdall", 0, heimdall_unique_lock_blocking=False)
ours = make_ours(idempotency_on_enqueue="attach")
LIMIT = 2


def plain(self: Any, order: str, fails: bool = False) -> str:
    return work(self, order, fails)


def once_an_hour(self: Any, order: str) -> str:
    """Have a block of the body run once an hour."""
    if self.app is ours:
        ours.tasks["block"].delay()
    elif self.only_after("block", 3600):
        Ledger(self.app.conf.peers_ledger).write("block")
    return work(self, order)


def block(self: Any) -> None:
    """The block, where it is a task of its own."""
    Ledger(self.app.conf.peers_ledger).write("block")


def there(name: str, body: Any = plain, **heimdall: Any) -> None:
    theirs.task(name=name, base=HeimdallTask, bind=True, shared=False, heimdall=heimdall)(body)


def here(name: str, body: Any = plain, **options: Any) -> None:
    ours.task(name=name, base=IdempotentTask, bind=True, shared=False, **options)(body)


there("plain", unique=True)
here("plain")
there("timeout", unique=True, unique_timeout=SHORT_S)
here("timeout")
there("key", unique=True, key=lambda args, kwargs: "generate_report")
here("key", idempotency_key=lambda *args, **kwargs: "generate_report")
there("raising", unique=True, unique_raises=True)
here("raising", idempotency_on_enqueue="raise")
there("interval", unique=True, unique_timeout=3600, unique_wait_for_expiry=True)
here("interval", idempotency_ttl=3600)
there("short", unique=True, unique_timeout=SHORT_S, unique_wait_for_expiry=True)
here("short", idempotency_ttl=SHORT_S)
there("limited", rate_limit=RateLimit((LIMIT, 3600)), key=lambda args, kwargs: "limited")
here("limited")
here("once_an_hour", once_an_hour)
here("block", block, idempotency_key=lambda: "block", idempotency_ttl=3600)
theirs.task(name="once_an_hour", base=HeimdallTask, bind=True, shared=False)(once_an_hour)


def names_the_first(side: Side) -> Seen:
    """The error of a refused duplicate says which call came first."""
    order = "raising-id"
    first = side.call("raising", order)
    side.wait_for_runs(order)
    error: Any = side.call("raising", order).error
    side.let(order)
    side.wait_until_over(order)
    named = error.task_id if side.is_ours else error.likely_culprit
    return seen("it has the first call's id" if named == first.task_id else "it has another id")


def interval_is_over(side: Side) -> Seen:
    """The next call once the interval is over."""
    order = "short"
    side.let(order)
    side.get(side.call("short", order))
    side.wait_until_over(order)
    side.let_time_pass(SHORT_S + 1)
    second = side.call("short", order)
    side.get(second)
    side.wait_until_over(order, 2)
    return seen(says(second, "the next call"), count_runs(side.runs(order)))


def limited(side: Side) -> Seen:
    """One call more than the limit allows."""
    orders = [f"limited-{number}" for number in range(LIMIT + 1)]
    side.let(*orders)
    calls = []
    for order in orders:
        calls.append(side.call("limited", order))
        eventually(lambda: side.state(calls[-1]) in ("SUCCESS", "RETRY"), "it is decided")
    put_off = [call for call in calls if side.state(call) == "RETRY"]
    return seen(f"{len(calls) - len(put_off)} of {len(calls)} run in the hour")


def only_after(side: Side) -> Seen:
    """Two runs of a task with a block that is to run once an hour."""
    orders = ("block-1", "block-2")
    side.let(*orders)
    for order in orders:
        side.get(side.call("once_an_hour", order))
        side.wait_until_over(order)
    return seen(f"2 runs, the block runs {side.ledger.count('block')} time")


CASES = (
    Case(
        "For the same arguments only one runs: a second call gets the first's ``AsyncResult``.",
        of(while_it_runs, "plain", "running"),
    ),
    Case("Also while the first is queued.", of(while_it_is_queued, "plain", "queued")),
    Case("Calls with other arguments don't meet.", of(other_arguments, "plain", "others")),
    Case("Once the first has ended the next call runs.", of(after_its_end, "plain", "ended")),
    Case(
        '``"unique_timeout"``: the lock ends after it, even while the task runs.',
        of(outlives_its_lock, "timeout", "timeout"),
        "better",
        "A lease is renewed for as long as the worker lives: nothing to guess.",
    ),
    Case(
        "The timeout is the way out after a worker was killed.",
        of(killed, "plain", "killed"),
        "better",
        "The lease of a dead worker ends after half a minute by default, not after an hour.",
    ),
    Case(
        '``"key"``: one report at a time, whoever the customer is.',
        of(one_for_all, "key", "all"),
    ),
    Case(
        '``"unique_raises": True``: ``apply_async`` raises.',
        of(while_it_runs, "raising", "raising"),
    ),
    Case("Its error names the first call.", names_the_first),
    Case(
        '``"unique_wait_for_expiry": True``: once in an hour, also after it has ended.',
        of(after_its_end, "interval", "interval"),
    ),
    Case("After that time the next call runs.", interval_is_over),
    Case("``only_after``: a block of a task runs once in an hour.", only_after),
    # It comes last: what it puts off stays with the worker for an hour.
    Case(
        "``RateLimit((2, 3600))``: two runs in an hour, others are put off.",
        limited,
        "different",
        "There is no rate limit here: keep celery-heimdall for those tasks.",
    ),
)

PEER = Peer("celery-heimdall", "celery-heimdall", theirs, ours, "tests.peers.heimdall", CASES)
