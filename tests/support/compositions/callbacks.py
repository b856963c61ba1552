"""Links, errbacks, and what a body calls."""

from __future__ import annotations

from typing import Any

from celery import group

from tests.support.compositions.base import Tasks, gives


@gives(3)
def link_of_one(t: Tasks) -> Any:
    return t.add.apply_async((1, 2), link=t.add.s(10))


@gives(3)
def links_of_all_kinds(t: Tasks) -> Any:
    several = [
        t.add.s(10),
        t.add.si(7, 7),
        t.add.s(20) | t.add.s(30),
        group(t.add.s(1), t.add.s(2)),
    ]
    return t.add.apply_async((1, 2), link=several)


@gives(3)
def link_and_chain(t: Tasks) -> Any:
    head = t.add.s(1, 2)
    head.link(t.add.s(10))
    return [(head | t.add.s(5))().parent][0]


@gives("ValueError: failed for (1,)")
def link_of_a_failure(t: Tasks) -> Any:
    links = {"link": t.echo.s(), "link_error": [t.errback.s(), t.errback_by_id.s()]}
    return t.fail.apply_async((1,), **links)


@gives("ValueError: failed for (1,)")
def errback_that_fails(t: Tasks) -> Any:
    return t.fail.apply_async((1,), link_error=t.errback_fails.s())


@gives("ValueError: failed for (1,)")
def errback_that_is_a_chain(t: Tasks) -> Any:
    return t.fail.apply_async((1,), link_error=t.echo.si("a") | t.echo.si("b"))


@gives(3)
def link_with_a_link(t: Tasks) -> Any:
    link = t.add.s(10)
    link.link(t.add.s(100))
    return t.add.apply_async((1, 2), link=link)


@gives(2)
def link_after_a_retry(t: Tasks) -> Any:
    return t.twice.apply_async((2,), link=t.add.s(1), link_error=t.errback_by_id.s())


@gives(3)
def children_of_a_body(t: Tasks) -> Any:
    return t.spawn.delay(3)


@gives(2)
def link_of_a_chord_and_of_a_dictionary(t: Tasks) -> Any:
    links = [group(t.add.s(4), t.add.s(5)) | t.total.s(), dict(t.add.s(7))]
    return t.add.apply_async((1, 1), link=links)


@gives("ValueError: failed for (1,)")
def errback_that_is_retried(t: Tasks) -> Any:
    return t.fail.apply_async((1,), link_error=[t.twice.si(1), dict(t.echo.si("immutable"))])


@gives([5, 5])
def body_that_calls_others_in_its_process(t: Tasks) -> Any:
    return [t.inline.delay(t.add.s(1, 4)), (t.inline.s(t.add.s(1, 1) | t.add.s(1)) | t.add.s(2))()]


@gives([[3, 6], {"0": 3, "1": 6}])
def results_that_are_collected(t: Tasks) -> Any:
    result = (t.add.s(1, 2) | t.add.s(3)).apply_async()
    assert result.get(timeout=30) == 6
    values = [value for _, value in result.parent.collect()]
    return [values, {str(place): value for place, value in enumerate(values)}]
