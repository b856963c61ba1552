"""Records as operators see them: listed, filtered, counted, shown and forgotten."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence

import pytest
import redis

from celery_idempotent.core.codec import Kind, Outcome
from celery_idempotent.core.record import Record, State
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.step import Step, StepState
from celery_idempotent.core.verdicts import Note, Renewal
from celery_idempotent.errors import RecordCorrupt, RecordTooNew, StoreError, StoreUnavailable
from celery_idempotent.http.messages import Response, pack
from celery_idempotent.ops import records
from celery_idempotent.ops.history import JournalEntry
from celery_idempotent.ops.outcomes import MAX_SHOWN, kind_of, text_of
from celery_idempotent.ops.sentences import sentence
from celery_idempotent.ops.views import Filter, RecordView
from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.stores.urls import store_from_url
from celery_idempotent.testing.servers import RedisServer
from tests.support.records import JSON, TTL_MS, StoredRecords

PREFIX = "idem*[1]"  # a prefix may hold what a glob pattern would take for more than itself


@pytest.fixture(params=["memory", "redis"])
def stored(request: pytest.FixtureRequest) -> Iterator[StoredRecords]:
    """Each kind of store in turn, empty."""
    if request.param == "memory":
        yield StoredRecords(MemoryStore(), PREFIX)
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    store = store_from_url(server.url())
    with redis.Redis.from_url(server.url()) as raw:
        yield StoredRecords(store, PREFIX, raw)
    store.close()


def keys(views: Iterator[RecordView] | Sequence[RecordView]) -> list[str]:
    return sorted(view.key for view in views)


# --- reading many ---------------------------------------------------------------------------------


def test_records_are_read_together_in_their_order(stored: StoredRecords) -> None:
    """A record for each name, None for what is absent, an error where one can't be read."""
    # Given
    first, _ = stored.hold("order:1")
    second = stored.done("order:2")
    stored.write("corrupt", b"\x01nonsense")
    stored.write("new", b"\x63")
    # When
    found = stored.store.get_many([second, "absent", "corrupt", "new", first])
    # Then
    assert found[0] == stored.store.get(second)
    assert found[1] is None
    assert isinstance(found[2], RecordCorrupt)
    assert isinstance(found[3], RecordTooNew)
    assert found[4] == stored.store.get(first)
    assert stored.store.get_many([]) == []


def test_a_long_record_is_readable_in_a_list(stored: StoredRecords) -> None:
    """A long result may come cut short, and a label that is longer still comes whole."""
    # Given
    large = Outcome(Kind.RESULT, *JSON, uuid.uuid4().hex.encode() * 10_000).pack()
    name = stored.done("order:1", outcome=large)
    odd = stored.done("order:2", label="shop.charge\n" + "x" * 5000)
    # When
    result, label = stored.store.get_many([name, odd])
    # Then
    assert isinstance(result, Record)
    assert result.state is State.SUCCEEDED
    assert large.startswith(result.outcome)
    assert label == stored.store.get(odd)


def test_what_is_no_record_is_an_error_in_its_place(redis_server: RedisServer) -> None:
    """Another program's list under one name does not keep the other records from being seen."""
    # Given
    store = store_from_url(redis_server.url())
    with redis.Redis.from_url(redis_server.url()) as raw:
        raw.rpush(f"{PREFIX}:{{shop.charge:list}}", "something")
    stored = StoredRecords(store, PREFIX)
    name = stored.done()
    # When
    odd, record = store.get_many([f"{PREFIX}:{{shop.charge:list}}", name])
    views = {view.key: view for view in records.find(store, PREFIX)}
    # Then
    assert isinstance(odd, StoreError)
    assert isinstance(record, Record)
    assert views["list"].state == "unreadable"
    assert "another program" in views["list"].problem
    assert views["order:42"].state == "succeeded"
    store.close()


def test_the_clock_is_the_stores(stored: StoredRecords) -> None:
    """It is the clock that tokens are made of."""
    before = stored.store.now_ms()
    _, held = stored.hold()
    assert before <= held.token // 1000 <= stored.store.now_ms()


