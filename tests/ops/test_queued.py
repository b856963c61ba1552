"""What operators see of a key that has no record: it is reserved for a call in its queue."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_idempotent import IdempotencyInProgress, IdempotentTask
from celery_idempotent.core.keys import Owner
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.verdicts import Reserve
from celery_idempotent.ops.history import when
from celery_idempotent.settings import environment_of
from celery_idempotent.testing.servers import RedisServer
from tests.support.commands import Commands
from tests.support.records import StoredRecords

NAME = "idempotent:{shop.charge:order:42}"


@pytest.fixture(params=["memory", "redis", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Celery]:
    """An app whose duplicates are refused at the enqueue, on each kind of store."""
    url = f"memory://{uuid.uuid4().hex}"
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        url = server.url()
    elif request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/records.db"
    app = Celery("shop", set_as_current=False)
    app.conf.update(
        broker_url="memory://", result_backend="cache+memory://", idempotency_store_url=url
    )
    options = {"name": "shop.charge", "idempotency_key": "order:{order}", "shared": False}

    @app.task(base=IdempotentTask, idempotency_on_enqueue="raise", **options)
    def charge(order: int) -> int:
        return order

    app.finalize()
    store = environment_of(app).store
    if store.needs_schema:
        store.create_schema()
    yield app
    store.close()
    app.close()


@pytest.fixture
def run(app: Celery, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(app, capsys)


@pytest.fixture
def charge(app: Celery) -> Any:
    return app.tasks["shop.charge"]


def times_of(app: Celery) -> tuple[int, int, int]:
    """Since when the key is reserved, when the call is due, until when others are stopped."""
    found = environment_of(app).store.reservation(NAME)
    assert found is not None
    return found.since_ms, found.due_ms, found.until_ms


@pytest.mark.parametrize("text", ["order:42", "shop.charge:order:42", NAME])
def test_show_says_for_whom_a_key_is_reserved(
    run: Commands, app: Celery, charge: Any, text: str
) -> None:
    """Since when, when the call is due, and until when it stops others."""
    # Given
    first = charge.apply_async((42,), countdown=60)
    since_ms, due_ms, until_ms = times_of(app)
    # When
    (found,) = run("show", text).lines
    # Then
    assert (found["name"], found["state"], found["task"]) == (NAME, "queued", "shop.charge")
    assert found["owner_id"] == first.id
    assert found["queued"] == {
        "task_id": first.id,
        "since_ms": since_ms,
        "due_ms": due_ms,
        "until_ms": until_ms,
        "waits": False,
    }
    assert 0 < due_ms - since_ms <= 60_000
    assert until_ms == due_ms + 3_600_000
    # When
    written = run("show", text, "--text").out
    # Then
    assert (
        f"queued: task {first.id}, published {when(since_ms)}, due {when(due_ms)}, not delivered "
        f"yet; it stops calls with this key until {when(until_ms)}" in written
    )


def test_a_call_is_found_by_its_id_once_it_has_stopped_another(
    run: Commands, app: Celery, charge: Any
) -> None:
    """The journal knows it from then on; before that its key leads to it."""
    # Given
    first = charge.delay(42)
    assert run("show", first.id).code == 1
    # When
    with pytest.raises(IdempotencyInProgress):
        charge.delay(42)
    environment_of(app).journal._send()
    # Then
    assert run("show", first.id).lines[0]["name"] == NAME
    # When
    (account,) = run("why", first.id).lines
    # Then
    assert account["task_id"] == first.id
    assert "It waits in its queue" in account["summary"]
    assert when(times_of(app)[2]) in account["summary"]
    assert "It has stopped another call once." in account["summary"]
    assert account["record"]["state"] == "queued"
    assert "The key is queued now, by this call." in run("why", first.id, "--text").out


def test_why_takes_the_key_of_a_call_that_is_queued(run: Commands, charge: Any) -> None:
    """It is all that a person has, as long as nothing was stopped."""
    first = charge.delay(42)
    (account,) = run("why", "order:42").lines
    assert (account["task_id"], account["name"]) == (first.id, NAME)


def test_list_finds_it_by_its_key(run: Commands, app: Celery, charge: Any) -> None:
    """With how long it stops others; no list of records has it."""
    # Given
    first = charge.delay(42)
    # When
    (found,) = run("list", "--match", "order:42").lines
    # Then
    assert (found["name"], found["state"], found["owner_id"]) == (NAME, "queued", first.id)
    assert found["until_ms"] == times_of(app)[2]
    assert "60 min" in run("list", "--match", "order:42", "--text").out
    assert run("list").lines == []
    assert run("list", "--match", "order:42", "--state", "running").lines == []


def test_list_of_the_queued_has_all_of_them(run: Commands, app: Celery, charge: Any) -> None:
    """Also one whose key has a record of an earlier run; not one that is not confirmed."""
    # Given
    calls = {f"order:{number}": charge.delay(number).id for number in range(3)}
    environment = environment_of(app)
    records = StoredRecords(environment.store, environment.prefix)
    records.hold("order:0", label="shop.charge\nreadable")
    unconfirmed = Reservation(Owner("nobody").pack())
    environment.store.reserve(NAME, Reserve(unconfirmed, 10_000, attaches=False))
    # When
    found = run("list", "--state", "queued").lines
    # Then
    assert {view["owner_id"] for view in found} == set(calls.values())
    assert {view["state"] for view in found} == {"queued"}
    assert {view["key"] for view in found} == {"readable", "order:1", "order:2"}
    written = run("list", "--state", "queued", "--text").out
    assert all(it in written for it in calls.values())
    assert "60 min" in written
    # And what is asked for besides holds
    (one,) = run("list", "--state", "queued", "--match", "order:2").lines
    assert one["owner_id"] == calls["order:2"]
    assert run("list", "--state", "queued", "--task", "shop.refund").lines == []
    assert len(run("list", "--state", "queued", "--limit", "2").lines) == 2
    assert [view["state"] for view in run("list", "--state", "running").lines] == ["running"]


def test_list_of_the_queued_says_how_far_it_is(
    run: Commands, charge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes through all keys of the store, which may take long."""
    # Given
    monkeypatch.setattr("celery_idempotent.ops.cli.console._SOON_S", 0.0)
    charge.delay(42)
    # Then
    assert "keys gone through so far" in run("list", "--state", "queued").err


