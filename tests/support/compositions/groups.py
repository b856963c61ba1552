"""Groups, chunks and maps."""

from __future__ import annotations

from typing import Any

from celery import chain, group
from celery.result import GroupResult, ResultSet

from tests.support.compositions.base import Tasks, gives


@gives([0, 2, 4])
def group_of_three(t: Tasks) -> Any:
    return group(t.add.s(n, n) for n in range(3))()


@gives([])
def group_of_nobody(t: Tasks) -> Any:
    return group([], app=t.app).apply_async()


@gives([11, 101, 1001, 2001])
def group_of_groups(t: Tasks) -> Any:
    inner = group(t.add.si(1, 1000), t.add.si(1, 2000))
    return group(t.add.si(1, 10), group(t.add.si(1, 100), inner))()


@gives([4, 12])
def group_of_chains(t: Tasks) -> Any:
    return group(t.add.s(1, 1) | t.add.s(2), t.add.s(3, 4) | t.add.s(5))()


@gives([2, "ValueError: failed for (1,)", 4])
def group_with_a_failing_member(t: Tasks) -> Any:
    return group(t.add.si(1, 1), t.fail.si(1), t.add.si(2, 2)).on_error(t.errback_by_id.s())()


@gives(["ValueError: failed for (1,)", "ValueError: failed for (2,)"])
def group_whose_members_have_errbacks(t: Tasks) -> Any:
    members = group(t.fail.si(n).on_error(t.errback.s()) for n in (1, 2))
    return members.on_error(t.errback_by_id.s())()


@gives([1, 2])
def group_with_a_link(t: Tasks) -> Any:
    members = group(t.echo.si(1), t.echo.si(2))
    members.link(t.add.s(10))
    return members()


@gives([1, 3])
def group_with_partial_arguments(t: Tasks) -> Any:
    return group(t.add.s(0), t.add.s(2)).apply_async((1,))


@gives([64, 65, 66])
def group_at_the_end_of_a_chain(t: Tasks) -> Any:
    return (t.add.s(60, 4) | group(t.add.s(n) for n in range(3)))()


@gives([["<id>", "<id>", 2], ["<id>", "<id>", 3]])
def group_of_places(t: Tasks) -> Any:
    return (t.place.si(0) | t.place.si(1) | group(t.place.si(n) for n in (2, 3)))()


@gives([6, [2, 4]])
def groups_one_after_the_other(t: Tasks) -> Any:
    return (group(t.add.s(1, 1), t.add.s(2, 2)) | group(t.total.s(), t.echo.s()))()


@gives(["after 0", "after 1"])
def group_task_group(t: Tasks) -> Any:
    before = group(t.echo.si(f"before {n}") for n in range(3))
    after = group(t.echo.si(f"after {n}") for n in range(2))
    return (before | t.echo.si("between") | after)()


@gives([[1, 3], [True, 2]])
def group_that_is_saved_and_restored(t: Tasks) -> Any:
    sent = group(t.add.s(1), t.add.s(3)).apply_async((0,))
    sent.save()
    restored = GroupResult.restore(sent.id, app=t.app)
    return [sent, [restored == sent, len(restored)]]


@gives([10, 11])
def group_that_is_skewed(t: Tasks) -> Any:
    return group(t.add.si(5, 5), t.add.si(5, 6)).skew(start=0, stop=0.2, step=0.1)()


@gives([[0, 2], [4, 6], [8]])
def chunks(t: Tasks) -> Any:
    return t.add.chunks([(n, n) for n in range(5)], 2).apply_async()


@gives([[0, 2], [4, 6]])
def chunks_as_a_group(t: Tasks) -> Any:
    return t.add.chunks([(n, n) for n in range(4)], 2).group()()


@gives([1, 2])
def mapped(t: Tasks) -> Any:
    return t.echo.map([1, 2]).apply_async()


@gives([3, 7])
def starmapped(t: Tasks) -> Any:
    return t.add.starmap([(1, 2), (3, 4)]).apply_async()


@gives("ValueError: failed for (1,)")
def mapped_over_what_fails(t: Tasks) -> Any:
    return t.fail.map([1, 2]).apply_async(link_error=t.errback_by_id.s())


@gives([11, 20])
def group_with_options(t: Tasks) -> Any:
    both = group(t.add.s(1), t.add.s(10))
    return both.apply_async((10,), headers={"mark": "mine"}, expires=60, priority=3)


@gives(20)
def group_of_groups_before_a_task(t: Tasks) -> Any:
    inner = group(t.add.s(3, 3), t.add.s(4, 4))
    return (group(group(t.add.s(1, 1)), group(t.add.s(2, 2)), inner) | t.total.s())()


@gives([2, 4])
def group_alone_in_a_chain(t: Tasks) -> Any:
    return chain(group(t.add.s(1, 1), t.add.s(2, 2))).apply_async()


@gives(12)
def starmapped_before_a_task(t: Tasks) -> Any:
    return (t.add.starmap([(n, n) for n in range(4)]) | t.total.s())()


@gives([[[[0, 2], [4, 6]]], {"named": 1}])
def chunks_before_a_task(t: Tasks) -> Any:
    pieces = t.add.chunks([(n, n) for n in range(4)], 2).group()
    return (pieces | t.echo.s(named=1))()


@gives([[2, 4], [2, "ValueError: failed for (1,)"], [True, False]])
def set_of_results(t: Tasks) -> Any:
    good = ResultSet([t.add.delay(1, 1)], app=t.app)
    good.add(t.add.delay(2, 2))
    mixed = ResultSet([t.add.delay(1, 1), t.fail.delay(1)], app=t.app)
    good.join(timeout=30)
    mixed.join_native(timeout=30, propagate=False)
    return [good, mixed, [good.successful(), mixed.successful()]]


@gives([[[0, 2], [0, 2]], None])
def group_that_is_read_in_every_way(t: Tasks) -> Any:
    sent = group(t.add.s(n, n) for n in range(2))()
    native = [value["result"] for _, value in sent.iter_native(timeout=30)]
    sent.save()
    sent.delete()
    return [[sent.join(timeout=30), sorted(native)], GroupResult.restore(sent.id, app=t.app)]
