"""Chains, from plain ones to those that fail, retry or stop on their way."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

from celery import chain, signature

from tests.support.compositions.base import ANYTHING, Tasks, gives


@gives(32)
def chain_of_partials(t: Tasks) -> Any:
    return (t.add.s(4, 4) | t.add.s(8) | t.add.s(16))()


@gives(4)
def chain_with_immutable_signatures(t: Tasks) -> Any:
    return (t.add.s(1, 1) | t.add.si(2, 2) | t.echo.s())()


@gives([[3], {"b": 2}])
def chain_with_keywords(t: Tasks) -> Any:
    return chain(t.add.s(1).clone(kwargs={"y": 2}), t.echo.s(b=2)).apply_async()


@gives(["<id>", "<id>", 4])
def chain_of_places(t: Tasks) -> Any:
    return chain(t.place.si(number) for number in range(5))()


@gives(10)
def chain_of_chains(t: Tasks) -> Any:
    first, second = chain(t.add.s(1, 2), t.add.s(3)), chain(t.add.s(4), t.echo.s())
    return (first | second)()


@gives("ValueError: failed for ('mid',)")
def chain_that_fails_midway(t: Tasks) -> Any:
    tail = t.add.s(1).set(link_error=[t.errback.s()])
    return (t.add.s(1, 1) | t.fail.si("mid") | tail).apply_async(link_error=t.errback_by_id.s())


@gives("ValueError: failed for (1,)")
def chain_on_error(t: Tasks) -> Any:
    return (t.echo.s(1) | t.fail.s() | t.echo.s()).on_error(t.errback.s()).apply_async()


@gives(7)
def chain_with_a_retry(t: Tasks) -> Any:
    return (t.add.s(1, 2) | t.twice.s() | t.add.s(4))()


@gives(7)
def chain_with_a_later_retry(t: Tasks) -> Any:
    return (t.add.s(1, 2) | t.twice.s(countdown=1) | t.add.s(4))()


@gives(11)
def chain_with_a_retry_that_changes_the_call(t: Tasks) -> Any:
    return (t.other_way.s(2, 3) | t.add.s(4)).apply_async(priority=6)


@gives("KeyError: 'never 2'")
def chain_whose_retries_are_used_up(t: Tasks) -> Any:
    return (t.echo.s(2) | t.never.s() | t.echo.s()).apply_async(link_error=t.errback_by_id.s())


@gives("PENDING")
def chain_that_is_ignored_midway(t: Tasks) -> Any:
    return (t.echo.s(1) | t.ignore.s() | t.echo.s())()


@gives(ANYTHING)
def chain_that_is_rejected_midway(t: Tasks) -> Any:
    return (t.echo.s(1) | t.reject.s() | t.echo.s())()


@gives(6)
def chain_that_travelled_as_json(t: Tasks) -> Any:
    packed = json.loads(json.dumps(t.add.s(1, 2) | t.add.s(3)))
    return signature(packed, app=t.app).apply_async()


@gives(5)
def chain_with_ids_of_its_own(t: Tasks) -> Any:
    head = t.add.s(1, 2).set(task_id=str(uuid4()))
    return (head | t.add.s(2)).apply_async(task_id=str(uuid4()))


@gives([12, 2, 3])
def chain_with_links_on_its_parts(t: Tasks) -> Any:
    first, last = t.add.s(1, 1).set(link=[t.add.s(10)]), t.add.s(1)
    whole = first | last | t.add.s(9)
    whole.link(t.add.s(100))
    result = whole.apply_async()
    return [result, result.parent.parent, result.parent]


@gives(["<id>", "<id>", 3])
def chain_that_was_frozen(t: Tasks) -> Any:
    whole = t.place.si(1) | t.place.si(2) | t.place.si(3)
    frozen = whole.freeze()
    result = whole.apply_async()
    assert frozen.id == result.id
    return result


@gives(91)
def chain_of_a_dozen(t: Tasks) -> Any:
    return chain(t.add.s(0, 0), *(t.add.s(number) for number in range(1, 14))).apply_async()


@gives(10)
def chain_that_keeps_nothing_on_its_way(t: Tasks) -> Any:
    return (t.unsaid.s(1) | t.add.s(2) | t.add.s(7)).apply_async()


@gives(5)
def chain_with_options_for_all_and_for_one(t: Tasks) -> Any:
    whole = t.add.s(1, 2) | t.add.s(1).set(priority=6, serializer="yaml") | t.add.s(1)
    return whole.apply_async(headers={"mark": "mine"}, priority=3)