@pytest.mark.parametrize("how", [("order:42", "--yes"), ("--match", "order:42", "--count", "1")])
def test_forget_frees_it(run: Commands, charge: Any, how: tuple[str, ...]) -> None:
    """The next call is published, and what was queued still runs or is answered."""
    # Given
    first = charge.delay(42)
    with pytest.raises(IdempotencyInProgress):
        charge.delay(42)
    # When
    done = run("forget", *how)
    # Then
    assert done.lines == [{"name": NAME, "forgotten": True}]
    assert charge.delay(42).id != first.id


def test_forget_of_many_leaves_what_is_reserved_for_another_call_since(
    run: Commands, app: Celery, charge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is another one than what was shown."""
    # Given
    charge.delay(42)
    store = environment_of(app).store
    real = store.reservation
    seen: list[str] = []

    def changing(key: str) -> Reservation | None:
        found = real(key)
        if key == NAME and not seen:
            other = Owner("another").pack()
            store.reserve(key, Reserve(Reservation(other), 10_000, attaches=False))
            store.confirm(key, other, 10_000)
            seen.append(key)
        return found

    monkeypatch.setattr(store, "reservation", changing)
    # When
    done = run("forget", "--match", "order:42", "--count", "1")
    # Then
    assert done.lines == []
    assert "has changed since" in done.err
    found = real(NAME)
    assert found is not None
    assert found.task_id == "another"


def test_what_is_not_confirmed_is_not_shown(run: Commands, app: Celery) -> None:
    """It stops nobody: its producer may have died before it published."""
    owner = Owner("a call").pack()
    ask = Reserve(Reservation(owner), 10_000, attaches=False)
    environment_of(app).store.reserve(NAME, ask)
    assert run("show", "order:42").code == 1
    assert run("why", "order:42").code == 1


def test_it_can_not_be_resolved(run: Commands, charge: Any) -> None:
    """Its outcome is not unknown: there is none."""
    charge.delay(42)
    done = run("resolve", "order:42", "--rerun", "--yes")
    assert done.code != 0
    assert "is queued" in done.err
