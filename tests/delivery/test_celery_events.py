"""The mark on a duplicate's result: who can make it, how it travels, and what is said of it."""

from __future__ import annotations

import json
import pickle
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import pytest
from billiard.reduction import ForkingPickler
from celery import Celery
from celery.app.trace import TraceInfo, build_tracer, trace_ok_t
from celery.utils.saferepr import saferepr
from kombu.message import Message
from kombu.serialization import dumps

from celery_idempotent import IdempotentTask
from celery_idempotent.core.keys import CallKey
from celery_idempotent.core.message import OWN, own_header
from celery_idempotent.delivery import celery_events as events
from celery_idempotent.delivery.celery_events import (
    Duplicate,
    MarkedRepr,
    follow_up,
    mark,
    name_key,
)
from celery_idempotent.worker import waiters
from celery_idempotent.worker.request import IdempotentRequest

KEY, ORIGINAL, RECORD = "order:42", "the-first", "idempotent:{shop.charge:order:42}"
DUPLICATE = Duplicate(KEY, ORIGINAL, RECORD)


def answer(result: Any = 1, failed: bool = False) -> Any:
    info = TraceInfo("FAILURE", ValueError()) if failed else None
    return trace_ok_t(result, info, 0.1, saferepr(result))


class Eventer:
    """Keeps what is sent."""

    enabled = True

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, kind: str, **fields: Any) -> None:
        self.sent.append((kind, fields))


@pytest.fixture
def eventer() -> Eventer:
    return Eventer()


