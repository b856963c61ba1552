"""What a running worker answers about its claims, and how it frees a key when it is told to."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker import state as worker_state
from celery.worker.control import Panel

from celery_idempotent import IdempotentTask, State
from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import Process, Record
from celery_idempotent.core.verdicts import Claim, Claimed
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.ops import panel, remote
from celery_idempotent.run.process import BOOT_ID
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.testing.contract.kit import replace
from tests.support.records import StoredRecords

FIRST, SECOND = (str(uuid.UUID(int=number)) for number in (1, 2))
PREFIX = "idempotent"


class Clock:
    """The store's clock, in the test's hand."""

    def __init__(self) -> None:
        self.us = 1_750_000_000_000_000

    def __call__(self) -> int:
        return self.us

    def advance(self, seconds: float) -> None:
        self.us += int(seconds * 1e6)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def app(clock: Clock) -> Iterator[Celery]:
    app = Celery("shop", set_as_current=False)
    url = f"memory://{uuid.uuid4().hex}"
    app.conf.update(broker_url="memory://", idempotency_store_url=url)

    @app.task(
        base=IdempotentTask, name="shop.charge", idempotency_key="order:{order}", shared=False
    )
    def charge(order: int) -> int:
        return order

    MemoryStore._shared[url] = MemoryStore(clock)
    app.finalize()
    yield app
    app.close()


@pytest.fixture
def stored(app: Celery) -> StoredRecords:
    return StoredRecords(environment_of(app).store, PREFIX)


@pytest.fixture
def active(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """What the worker has handed to its pool."""
    active: set[Any] = set()
    monkeypatch.setattr(worker_state, "active_requests", active)
    return active


class Request(SimpleNamespace):
    """As a worker's requests it can stand in a set."""

    __hash__ = object.__hash__


def run_by(
    stored: StoredRecords, task_id: str, key: str, boot: str = BOOT_ID, pid: int = 77
) -> Request:
    """Have a process of this worker's pool hold a key; its request."""
    name = f"{PREFIX}:{{shop.charge:{key}}}"
    record = Record(
        State.RUNNING,
        0,
        owner=Owner(task_id).pack(),
        process=Process(socket.gethostname(), pid, boot).pack(),
        nonce=uuid.uuid4().bytes[:8],
    )
    assert isinstance(stored.store.claim(name, Claim(record, 30_000, 100_000)), Claimed)
    return Request(id=task_id, name="shop.charge", record_name=lambda: name)


def ask(app: Celery, command: str, **arguments: Any) -> Any:
    """As the worker does when a command comes in."""
    panel.register()
    return Panel.data[command](SimpleNamespace(app=app), **arguments)


def test_a_worker_names_its_live_claims(
    app: Celery, stored: StoredRecords, active: set[Any], clock: Clock
) -> None:
    """Key, task, call, since when, for how long: the oldest first."""
    # Given
    active.add(run_by(stored, FIRST, "order:1"))
    clock.advance(5)
    active.add(run_by(stored, SECOND, "order:2", pid=78))
    clock.advance(2.5)
    # When
    claims = ask(app, "idempotency")
    # Then
    assert [(claim["key"], claim["task_id"], claim["pid"]) for claim in claims] == [
        ("idempotent:{shop.charge:order:1}", FIRST, 77),
        ("idempotent:{shop.charge:order:2}", SECOND, 78),
    ]
    assert [(claim["age"], claim["lease_left"]) for claim in claims] == [(7.5, 22.5), (2.5, 27.5)]
    assert all(claim["task"] == "shop.charge" and claim["attempt"] == 1 for claim in claims)


