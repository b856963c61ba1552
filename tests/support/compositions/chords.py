"""Chords: plain, nested, in chains and groups, failing, growing."""

from __future__ import annotations

from typing import Any

from celery import chain, chord, group

from tests.support.compositions.base import ANYTHING, Tasks, gives


@gives(12)
def chord_of_three(t: Tasks) -> Any:
    return chord([t.add.s(n, 3) for n in range(3)])(t.total.s())


@gives(5)
def chord_of_one(t: Tasks) -> Any:
    return chord([t.add.s(2, 3)])(t.total.s())


@gives(0)
def chord_of_nobody(t: Tasks) -> Any:
    return chord([], app=t.app)(t.total.s())


@gives(13)
def chord_made_of_a_group_in_a_chain(t: Tasks) -> Any:
    return (group(t.add.s(1, 2), t.add.s(3, 4)) | t.total.s() | t.add.s(3))()


@gives([12, 13])
def chord_after_a_task(t: Tasks) -> Any:
    return (t.add.s(2, 2) | group(t.add.s(8), t.add.s(9)) | t.echo.s())()


@gives("shut")
def chord_whose_body_takes_nothing(t: Tasks) -> Any:
    return chord([t.echo.s(1), t.echo.s(2)])(t.echo.si("shut"))


CHORD_ERROR = "ChordError: Dependency <id> raised ValueError(\"failed for ('part',)\")"


@gives(CHORD_ERROR)
def chord_whose_header_fails(t: Tasks) -> Any:
    body = t.total.s().on_error(t.errback.s()).on_error(t.errback_by_id.s())
    return chord([t.add.s(1, 1), t.fail.s("part")])(body)


@gives(CHORD_ERROR)
def chord_with_errbacks_everywhere(t: Tasks) -> Any:
    header = [t.fail.s("part").on_error(t.errback.s())]
    sent = chord(header, t.total.s().on_error(t.errback_by_id.s()))
    return sent.on_error(t.errback_by_id.s()).apply_async()


@gives("ValueError: failed for ([1, 2],)")
def chord_whose_body_fails(t: Tasks) -> Any:
    return chord([t.echo.s(1), t.echo.s(2)])(t.fail.s().on_error(t.errback.s()))


@gives(ANYTHING)
def chord_in_a_chain_that_fails(t: Tasks) -> Any:
    return (chord([t.fail.s("part"), t.echo.s(2)], t.total.s()) | t.add.s(1))()


@gives(23)
def chord_of_chords(t: Tasks) -> Any:
    inner = [chord([t.add.s(n, 1), t.add.s(n, 2)], t.total.s()) for n in (1, 4)]
    return chord([*inner, t.echo.si(7)])(t.total.s())


@gives(14)
def chord_in_a_chords_body(t: Tasks) -> Any:
    inner = chord([t.total.s(), t.total.s()], t.total.s())
    return chord([t.echo.s(3), t.echo.s(4)])(inner)


@gives([7, 3])
def chord_in_a_group(t: Tasks) -> Any:
    return group(chord([t.echo.s(3), t.echo.s(4)], t.total.s()), t.add.si(1, 2))()


@gives(15)
def chain_in_a_chords_header(t: Tasks) -> Any:
    return chord([t.add.s(1, 2) | t.add.s(3), t.add.s(4, 5)])(t.total.s())


@gives(6)
def group_in_a_chords_header(t: Tasks) -> Any:
    return chord([group(t.echo.s(1), t.echo.s(2)), t.echo.s(3)])(t.total.s())


@gives(8)
def chain_in_a_chords_body(t: Tasks) -> Any:
    return chord([t.echo.s(1), t.echo.s(2)])(t.total.s() | t.add.s(5))


@gives([3, [1, 2]])
def group_in_a_chords_body(t: Tasks) -> Any:
    return chord([t.echo.s(1), t.echo.s(2)], group(t.total.s(), t.echo.s())).apply_async()


@gives(3)
def chord_with_a_link_on_its_body(t: Tasks) -> Any:
    return chord([t.echo.s(1), t.echo.s(2)])(t.total.s().set(link=[t.add.s(100)]))