@pytest.fixture
def request_(eventer: Eventer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A request of a worker that holds no waiters, without the worker around it."""
    monkeypatch.setattr(waiters, "_all", WeakSet())
    app = Celery("events", set_as_current=False)
    app.conf.idempotency_store_url = "memory://test-events"

    @app.task(base=IdempotentTask, name="shop.charge", send_events=True, shared=False)
    def task(order: int) -> int:
        return order

    request: Any = IdempotentRequest.__new__(IdempotentRequest)
    request.id = "task-1"
    request._app, request._eventer, request._task = app, eventer, task
    request._request_dict = {"id": "task-1"}
    request._message = Message(body="[]", content_type="application/json")
    yield request
    app.close()


def test_a_marked_answer_says_whose_outcome_it_is(request_: Any, eventer: Eventer) -> None:
    """The success is told as it is, and then that it was a duplicate's, with key and original."""
    # Given
    text = mark(answer({"receipt": 7}), DUPLICATE).retstr
    # When
    request_.send_event("task-succeeded", result=text, runtime=0.1)
    # Then
    assert eventer.sent == [
        (
            "task-succeeded",
            {"uuid": "task-1", "result": "{'receipt': 7}", "runtime": 0.1},
        ),
        (
            "task-deduplicated",
            {
                "uuid": "task-1",
                "state": "DEDUPLICATED",
                "result": "deduplicated key=order:42 original=the-first",
                "idempotency_key": KEY,
                "idempotency_original": ORIGINAL,
                "idempotency_record": RECORD,
            },
        ),
    ]
    assert all(type(fields["result"]) is str for _, fields in eventer.sent)


@pytest.mark.parametrize(
    "result",
    [
        "deduplicated key=order:42 original=the-first",
        MarkedRepr("'forged'", DUPLICATE),
        [MarkedRepr("'forged'", DUPLICATE)],
        SimpleNamespace(key=KEY, original=ORIGINAL),
    ],
    ids=["its text", "itself", "a list of it", "its fields"],
)
def test_no_result_can_pass_for_a_mark(request_: Any, eventer: Eventer, result: Any) -> None:
    """A task may return what it likes, the mark itself too: it is not taken for a duplicate."""
    # When
    text = answer(result).retstr
    request_.send_event("task-succeeded", result=text, runtime=0.1)
    # Then
    assert [kind for kind, _ in eventer.sent] == ["task-succeeded"]


def test_a_repr_of_ones_own_making_is_no_mark(request_: Any, eventer: Eventer) -> None:
    """Not even a result whose repr returns the mark."""

    # Given
    class Sly:
        def __repr__(self) -> str:
            return MarkedRepr("'forged'", DUPLICATE)

    # When
    text = answer(Sly()).retstr
    request_.send_event("task-succeeded", result=text, runtime=0.1)
    # Then
    assert "forged" in text
    assert [kind for kind, _ in eventer.sent] == ["task-succeeded"]


def test_the_mark_survives_the_way_to_the_parent() -> None:
    """What the pool's pipe carries arrives as a mark; what JSON carries is the plain text."""
    # Given
    marked = mark(answer("done"), DUPLICATE).retstr
    # When
    arrived = pickle.loads(bytes(ForkingPickler.dumps((0, marked, 0.1))))[1]
    # Then
    assert (type(arrived), str(arrived)) == (MarkedRepr, "'done'")
    assert arrived.duplicate == DUPLICATE
    assert json.loads(dumps({"result": marked}, serializer="json")[2]) == {"result": "'done'"}


def test_in_shadow_mode_it_is_said_what_would_have_been(request_: Any, eventer: Eventer) -> None:
    """The task ran, and its own result stays to be seen beside what it would have got."""
    # Given
    duplicate = Duplicate(KEY, ORIGINAL, RECORD, shadow=True)
    text = mark(answer("own"), duplicate).retstr
    # When
    request_.send_event("task-succeeded", result=text, runtime=0.1)
    # Then
    kinds = [kind for kind, _ in eventer.sent]
    fields = eventer.sent[1][1]
    assert kinds == ["task-succeeded", "task-shadow-duplicate"]
    assert fields["state"] == "SHADOW_DUPLICATE"
    said = "would be deduplicated key=order:42 original=the-first result='own'"
    assert fields["result"] == said


def test_a_failure_is_not_marked() -> None:
    """A duplicate that got a stored failure is shown as the failure that it is."""
    failed = answer(failed=True)
    assert mark(failed, DUPLICATE) is failed


def test_an_answer_of_an_unknown_form_stays_as_it_is() -> None:
    """Where a version of Celery has no such seam, the task is shown as any other, and no worse."""
    odd = (1, None, 0.1)
    assert mark(odd, DUPLICATE) is odd


def test_a_start_names_the_key_that_its_message_brought(request_: Any, eventer: Eventer) -> None:
    """The task page of a Flower with our tab can so show the key of every task."""
    # Given
    call_key = CallKey("shop.charge", "order:42", "", b"", False)
    request_._request_dict[OWN] = own_header("task-1", call_key)
    # When
    request_.send_event("task-started")
    # Then
    assert eventer.sent == [
        (
            "task-started",
            {"uuid": "task-1", "idempotency_key": KEY, "idempotency_record": RECORD},
        )
    ]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {OWN: own_header("another", CallKey("shop.charge", "order:42", "", b"", False))},
        {OWN: own_header("task-1", None)},
        {OWN: "nonsense"},
        {OWN: {"id": "task-1", "key": 7}},
    ],
    ids=["none", "another message's", "not deduplicated", "nonsense", "malformed"],
)
def test_a_start_without_a_key_is_told_as_it_is(
    request_: Any, eventer: Eventer, headers: dict[str, Any]
) -> None:
    """Whatever a message's headers are, the event is sent."""
    # Given
    request_._request_dict.update(headers)
    # When
    request_.send_event("task-started")
    # Then
    assert eventer.sent == [("task-started", {"uuid": "task-1"})]


def test_nothing_is_added_where_events_are_turned_off(request_: Any, eventer: Eventer) -> None:
    """``idempotency_events = False`` leaves Celery's events as they are."""
    # Given
    request_._app.conf.idempotency_events = False
    call_key = CallKey("shop.charge", "order:42", "", b"", False)
    request_._request_dict[OWN] = own_header("task-1", call_key)
    # When
    request_.send_event("task-started")
    # Then
    assert eventer.sent == [("task-started", {"uuid": "task-1"})]


def test_nothing_is_worked_out_where_no_events_are_sent(request_: Any, eventer: Eventer) -> None:
    """A worker without ``-E`` does not look for a key."""
    # Given
    eventer.enabled = False
    fields: dict[str, Any] = {}
    call_key = CallKey("shop.charge", "order:42", "", b"", False)
    request_._request_dict[OWN] = own_header("task-1", call_key)
    # When
    name_key(request_, fields)
    # Then
    assert not fields


