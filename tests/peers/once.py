"""celery-once: what its README documents."""

from __future__ import annotations

from threading import Thread
from typing import Any

from celery_once import QueueOnce  # type: ignore[import-untyped]

from celery_idempotent import IdempotentTask
from tests.peers.bench import (
    SHORT_S,
    Call,
    Case,
    Peer,
    Seen,
    Side,
    count_runs,
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
    beside_it,
    directly,
    killed,
    of,
    one_for_all,
    other_argument_outside_the_key,
    other_arguments,
    outlives_its_lock,
    while_it_is_queued,
    while_it_runs,
)

theirs = make_app("celery-once", 0)
theirs.conf.ONCE = {
    "backend": "celery_once.backends.Redis",
    "settings": {"url": url(2), "default_timeout": 3600},
}
ours = make_ours(idempotency_on_enqueue="raise")


def plain(self: Any, order: str, by: str = "", fails: bool = False) -> str:
    return work(self, order, fails)


def unlocking(self: Any, order: str) -> str:
    """Free the key before the work begins."""
    self.idempotency.release()
    return work(self, order)


def there(name: str, **once: Any) -> None:
    theirs.task(name=name, base=QueueOnce, bind=True, shared=False, once=once)(plain)


def here(name: str, body: Any = plain, **options: Any) -> None:
    ours.task(name=name, base=IdempotentTask, bind=True, shared=False, **options)(body)


there("plain")
here("plain")
there("graceful", graceful=True)
here("graceful", idempotency_on_enqueue="attach")
there("keys", keys=["order"])
here("keys", idempotency_key=("order",))
there("no_keys", keys=[])
here("no_keys", idempotency_key=lambda *args, **kwargs: "all")
there("timeout", timeout=SHORT_S)
here("timeout")
there("unlocking", unlock_before_run=True)
here("unlocking", unlocking)
there("blocking")
here("blocking", idempotency_on_enqueue="publish", idempotency_after_wait="run")


def graceful_in_a_call(side: Side) -> Seen:
    """The option in one call only."""
    order = "graceful-call"
    first = side.call("plain", order)
    side.wait_for_runs(order)
    second = side.call("plain", order, once={"graceful": True})
    side.let(order)
    side.get(first)
    side.wait_until_over(order)
    return seen(says(second), count_runs(side.runs(order)), calls=[second])


def blocks(side: Side) -> Seen:
    """A caller that waits for the lock, for up to half a minute."""
    order = "blocking"
    theirs.conf.ONCE["settings"] |= {"blocking": True, "blocking_timeout": 30}
    try:
        first = side.call("blocking", order)
        side.wait_for_runs(order)
        calls: list[Call] = []
        caller = Thread(target=lambda: calls.append(side.call("blocking", order)))
        caller.start()
        caller.join(timeout=3)
        waits = caller.is_alive()
        side.let(order)
        caller.join()
        side.get(first)
        side.get(calls[0])
    finally:
        theirs.conf.ONCE["settings"]["blocking"] = False
    side.wait_until_over(order, 2)
    return seen(
        "the caller waits" if waits else "the caller does not wait",
        count_runs(side.runs(order)),
        "never two at once" if side.most_at_once(order) == 1 else "two at once",
    )


CASES = (
    Case(
        "A task isn't queued while the same one runs: ``apply_async`` raises.",
        of(while_it_runs, "plain", "running"),
    ),
    Case(
        "Nor while the same one is queued.",
        of(while_it_is_queued, "plain", "queued"),
    ),
    Case("Calls with other arguments don't meet.", of(other_arguments, "plain", "others")),
    Case("The lock ends with the run.", of(after_its_end, "plain", "ended")),
    Case("Also when it raised.", of(after_a_failure, "plain", "failed")),
    Case("Direct calls aren't affected.", of(directly, "plain", "direct")),
    Case(
        '``"graceful": True``: the duplicate gets ``None``.',
        of(while_it_runs, "graceful", "graceful"),
        "better",
        'With ``"attach"`` the caller has something to wait for.',
    ),
    Case(
        '``once={"graceful": True}`` in one call.',
        graceful_in_a_call,
        "different",
        "Here it is an option of the task, and not of a call.",
    ),
    Case(
        '``"keys": ["order"]``: the other arguments don\'t matter.',
        of(other_argument_outside_the_key, "keys", "keys"),
    ),
    Case(
        '``"keys": []``: one at a time, whatever its arguments.', of(one_for_all, "no_keys", "all")
    ),
    Case(
        '``"timeout"``: the lock ends after it, even while the task runs.',
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
        '``"unlock_before_run": True``: the next call is queued while the first runs.',
        of(beside_it, "unlocking", "unlocking"),
    ),
    Case(
        '``"blocking": True``: the caller waits for the lock, then its call runs.',
        blocks,
        "different",
        "The waiting is the worker's, and holds no slot of its pool.",
    ),
)

PEER = Peer("celery-once", "celery-once", theirs, ours, "tests.peers.once", CASES)