def test_many_records_take_two_commands_a_thousand(own_server: RedisServer) -> None:
    """A list is read in scans and one round trip each, and a result of a megabyte stays away."""
    # Given
    store = store_from_url(own_server.url())
    stored = StoredRecords(store, PREFIX)
    for number in range(30):
        payload = os.urandom(48_000)  # what can't be compressed
        stored.done(f"order:{number}", outcome=Outcome(Kind.RESULT, *JSON, payload).pack())
    with redis.Redis.from_url(own_server.url()) as raw:
        raw.config_resetstat()
        # When
        found = list(records.find(store, PREFIX))
        # Then
        assert len(found) == 30
        commands = raw.info("commandstats")
        assert "cmdstat_get" not in commands
        assert commands["cmdstat_getrange"]["calls"] == 30
        assert commands["cmdstat_scan"]["calls"] == 1
        assert raw.info("stats")["total_net_output_bytes"] < 30 * 3000
    store.close()


# --- listing --------------------------------------------------------------------------------------


def test_a_record_is_shown_in_plain_words(stored: StoredRecords) -> None:
    """Key, task, state, owner, process, token, attempt and interruptions, as they were recorded."""
    # Given
    name, held = stored.hold(owner="task-1")
    # When
    (view,) = records.find(stored.store, PREFIX)
    # Then
    assert view.name == name == f"{PREFIX}:{{shop.charge:order:42}}"
    assert (view.namespace, view.key, view.task) == ("shop.charge", "order:42", "shop.charge")
    assert (view.state, view.owner_id) == ("running", "task-1")
    assert (view.host, view.pid) == ("host-1", 77)
    assert (view.token, view.attempt, view.interruptions) == (held.token, 1, 0)
    assert view.claimed_at == held.token / 1e6
    assert view.as_dict()["claimed_at"] == view.claimed_at
    assert view.outcome is None


def test_a_key_that_is_a_digest_in_the_store_is_shown_readable(stored: StoredRecords) -> None:
    """The label has the task's name and the key as a person wrote it."""
    # Given
    stored.done("an order {7}", "tenant 1", label="shop.charge\nan order {7}")
    # When
    (view,) = records.find(stored.store, PREFIX)
    # Then
    assert (view.namespace, view.key, view.task) == ("tenant 1", "an order {7}", "shop.charge")
    assert view.stored_key.startswith("~")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ["item:42", "order:42", "order:7", "wörter 42"]),
        ({"match": "42"}, ["item:42", "order:42", "wörter 42"]),
        ({"match": "order 42"}, ["order:42"]),
        ({"match": "ORDER"}, ["order:42", "order:7"]),
        ({"match": "WÖRTER"}, ["wörter 42"]),
        ({"match": "shop"}, []),
        ({"task": "shop.charge"}, ["order:42", "order:7", "wörter 42"]),
        ({"task": "shop.*", "match": "42"}, ["item:42", "order:42", "wörter 42"]),
        ({"state": "running"}, ["order:7"]),
        ({"state": "succeeded", "task": "shop.pack"}, ["item:42"]),
        ({"match": "0b5cbf0e-5d4a-4a0c-a5a4-7e3c2d1f0a9b"}, ["order:7"]),
        ({"task": "", "state": "", "match": " "}, ["item:42", "order:42", "order:7", "wörter 42"]),
    ],
    ids=str,
)
def test_records_are_found_by_what_a_person_knows(
    stored: StoredRecords, asked: dict[str, str], expected: list[str]
) -> None:
    """By words of the key in any case, by task, by state, by the owner's task id."""
    # Given
    stored.done("order:42")
    stored.hold("order:7", owner="0b5cbf0e-5d4a-4a0c-a5a4-7e3c2d1f0a9b")
    stored.done("item:42", "shop.pack")
    stored.done("wörter 42", label="shop.charge\nwörter 42")
    # When
    found = records.find(stored.store, PREFIX, **asked)
    # Then
    assert keys(found) == expected


def test_only_records_are_listed(stored: StoredRecords) -> None:
    """Neither notes and steps, nor what another prefix or program has put there."""
    # Given
    name, held = stored.hold()
    slip = Slip(answered=True)
    stored.store.note(name, Note(f"{name}:sent:task-1", slip, held.token, TTL_MS))
    packed = Step(StepState.DONE, 0, b"").pack()
    stored.store.step(Renewal(name, held, 30_000, TTL_MS), "pay", packed)
    for other in ("other:{shop.charge:order:42}", "idemX1:{a:b}", f"{PREFIX}:{{nocolon}}", "queue"):
        stored.write(other, b"whatever")
    # When
    found = list(records.find(stored.store, PREFIX))
    # Then
    assert [view.name for view in found] == [name]


