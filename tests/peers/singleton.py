"""celery-singleton: what its README documents."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from celery_singleton import Singleton, clear_locks  # type: ignore[import-untyped]

from celery_idempotent import IdempotentTask
from tests.peers.bench import (
    LEASE_S,
    SHORT_S,
    Case,
    Peer,
    Seen,
    Side,
    make_app,
    says,
    seen,
    url,
    work,
)
from tests.peers.bench import (
    ours as make_ours,
)
from tests.peers.shared import (
    after_a_failure,
    after_its_end,
    killed,
    of,
    other_argument_outside_the_key,
    other_arguments,
    outlives_its_lock,
    while_it_is_queued,
    while_it_runs,
)

theirs = make_app("celery-singleton", 0, singleton_backend_url=url(2))
ours = make_ours(idempotency_on_enqueue="attach")


def plain(self: Any, order: Any, by: str = "", fails: bool = False) -> str:
    return work(self, str(order), fails)


def there(name: str, **options: Any) -> None:
    theirs.task(name=name, base=Singleton, bind=True, shared=False, **options)(plain)


def here(name: str, **options: Any) -> None:
    ours.task(name=name, base=IdempotentTask, bind=True, shared=False, **options)(plain)


there("plain")
here("plain")
there("unique_on", unique_on=["order"])
here("unique_on", idempotency_key=("order",))
there("raising", raise_on_duplicate=True)
here("raising", idempotency_on_enqueue="raise")
there("expiring", lock_expiry=SHORT_S)
here("expiring")


def names_the_first(side: Side) -> Seen:
    """The error of a refused duplicate says which call came first."""
    order = "raising-id"
    first = side.call("raising", order)
    side.wait_for_runs(order)
    error: Any = side.call("raising", order).error
    side.let(order)
    side.wait_until_over(order)
    return seen(
        "it has the first call's id" if error.task_id == first.task_id else "it has another id"
    )


def unlocked(side: Side) -> Seen:
    """The lock of a worker that was killed, and the way to be rid of it."""
    order = "cleared"
    side.call("plain", order)
    side.wait_for_runs(order)
    side.kill_worker()
    if side.is_ours:
        side.let_time_pass(LEASE_S + 1)
    else:
        clear_locks(theirs)
    side.start_worker()
    side.let(order)
    second = side.call("plain", order)
    side.get(second)
    how = "nothing has to be done" if side.is_ours else "``clear_locks`` ends every lock"
    return seen(f"{how}; the next call runs")


def not_json(side: Side) -> Seen:
    """An argument that is no JSON by itself, and which Celery takes."""
    order = Decimal("1.50")
    side.let("1.50")
    call = side.call("plain", "", args=(order,))
    if call.kind == "published":
        side.get(call)
        return seen("the call runs")
    return seen(says(call, "the call"), calls=[call])


CASES = (
    Case(
        "A second call gets the ``AsyncResult`` of the one that runs.",
        of(while_it_runs, "plain", "running"),
    ),
    Case(
        "Or of the one that is queued: it is queued once.",
        of(while_it_is_queued, "plain", "queued"),
    ),
    Case("Calls with other arguments don't meet.", of(other_arguments, "plain", "others")),
    Case("The lock ends with the run.", of(after_its_end, "plain", "ended")),
    Case("Also when it raised.", of(after_a_failure, "plain", "failed")),
    Case(
        '``unique_on=["order"]``: the other arguments don\'t matter.',
        of(other_argument_outside_the_key, "unique_on", "unique-on"),
    ),
    Case(
        "``raise_on_duplicate=True``: ``apply_async`` raises.",
        of(while_it_runs, "raising", "raising"),
    ),
    Case("Its error names the first call.", names_the_first),
    Case(
        "``lock_expiry``: the lock ends after it, even while the task runs.",
        of(outlives_its_lock, "expiring", "expiring"),
        "different",
        "A lease is renewed for as long as the worker lives. For once in a time there is "
        "``idempotency_ttl``.",
    ),
    Case(
        "Without it a lock is left behind where a worker was killed.",
        of(killed, "plain", "killed"),
        "better",
        "The lease of a dead worker ends by itself, after half a minute by default.",
    ),
    Case(
        "``clear_locks``, called as a worker starts, ends such locks.",
        unlocked,
        "better",
        "``clear_locks`` also ends the locks of tasks that run. Here a lease ends by itself.",
    ),
    Case(
        "Arguments must be what ``json.dumps`` takes.",
        not_json,
        "better",
        "Keys are derived from dates, decimals, UUIDs, dataclasses and models, too.",
    ),
)

PEER = Peer("celery-singleton", "celery-singleton", theirs, ours, "tests.peers.singleton", CASES)
