"""Tasks that leave their place to another, a chain, a group, a chord or themselves."""

from __future__ import annotations

from typing import Any

from celery import chord, group

from tests.support.compositions.base import Tasks, gives


@gives(15)
def replaced_in_a_chain(t: Tasks) -> Any:
    return (t.add.s(1, 2) | t.become.s(other=t.add.s(4)) | t.add.s(8))()


@gives(18)
def replaced_by_a_chain(t: Tasks) -> Any:
    return (t.become.s(other=t.add.s(1, 2) | t.add.s(7)) | t.add.s(8))()


@gives([3, 4])
def replaced_by_a_group(t: Tasks) -> Any:
    return t.become.s(other=group(t.add.s(1, 2), t.add.s(2, 2))).apply_async()


@gives(7)
def replaced_by_a_group_in_a_chain(t: Tasks) -> Any:
    return (t.become.si(other=group(t.add.s(1, 2), t.add.s(2, 2))) | t.total.s())()


@gives(8)
def replaced_by_a_chord(t: Tasks) -> Any:
    other = chord([t.echo.si(1), t.echo.si(2)], t.total.s())
    return (t.become.si(other=other) | t.add.s(5))()


@gives(3)
def replaced_again_and_again(t: Tasks) -> Any:
    return t.nest.delay(3)


@gives(10)
def replaced_in_a_chords_header(t: Tasks) -> Any:
    parts = [t.become.si(other=t.add.s(1, 2)), t.become.si(other=t.add.s(3, 1) | t.echo.s())]
    return chord([*parts, t.echo.s(3)])(t.total.s())


# In which order the parts of what was a part come is chance in Celery 5.5: here they are alike.


@gives([[1, 1], 5])
def replaced_by_a_group_in_a_chords_header(t: Tasks) -> Any:
    part = t.become.si(other=group(t.echo.si(1), t.echo.si(1)))
    return chord([part, t.echo.s(5)])(t.echo.s())


@gives(6)
def replaced_in_a_chords_body(t: Tasks) -> Any:
    return chord([t.echo.s(2), t.echo.s(4)])(t.become.s(other=t.total.s()))


@gives("ValueError: failed for ('stand-in',)")
def replaced_by_what_fails(t: Tasks) -> Any:
    head = t.become.s(other=t.fail.s("stand-in"))
    return (head | t.echo.s()).apply_async(link_error=t.errback_by_id.s())


@gives(3)
def replaced_with_a_link(t: Tasks) -> Any:
    return t.become.s(other=t.add.s(1, 2)).apply_async(link=t.add.s(10))


@gives(9)
def replaced_by_what_is_replaced(t: Tasks) -> Any:
    return (t.become.s(other=t.become.si(other=t.add.s(1, 2))) | t.add.s(6))()


@gives(6)
def replaced_by_a_chord_in_a_chords_header(t: Tasks) -> Any:
    inner = chord([t.echo.si(2), t.echo.si(2)], t.total.s())
    return chord([t.become.si(other=inner), t.echo.s(2)])(t.total.s())


@gives(14)
def replaced_by_a_chain_in_a_chords_body(t: Tasks) -> Any:
    body = t.become.s(other=t.total.si([1, 2]) | t.add.s(1)) | t.add.s(10)
    return chord([t.echo.s(1), t.echo.s(2)])(body)


@gives([3, 4])
def replaced_by_a_group_in_a_chords_body(t: Tasks) -> Any:
    body = t.become.s(other=group(t.echo.si(3), t.echo.si(4)))
    return chord([t.echo.s(1), t.echo.s(2)])(body)


@gives([6, 4])
def replaced_in_a_group(t: Tasks) -> Any:
    return group(t.become.si(other=t.add.s(1, 1) | t.add.s(4)), t.add.s(2, 2))()


@gives(5)
def replaced_by_what_retries(t: Tasks) -> Any:
    return (t.become.si(other=t.twice.s(4)) | t.add.s(1))()


@gives(5)
def replaced_with_callbacks_on_both(t: Tasks) -> Any:
    inner = (t.add.s(1, 1) | t.add.s(3)).set(link=[t.add.s(10)])
    return t.become.apply_async(kwargs={"other": inner}, link=t.add.s(100))


@gives("ValueError: failed for ('inner',)")
def replaced_by_a_chain_that_fails(t: Tasks) -> Any:
    inner = t.echo.s(1) | t.fail.si("inner")
    inner.link_error(t.errback.s())
    return (t.become.si(other=inner).on_error(t.errback_by_id.s()) | t.echo.s())()


@gives("ChordError: Dependency <id> raised ValueError('failed for (1,)')")
def replaced_by_what_fails_in_a_chords_header(t: Tasks) -> Any:
    body = t.total.s().on_error(t.errback_by_id.s())
    return chord([t.echo.s(2), t.become.si(other=t.fail.s(1))])(body)