@gives(6)
def chord_with_parts_that_retry(t: Tasks) -> Any:
    return chord([t.twice.s(1), t.flaky.s(2, 2), t.twice.s(3, countdown=1)])(t.total.s())


@gives("ChordError: Dependency <id> raised ConnectionError('attempt 2')")
def chord_with_a_part_whose_retries_are_used_up(t: Tasks) -> Any:
    return chord([t.echo.s(1), t.flaky.s(2, 9)])(t.total.s())


@gives(["<id>", "<id>", 9])
def chord_of_places(t: Tasks) -> Any:
    header = group(t.place.si(n) for n in (1, 2, 3))
    return chain(t.place.si(0), chord(header, t.echo.s() | t.place.si(9)))()


@gives(7)
def chord_that_a_part_adds_to(t: Tasks) -> Any:
    return chord([t.echo.s(5), t.more.s(1)])(t.total.s())


@gives([1, 2])
def chord_with_a_part_without_a_result(t: Tasks) -> Any:
    return chord([t.echo.s(1), t.unsaid.s(2)])(t.echo.s())


@gives("PENDING")
def chord_with_a_part_that_is_ignored(t: Tasks) -> Any:
    return chord([t.echo.s(1), t.ignore.s(2)])(t.total.s())


@gives(ANYTHING)
def chord_with_a_part_that_expired(t: Tasks) -> Any:
    return chord([t.echo.s(2).set(expires=-1), t.echo.s(1)])(t.total.s())


@gives("ValueError: failed for (1,)")
def chord_with_errbacks_on_its_header_by_setting(t: Tasks) -> Any:
    t.app.conf.task_allow_error_cb_on_chord_header = True
    try:
        whole = chord([t.echo.si(2), t.fail.si(1)], t.total.s())
        return whole.on_error(t.errback_by_id.s()).apply_async().parent.results[1]
    finally:
        t.app.conf.task_allow_error_cb_on_chord_header = False


@gives(29)
def chord_three_deep(t: Tasks) -> Any:
    deep = chord([t.add.s(1, 1), t.add.s(2, 1)], t.total.s())
    deeper = chord([deep, t.add.s(3, 1)], t.total.s())
    return chord(group(deeper, t.add.s(4, 15)), t.total.s() | t.add.s(1)).apply_async()


@gives(13)
def chords_one_after_the_other(t: Tasks) -> Any:
    one = chord([t.echo.si(1), t.echo.si(2)], t.total.s())
    two = chord([t.add.s(3), t.add.s(3)], t.total.s())
    return (one | two | t.add.s(1)).apply_async()


@gives(10)
def chords_at_once_before_a_task(t: Tasks) -> Any:
    one = chord([t.echo.si(1), t.echo.si(2)], t.total.s())
    two = chord([t.echo.si(3), t.echo.si(4)], t.total.s())
    return (group(one, two) | t.total.s()).apply_async()


@gives(3)
def chord_whose_parts_have_links(t: Tasks) -> Any:
    parts = [t.echo.s(1).set(link=[t.add.s(10)]), t.echo.s(2)]
    whole = chord(parts, t.total.s())
    whole.link(t.add.s(100))
    return whole.apply_async(headers={"mark": "mine"}, priority=3)


@gives(3)
def chord_whose_parts_keep_nothing(t: Tasks) -> Any:
    return chord([t.echo.s(1).set(ignore_result=True), t.echo.s(2)], t.total.s()).apply_async()


@gives(435)
def chord_of_thirty(t: Tasks) -> Any:
    return chord([t.echo.s(number) for number in range(30)])(t.total.s())


@gives(CHORD_ERROR)
def chord_of_chords_that_fails_inside(t: Tasks) -> Any:
    inner = chord([t.echo.s(1), t.fail.s("part")], t.total.s())
    result = chord([inner, t.echo.s(5)])(t.total.s().on_error(t.errback_by_id.s()))
    return result.parent.results[0]


@gives("ChordError: Dependency <id> raised ValueError('failed for (1,)')")
def chord_with_a_chain_that_fails(t: Tasks) -> Any:
    body = t.total.s().on_error(t.errback.s())
    return chord([t.echo.si(1) | t.fail.s() | t.echo.s(), t.echo.s(2)])(body)
