"""Revoked, expired, late and eager calls, and the options of one call."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

from celery import chord, group, signature

from tests.support.compositions.base import ANSWERED, ANYTHING, Tasks, gives
from tests.support.compositions.stamps import stamped


def revoked_id(t: Tasks) -> str:
    task_id = str(uuid4())
    assert t.app.control.revoke(task_id, **ANSWERED)
    return task_id


@gives("TaskRevokedError: revoked")
def revoked_before_it_came(t: Tasks) -> Any:
    links = {"link": t.echo.s(), "link_error": t.errback_by_id.s()}
    return t.add.apply_async((1, 2), task_id=revoked_id(t), **links)


@gives("PENDING")
def revoked_in_a_chain(t: Tasks) -> Any:
    return (t.add.s(1, 2) | t.add.s(3).set(task_id=revoked_id(t)) | t.add.s(4))()


@gives([2, "TaskRevokedError: revoked"])
def revoked_in_a_group(t: Tasks) -> Any:
    return group(t.add.s(1, 1), t.add.s(2, 2).set(task_id=revoked_id(t)))()


@gives("ChordError: Dependency <id> raised TaskRevokedError('revoked')")
def revoked_in_a_chord(t: Tasks) -> Any:
    # The revoked part comes first, or chance says in which process the errback is called.
    header = [t.add.s(2, 2).set(task_id=revoked_id(t)), t.add.s(1, 1)]
    return chord(header)(t.total.s().on_error(t.errback_by_id.s()))


@gives([3, "TaskRevokedError: revoked"])
def revoked_by_its_stamp(t: Tasks) -> Any:
    assert t.app.control.revoke_by_stamped_headers({"tenant": ["banned"]}, **ANSWERED)
    return [t.add.s(1, 2).apply_async(), stamped(t.add.s(5, 2), "banned").apply_async()]


@gives("TaskRevokedError: terminated")
def terminated_while_it_runs(t: Tasks) -> Any:
    links = {"link": t.echo.s(), "link_error": t.errback_by_id.s()}
    sent = t.hold.apply_async(("shut",), **links)
    t.ledger.wait_for("body", id=sent.id)
    assert t.app.control.revoke(sent.id, terminate=True, **ANSWERED)
    t.ledger.wait_for("finished", id=sent.id)  # its process ends after it is told to be revoked
    return sent


@gives(["TaskRevokedError: revoked", "TaskRevokedError: revoked"])
def revoked_while_it_waits_for_its_time(t: Tasks) -> Any:
    sent = group(t.add.s(1, 1), t.add.s(2, 2)).apply_async(countdown=5)
    for each in sent:
        t.ledger.wait_for("received", id=each.id)
    assert t.app.control.revoke([each.id for each in sent], **ANSWERED)
    return sent


@gives("PENDING")
def without_a_result(t: Tasks) -> Any:
    return t.add.apply_async((1, 2), ignore_result=True, link=t.echo.s())


@gives("TaskRevokedError: expired")
def expired(t: Tasks) -> Any:
    past = datetime.now(timezone.utc) - timedelta(minutes=1)
    return t.add.apply_async((1, 2), expires=past, link=t.echo.s())


@gives("SoftTimeLimitExceeded: SoftTimeLimitExceeded()")
def soft_time_limit(t: Tasks) -> Any:
    links = {"link": t.echo.s(), "link_error": t.errback.s()}
    return t.hold.apply_async(("shut",), soft_time_limit=0.5, **links)


@gives(["too late", 2])
def soft_time_limit_that_is_caught(t: Tasks) -> Any:
    late = t.hold.s("shut", patient=False).set(soft_time_limit=0.5)
    return chord([late, t.echo.s(2)])(t.echo.s())


@gives([3, 4])
def later(t: Tasks) -> Any:
    due = datetime.now(timezone.utc) + timedelta(seconds=0.5)
    return [t.add.apply_async((1, 2), countdown=1), t.add.apply_async((2, 2), eta=due)]


@gives([3, 3, 3])
def the_same_call_thrice(t: Tasks) -> Any:
    return [t.add.delay(1, 2) for _ in range(3)]


@gives("PENDING")
def forgotten(t: Tasks) -> Any:
    sent = t.add.delay(1, 2)
    assert sent.get(timeout=30) == 3
    sent.forget()
    return t.app.AsyncResult(sent.id)


@gives(ANYTHING)
def result_that_no_serializer_takes(t: Tasks) -> Any:
    return t.odd.apply_async(link=t.echo.si("linked"), link_error=t.errback_by_id.s())


@gives("TypeError: _define_sums.<locals>.add() missing 1 required positional argument: 'x'")
def arguments_that_do_not_fit(t: Tasks) -> Any:
    return t.app.send_task("canvas.add", link_error=t.errback_by_id.s())


@gives([3, 5])
def by_name(t: Tasks) -> Any:
    named = signature("canvas.add", args=(2, 3), app=t.app)
    return [t.app.send_task("canvas.add", (1, 2)), named.apply_async()]


@gives([6, [2, 4], 6, "ValueError: failed for (1,)"])
def eagerly(t: Tasks) -> Any:
    members = group(t.add.s(1, 1), t.add.s(2, 2))
    sent = (t.add.s(1, 2) | t.add.s(3)), members, chord(members, t.total.s()), t.fail.s(1)
    return [sig.apply() for sig in sent]


@gives(3)
def with_every_option(t: Tasks) -> Any:
    return t.add.apply_async(
        (1,),
        {"y": 2},
        priority=3,
        headers={"mark": "mine"},
        countdown=0.05,
        expires=60,
        time_limit=50,
        soft_time_limit=40,
        argsrepr="(secret)",
        kwargsrepr="{secret}",
        retry=False,
        serializer="yaml",
        shadow="another name",
    )


@gives("TimeLimitExceeded: TimeLimitExceeded(0.5,)")
def hard_time_limit(t: Tasks) -> Any:
    # Without an errback: Celery sends it twice here, and a guarded task once.
    return t.hold.apply_async(("shut",), time_limit=0.5, link=t.echo.s())