def test_a_list_stops_at_its_limit(stored: StoredRecords) -> None:
    """And asks for no more than it needs."""
    for number in range(5):
        stored.done(f"order:{number}")
    assert len(list(records.find(stored.store, PREFIX, limit=3))) == 3


def test_unreadable_records_are_listed_as_such(stored: StoredRecords) -> None:
    """One that is corrupt, of a newer version, or has an owner that can't be read."""
    # Given
    stored.write(f"{PREFIX}:{{shop.charge:a}}", b"\x01nonsense")
    stored.write(f"{PREFIX}:{{shop.charge:b}}", b"\x63")
    stored.write(f"{PREFIX}:{{shop.charge:c}}", Record(State.RUNNING, 1, owner=b"?").pack())
    # When
    found = list(records.find(stored.store, PREFIX, state="unreadable"))
    # Then
    assert keys(found) == ["a", "b", "c"]
    assert all(view.problem and view.task == "shop.charge" for view in found)


def test_records_are_counted_by_state_and_task(stored: StoredRecords) -> None:
    """The count goes through all of them."""
    # Given
    stored.done("order:1")
    stored.done("order:2")
    stored.hold("order:3")
    stored.done("item:1", "shop.pack")
    # When
    stats = records.count(stored.store, PREFIX)
    # Then
    assert stats.total == 4
    assert stats.states == {"succeeded": 3, "running": 1}
    assert stats.tasks == {"shop.charge": 3, "shop.pack": 1}


def test_batches_come_even_where_nothing_is_wanted(stored: StoredRecords) -> None:
    """So that who looks for a needle in a large store can give up in time."""
    for number in range(1500):
        stored.write(f"{PREFIX}:{{shop.charge:{number}}}", b"?")
    found = list(records.batches(stored.store, PREFIX, Filter(match="needle")))
    assert len(found) == 2
    assert not any(found)


# --- one record -----------------------------------------------------------------------------------


def test_a_running_record_is_shown_with_its_lease(stored: StoredRecords) -> None:
    """How long it is still held, and how long the store keeps it, by the store's clock."""
    # Given
    name, held = stored.hold()
    packed = Step(StepState.DONE, 1, Outcome(Kind.RESULT, *JSON, b'"paid"').pack(), b"{}").pack()
    lease = Renewal(name, held, 30_000, TTL_MS)
    stored.store.step(lease, "pay", packed)
    stored.store.step(lease, "reserve", Step(StepState.COMPENSATED, 0, b"").pack())
    # When
    detail = records.show(stored.store, PREFIX, name)
    # Then
    assert detail is not None
    assert detail.lease_left is not None
    assert 0 < detail.lease_left <= 30
    assert detail.window_left is not None
    assert 30 < detail.window_left <= TTL_MS / 1000
    assert detail.result == ""
    assert [(step.name, step.state, step.result) for step in detail.steps] == [
        ("reserve", "compensated", ""),
        ("pay", "done", '"paid"'),
    ]
    assert detail.as_dict()["steps"][1] == {
        "name": "pay",
        "state": "done",
        "result": '"paid"',
        "compensated_by": True,
    }


def test_a_finished_record_is_shown_with_its_result(stored: StoredRecords) -> None:
    """Whole, even where a list would have cut it short."""
    # Given
    payload = b'"' + b"ab" * 1200 + b'"'
    name = stored.done(outcome=bytes((Kind.RESULT, 1)) + payload)
    # When
    detail = records.show(stored.store, PREFIX, name)
    # Then
    assert detail is not None
    assert detail.result == payload.decode()[: MAX_SHOWN - 3] + "..."
    assert (detail.view.state, detail.view.outcome) == ("succeeded", "result")
    assert detail.lease_left is None


def test_an_absent_record_and_a_strange_name_are_none(stored: StoredRecords) -> None:
    """So is the name of something that is no record, though there be something."""
    stored.write("celery", b"a queue")
    assert records.show(stored.store, PREFIX, f"{PREFIX}:{{shop.charge:none}}") is None
    assert records.show(stored.store, PREFIX, "celery") is None


def test_an_unreadable_record_is_shown_with_why(stored: StoredRecords) -> None:
    """Its page says what is wrong, and can free it."""
    name = f"{PREFIX}:{{shop.charge:a}}"
    stored.write(name, b"\x01nonsense")
    detail = records.show(stored.store, PREFIX, name)
    assert detail is not None
    assert (detail.view.state, detail.result) == ("unreadable", "")
    assert "cannot be read" in detail.view.problem


