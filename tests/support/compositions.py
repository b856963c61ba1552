"""Celery's ways of composing tasks, each as a function of the tasks: what is sent, what comes out.

:func:`gives` says what the composition's result holds once nothing is left to do: an exception is
written as ``"ValueError: ..."``, a call that has no outcome by its state, a task id as ``<id>``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

from celery import chain, chord, group, signature
from celery.canvas import Signature, StampingVisitor
from celery.result import GroupResult

from tests.support.ledger import Ledger

#: A control command is answered by the one worker of its side.
ANSWERED: dict[str, Any] = {"reply": True, "limit": 1, "timeout": 10}

#: What comes out is worded otherwise in each version of Celery or kombu.
ANYTHING = object()


class Tasks:
    """One side: its tasks by their short names, its app, and the ledger that its bodies write."""

    def __init__(self, app: Any, ledger: Ledger) -> None:
        self.app = app
        self.ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return self.app.tasks[f"canvas.{name}"]


@dataclass(frozen=True)
class Composition:
    """One way of composing."""

    name: str
    compose: Callable[[Tasks], Any]
    expected: Any


COMPOSITIONS: list[Composition] = []


def gives(expected: Any) -> Callable[[Any], Any]:
    """Register a composition and what comes out of it."""

    def register(compose: Callable[[Tasks], Any]) -> Callable[[Tasks], Any]:
        COMPOSITIONS.append(Composition(compose.__name__, compose, expected))
        return compose

    return register


# --- chains --------------------------------------------------------------------------------------


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


@gives("Reject: ('not today', False)")
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


# --- groups --------------------------------------------------------------------------------------


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


# --- chords --------------------------------------------------------------------------------------


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


@gives(CHORD_ERROR)
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


@gives("ChordError: Dependency <id> raised TaskRevokedError('expired')")
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


# --- replace -------------------------------------------------------------------------------------


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


@gives([[1, 2], 5])
def replaced_by_a_group_in_a_chords_header(t: Tasks) -> Any:
    part = t.become.si(other=group(t.echo.si(1), t.echo.si(2)))
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


# --- chunks and maps -----------------------------------------------------------------------------


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


# --- callbacks -----------------------------------------------------------------------------------


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


# --- stamps --------------------------------------------------------------------------------------


class Tenant(StampingVisitor):  # type: ignore[misc]
    """Stamp each signature with a tenant, and each kind with its own word."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant

    def on_signature(self, sig: Signature, **headers: Any) -> dict[str, Any]:
        return {"tenant": self.tenant, "unlisted": 1, "stamped_headers": ["tenant"]}

    def on_group_start(self, sig: Signature, **headers: Any) -> dict[str, Any]:
        return {"in_group": True}

    def on_callback(self, callback: Signature, **headers: Any) -> dict[str, Any]:
        return {"called_back": "yes"}

    def on_errback(self, errback: Signature, **headers: Any) -> dict[str, Any]:
        return {"called_back": "no"}


def stamped(sig: Any, tenant: str = "a") -> Any:
    sig.stamp(visitor=Tenant(tenant))
    return sig


@gives(6)
def stamps_on_a_chain(t: Tasks) -> Any:
    return stamped(t.add.s(1, 2) | t.add.s(3))()


@gives(5)
def stamps_on_a_chord(t: Tasks) -> Any:
    return stamped(chord([t.add.s(1, 1), t.add.s(2, 1)], t.total.s())).apply_async()


@gives([3, "ValueError: failed for (1,)"])
def stamps_on_callbacks(t: Tasks) -> Any:
    good = t.add.s(1, 2).set(link=[t.add.s(10)])
    bad = t.fail.s(1).set(link_error=[t.errback_by_id.s()])
    return stamped(group(good, bad))()


@gives(4)
def stamps_outlive_retry_and_replace(t: Tasks) -> Any:
    return stamped(t.twice.s(1) | t.become.s(other=t.add.s(3)))()


@gives(3)
def stamps_by_hand(t: Tasks) -> Any:
    sig = t.add.s(1, 2)
    sig.stamp(color=["red", "blue"])
    return sig.apply_async(link=t.echo.s())


# --- revoking ------------------------------------------------------------------------------------


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
    return sent


@gives(["TaskRevokedError: revoked", "TaskRevokedError: revoked"])
def revoked_while_it_waits_for_its_time(t: Tasks) -> Any:
    sent = group(t.add.s(1, 1), t.add.s(2, 2)).apply_async(countdown=1)
    for each in sent:
        t.ledger.wait_for("received", id=each.id)
    assert t.app.control.revoke([each.id for each in sent], **ANSWERED)
    return sent


# --- options of one call -------------------------------------------------------------------------


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