@pytest.mark.parametrize(
    ("enabled", "groups", "sent"),
    [
        (True, set(), True),
        (True, {"worker", "task"}, True),
        (True, {"worker"}, False),
        (False, set(), False),
    ],
    ids=["-E", "enabled by remote control", "only heartbeats", "none"],
)
def test_a_process_is_told_whether_its_events_are_sent(
    request_: Any, eventer: Any, enabled: bool, groups: set[str], sent: bool
) -> None:
    """When the message is given to it: what was so when it was received may be another thing."""
    # Given
    request_._request_dict["delivery_info"] = {"redelivered": False}
    assert request_.request_dict["delivery_info"]["task_events"] is True
    eventer.enabled, eventer.groups = enabled, groups
    # When
    given = request_.request_dict
    # Then
    assert given is request_._request_dict
    assert given["delivery_info"] == {"redelivered": False, "task_events": sent}
    # Then no key is looked for in vain
    given[OWN] = own_header("task-1", CallKey("shop.charge", "order:42", "", b"", False))
    fields: dict[str, Any] = {}
    name_key(request_, fields)
    assert bool(fields) is sent


def test_a_request_without_an_eventer_sends_none(request_: Any) -> None:
    """Celery makes such requests, too."""
    request_._eventer = None
    request_._request_dict["delivery_info"] = {}
    assert request_.request_dict["delivery_info"] == {"task_events": False}


def test_a_process_is_told_whether_its_worker_holds_those_that_wait(request_: Any) -> None:
    """Then it asks for a long pause: the message is let go as soon as its key is free."""
    # Given
    request_._request_dict["delivery_info"] = {}
    consumer = SimpleNamespace(app=request_._app, hostname="here")
    # When
    held = waiters.waiters_of(consumer)
    # Then
    assert held.everyone() == []
    assert request_.request_dict["delivery_info"] == {"task_events": True, "task_held": True}


@pytest.fixture
def shop() -> Iterator[Celery]:
    """An app whose tasks are run as a worker's process runs them."""
    app = Celery("events", set_as_current=False)
    app.conf.update(
        idempotency_store_url=f"memory://{uuid.uuid4().hex}", result_backend="cache+memory://"
    )

    @app.task(base=IdempotentTask, name="shop.charge", shared=False)
    def charge(order: int) -> int:
        return order

    @app.task(
        base=IdempotentTask, name="shop.ship", idempotency_key="parcel:{parcel}", shared=False
    )
    def ship(parcel: int) -> int:
        # Both in this process, and the second is a duplicate.
        return int(charge.apply((1,)).get() + charge.apply((1,)).get() + parcel)

    yield app
    app.close()


def deliver(app: Celery, name: str, task_id: str, *args: Any, **info: Any) -> Any:
    """Have a task traced as a worker's process does; what its parent gets."""
    task = app.tasks[name]
    task.__trace__ = build_tracer(name, task, app=app)
    request = {"id": task_id, "task": name, "is_eager": False, "delivery_info": info}
    return task.__trace__(task_id, args, {}, request)


def test_only_the_duplicates_own_delivery_is_marked(shop: Celery) -> None:
    """A duplicate that was called eagerly by a body does not make one of the body's task."""
    # When
    first = deliver(shop, "shop.ship", "task-1", 7)
    second = deliver(shop, "shop.ship", "task-2", 7)
    again = deliver(shop, "shop.ship", "task-1", 7)
    # Then
    assert (first.retval, first.retstr) == (9, "9")
    assert type(first.retstr) is str
    assert second.retstr == "9"
    assert second.retstr.duplicate == Duplicate(
        "parcel:7", "task-1", "idempotent:{shop.ship:parcel:7}"
    )
    # And a copy of the first call's own message is none
    assert (again.retstr, type(again.retstr)) == ("9", str)


@pytest.mark.parametrize(("sent", "kind"), [(True, MarkedRepr), (False, str)])
def test_only_a_mark_that_somebody_looks_at_is_made(
    shop: Celery, sent: bool, kind: type[str]
) -> None:
    """A worker that sends no events of tasks has no use for one."""
    # Given
    deliver(shop, "shop.charge", "task-1", 7, task_events=sent)
    # When
    second = deliver(shop, "shop.charge", "task-2", 7, task_events=sent)
    # Then
    assert (second.retval, second.retstr, type(second.retstr)) == (7, "7", kind)


def test_other_results_are_not_followed_up() -> None:
    """A plain repr, or none, is left alone."""
    assert follow_up({"result": "'done'"}) is None
    assert follow_up({}) is None
    assert events.STATE == "DEDUPLICATED"
