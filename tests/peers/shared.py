"""Cases that more than one library documents."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.peers.bench import LEASE_S, SHORT_S, Seen, Side, count_runs, says, seen


def of(play: Callable[..., Seen], task: str, order: str) -> Callable[[Side], Seen]:
    """Play one of these with a task, for an order of its own."""
    return partial(play, task, order)


def while_it_runs(task: str, order: str, side: Side) -> Seen:
    """A duplicate while the first call runs."""
    first = side.call(task, order)
    side.wait_for_runs(order)
    second = side.call(task, order)
    side.let(order)
    side.get(first)
    side.wait_until_over(order)
    return seen(says(second), count_runs(side.runs(order)), calls=[second])


def while_it_is_queued(task: str, order: str, side: Side) -> Seen:
    """A duplicate while the first call is still queued."""
    side.hold_queue()
    first = side.call(task, order)
    second = side.call(task, order)
    side.release_queue()
    side.let(order)
    side.get(first)
    side.wait_until_over(order)
    return seen(says(second), count_runs(side.runs(order)), calls=[second])


def beside_it(task: str, order: str, side: Side) -> Seen:
    """A call while the first runs, where the key is free by then."""
    first = side.call(task, order)
    side.wait_for_runs(order)
    second = side.call(task, order)
    if second.kind == "published":
        side.wait_for_runs(order, 2)
    side.let(order)
    side.get(first)
    side.wait_until_over(order, side.runs(order))
    at_once = side.most_at_once(order)
    return seen(
        says(second, "the next call"),
        "two run at once" if at_once == 2 else "never two at once",
        calls=[second],
    )


def after_its_end(task: str, order: str, side: Side, **options: Any) -> Seen:
    """The same call again, after the first has ended."""
    side.let(order)
    side.get(side.call(task, order, **options))
    side.wait_until_over(order)
    second = side.call(task, order, **options)
    if second.kind == "published":
        side.get(second)
        side.wait_until_over(order, 2)
    return seen(says(second, "the next call"), count_runs(side.runs(order)), calls=[second])


def after_a_failure(task: str, order: str, side: Side) -> Seen:
    """The same call again, after the first has failed."""
    return after_its_end(task, order, side, kwargs={"fails": True})


def other_arguments(task: str, order: str, side: Side) -> Seen:
    """A call with other arguments while the first runs."""
    side.call(task, order)
    side.wait_for_runs(order)
    second = side.call(task, f"{order}-other")
    side.wait_for_runs(f"{order}-other")
    side.let(order, f"{order}-other")
    side.wait_until_over(order)
    return seen(says(second, "the other call"), "both run", calls=[second])


def other_argument_outside_the_key(task: str, order: str, side: Side) -> Seen:
    """A call that differs only in what is not part of the key, while the first runs."""
    first = side.call(task, order, kwargs={"by": "Ann"})
    side.wait_for_runs(order)
    second = side.call(task, order, kwargs={"by": "Bob"})
    side.let(order)
    side.get(first)
    side.wait_until_over(order)
    return seen(says(second), count_runs(side.runs(order)), calls=[second])


def one_for_all(task: str, order: str, side: Side) -> Seen:
    """Another order while the first runs, where one key is for all."""
    first = side.call(task, order)
    side.wait_for_runs(order)
    # What it returns shows whether it is the first call's.
    side._ids[f"{order}-other"] = side._ids[order]
    second = side.call(task, f"{order}-other")
    side.let(order, f"{order}-other")
    side.get(first)
    side.wait_until_over(order)
    return seen(says(second), f"{side.runs(f'{order}-other')} runs of it", calls=[second])


def outlives_its_lock(task: str, order: str, side: Side) -> Seen:
    """A duplicate while the first call runs for longer than the lock was given."""
    side.call(task, order)
    side.wait_for_runs(order)
    side.let_time_pass(SHORT_S + 1)
    second = side.call(task, order)
    if second.kind == "published":
        side.wait_for_runs(order, 2)
    side.let(order)
    side.wait_until_over(order, side.runs(order))
    at_once = side.most_at_once(order)
    return seen(
        says(second),
        "two run at once" if at_once == 2 else "never two at once",
        calls=[second],
    )


def killed(task: str, order: str, side: Side) -> Seen:
    """The next call after the worker was killed in the middle of the first."""
    side.call(task, order)
    side.wait_for_runs(order)
    side.kill_worker()
    side.let_time_pass(LEASE_S + 1)
    second = side.call(task, order)
    side.start_worker()
    side.let(order)
    if second.kind == "published":
        side.get(second)
        return seen("the next call runs")
    return seen(says(second, "the next call"), "it does not run", calls=[second])


def directly(task: str, order: str, side: Side) -> Seen:
    """A direct call while a published one runs."""
    side.call(task, order)
    side.wait_for_runs(order)
    side.app.tasks[task](order)
    side.let(order)
    side.wait_until_over(order, 2)
    return seen("the direct call runs", count_runs(side.runs(order)))