def test_a_store_that_is_away_is_said_to_be(own_server: RedisServer) -> None:
    """It isn't taken for an empty one, nor for an unreadable record."""
    store = store_from_url(own_server.url())
    name = StoredRecords(store, PREFIX).done()
    own_server.kill()
    for look in (
        lambda: records.show(store, PREFIX, name),
        lambda: list(records.find(store, PREFIX)),
        lambda: records.forget(store, PREFIX, name, 10),
    ):
        with pytest.raises(StoreUnavailable):
            look()


def test_forgetting_frees_a_key(stored: StoredRecords) -> None:
    """The next call gets it, with a higher token."""
    # Given
    name = stored.done(owner="task-1")
    before = stored.store.get(name)
    # When
    assert records.forget(stored.store, PREFIX, name, 100) is True
    # Then
    detail = records.show(stored.store, PREFIX, name)
    assert detail is not None
    assert (detail.view.state, detail.view.owner_id) == ("released", None)
    assert detail.window_left is not None
    assert detail.window_left <= 100
    _, held = stored.hold(owner="task-2")
    assert before is not None
    assert held.token > before.token
    assert records.forget(stored.store, PREFIX, f"{PREFIX}:{{shop.charge:none}}", 100) is False


def test_forgetting_touches_records_only(stored: StoredRecords) -> None:
    """A name from a request may be anything: what is no record's name is left alone."""
    stored.write("celery", b"a queue")
    assert records.forget(stored.store, PREFIX, "celery", 100) is False
    found = stored.store.get_many(["celery"])
    assert isinstance(found[0], RecordTooNew)  # what it was: no forgotten record


# --- outcomes -------------------------------------------------------------------------------------


def test_a_pickle_is_not_opened() -> None:
    """Looking at a record never runs what is in it."""
    # Given a payload that would fail loudly
    payload = b"cbuiltins\nexit\n(tR."
    packed = Outcome(Kind.RESULT, "application/x-python-serialize", "binary", payload).pack()
    # Then
    assert text_of(packed) == f"(a pickle, {len(payload)} bytes, not opened)"


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (Outcome(Kind.RESULT, *JSON, b'{"a": 1}'), '{"a": 1}'),
        (Outcome(Kind.RESULT, "application/x-msgpack", "binary", b"\x81\xa1a\x01"), "{'a': 1}"),
        (
            Outcome(Kind.RESULT, "application/x-msgpack", "binary", b"\xc1"),
            "(msgpack that cannot be read, 1 bytes)",
        ),
        (
            Outcome(Kind.FAILURE, *JSON, b'{"exc_type": "ValueError", "exc_message": ["no", 1]}'),
            "ValueError: no, 1",
        ),
        (Outcome(Kind.FAILURE, *JSON, b"[]"), "[]"),
        (Outcome(Kind.NOT_KEPT), ""),
        (
            Outcome.unpack(pack(Response(201, [("Location", "/7"), ("ETag", "a")], b"made"), 999)),
            "201 Created made (Location: /7; ETag: a)",
        ),
        (Outcome.unpack(pack(Response(204, [], b""), 999)), "204 No Content"),
        (Outcome(Kind.RESULT, "message/http", "8bit", b"odd"), "odd"),
    ],
    ids=[
        *("json", "msgpack", "bad msgpack", "failure", "odd failure", "not kept"),
        *("response", "empty response", "odd response"),
    ],
)
def test_an_outcome_has_a_text(outcome: Outcome, text: str) -> None:
    """As the result backend wrote it, a failure as type and message."""
    assert text_of(outcome.pack()) == text


def test_odd_outcomes_have_a_text_too() -> None:
    """None, unreadable, too long."""
    assert (text_of(b""), kind_of(b"")) == ("", None)
    assert "cannot be read" in text_of(b"\xff\x01")
    assert kind_of(b"\xff\x01") == "unreadable"
    assert text_of(Outcome(Kind.RESULT, *JSON, b"x" * 50).pack(), most=10) == "xxxxxxx..."


def test_a_sentence_leaves_the_case_of_ids_alone() -> None:
    """Whoever copies a task's id out of a sentence finds the task by it."""
    # Given
    told = JournalEntry("waiting", 0, "name", "Order:A", "shop.charge", "B", "Order-7A", "", 0)
    # Then
    assert sentence(told).startswith("Task Order-7A held the key Order:A")