def test_a_claim_is_what_the_store_says(
    app: Celery, stored: StoredRecords, active: set[Any]
) -> None:
    """What another worker holds, what is done, waits, or has no key, is no claim of this worker."""
    # Given
    elsewhere = run_by(stored, FIRST, "order:1", boot="another")
    taken_over = Request(id=SECOND, name="shop.charge", record_name=elsewhere.record_name)
    done = stored.done("order:2", owner=SECOND)

    def underivable() -> str:
        raise ValueError("its arguments have no key")

    active.update(
        {
            elsewhere,
            taken_over,
            Request(id=SECOND, name="shop.charge", record_name=lambda: done),
            Request(id=SECOND, name="shop.charge", record_name=lambda: None),
            Request(id=SECOND, name="shop.charge", record_name=underivable),
            Request(id=SECOND, name="shop.plain"),
            Request(id=SECOND, name="shop.charge", record_name=lambda: "idempotent:{a:gone}"),
        }
    )
    # Then
    assert ask(app, "idempotency") == []


def test_a_worker_names_what_waits_there() -> None:
    """Oldest first: the key that a message waits for, and for how long it is held."""
    # Given
    request = SimpleNamespace(name="shop.charge", id=SECOND)
    now = time.monotonic()
    held = [
        SimpleNamespace(key=f"idempotent:{{shop.charge:{age}}}", request=request, since=now - age)
        for age in (1, 60)
    ]
    # When
    old, young = remote.waiting(held)  # type: ignore[arg-type]
    # Then
    assert old["waits_for"] == "idempotent:{shop.charge:60}"
    assert (old["task"], old["task_id"]) == ("shop.charge", SECOND)
    assert old["waiting"] >= 60 > young["waiting"] >= 1


def test_a_worker_whose_store_is_away_says_so(
    app: Celery, stored: StoredRecords, active: set[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer is an answer, and its other tasks go on."""

    # Given
    def away(*_: Any) -> Any:
        raise StoreUnavailable("away")

    active.add(run_by(stored, FIRST, "order:1"))
    for name in ("get_many", "read_events", "scan"):
        monkeypatch.setattr(stored.store, name, away)
    # Then
    assert ask(app, "idempotency") == {"error": "away"}
    assert ask(app, "idempotency_forget", key="order:1") == {"error": "away"}


def test_forget_frees_a_key(app: Celery, stored: StoredRecords, clock: Clock) -> None:
    """Whoever gets the command first does it, and all others find it done."""
    # Given
    name = stored.done("order:42", owner=FIRST)
    clock.advance(60)
    # When
    answers = [ask(app, "idempotency_forget", key="order:42") for _ in range(3)]
    # Then
    assert answers == [{"ok": f"{name} is free"}] * 3
    record = stored.store.get(name)
    assert record is not None
    assert record.owner_id is None


def test_a_worker_that_is_late_does_not_free_what_was_claimed_since(
    app: Celery, stored: StoredRecords, clock: Clock
) -> None:
    """Every worker gets the command: the second of them finds a new run there, and leaves it."""
    # Given
    name = stored.done("order:42", owner=FIRST)
    clock.advance(60)
    ask(app, "idempotency_forget", key="order:42")
    stored.hold("order:42", owner=SECOND)
    clock.advance(1)
    # When
    answer = ask(app, "idempotency_forget", key="order:42")
    # Then
    assert SECOND in answer["error"]
    record = stored.store.get(name)
    assert record is not None
    assert record.owner_id == SECOND


def test_a_token_names_the_run_that_is_meant(
    app: Celery, stored: StoredRecords, clock: Clock
) -> None:
    """With it a young claim is freed too, and another run's is not, however old."""
    # Given
    name, held = stored.hold("order:42", owner=FIRST)
    # Then
    assert "error" in ask(app, "idempotency_forget", key="order:42", token=held.token + 1)
    assert stored.store.get(name) == replace(held, until_ms=clock.us // 1000 + 30_000)
    assert "ok" in ask(app, "idempotency_forget", key="order:42", token=held.token)


def test_forget_says_what_it_can_not_do(app: Celery, stored: StoredRecords, clock: Clock) -> None:
    """A key that is not there, and one that may be several records."""
    # Given
    for task in ("shop.refund", "shop.receipt"):
        name = stored.done("order:42", task=task)
        environment_of(app).journal.write("succeeded", name, task, None)
    clock.advance(60)
    # Then
    assert ask(app, "idempotency_forget", key="order:1") == {
        "error": "no record has the key order:1"
    }
    assert "shop.receipt" in ask(app, "idempotency_forget", key="order:42")["error"]
