"""The check-up when a worker starts: it warns, refuses if told to, and never holds a start up."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker.control import Panel

from celery_idempotent import ConfigurationError, IdempotentTask
from celery_idempotent.ops import check_up as startup
from celery_idempotent.ops.check_up import CheckUpStep
from celery_idempotent.ops.doctor import Finding


class Threads:
    """Stands for a pool's class: its module is what the checks look at."""


Threads.__module__ = "celery.concurrency.thread"

FAULT = Finding("eviction", "error", "the server evicts", "Because.", "Set", "noeviction")
ADVICE = Finding("no-time-limit", "warning", "there is none", "Because.", "Set", "1200")
HINTED = Finding("late-redelivery", "hint", "it comes late", "Because.", "Set", "1")
AWAY = Finding("store-away", "error", "it does not answer", "Because.", "Start it", "it")


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("shop", set_as_current=False)
    app.conf.update(broker_url="memory://", idempotency_store_url=f"memory://{uuid.uuid4().hex}")

    @app.task(base=IdempotentTask, name="shop.charge", shared=False)
    def charge(order: int) -> int:
        return order

    app.finalize()
    yield app
    app.close()


def find(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    monkeypatch.setattr(startup, "examine", lambda app, *, pool: list(findings))


def start(app: Celery) -> None:
    """As a worker does with the steps of its app."""
    parent: Any = SimpleNamespace(app=app, pool_cls=Threads, steps=[])
    CheckUpStep(parent).include(parent)


def test_every_worker_of_the_app_has_the_step(app: Celery) -> None:
    """It is there as soon as there is an idempotent task."""
    assert f"{CheckUpStep.__module__}:CheckUpStep" in app.steps["worker"]


def test_a_worker_says_what_is_found(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line a finding, and it starts."""
    # Given
    find(monkeypatch, FAULT, ADVICE)
    # When
    with caplog.at_level(logging.WARNING, "celery_idempotent"):
        start(app)
    # Then
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", f"check-up: {FAULT}"),
        ("WARNING", f"check-up: {ADVICE}"),
    ]
    assert [vars(record)["idempotency"] for record in caplog.records] == [
        {"finding": finding.name, **finding.as_dict()} for finding in (FAULT, ADVICE)
    ]
    assert len({record.msg for record in caplog.records}) == 2  # groups of their own


def test_a_hint_stops_no_worker_and_is_logged_as_information(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even a strict one."""
    # Given
    find(monkeypatch, HINTED)
    app.conf.idempotency_strict = True
    # When
    with caplog.at_level(logging.INFO, "celery_idempotent"):
        start(app)
    # Then
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_a_strict_worker_does_not_start(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is found, and it says what, and how to accept it."""
    # Given
    find(monkeypatch, FAULT, ADVICE)
    app.conf.idempotency_strict = True
    # When
    with pytest.raises(ConfigurationError) as caught:
        start(app)
    # Then
    assert "eviction, no-time-limit" in str(caught.value)
    assert "idempotency_accept" in str(caught.value)


def test_a_strict_worker_starts_where_nothing_is_found(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And says nothing."""
    # Given
    find(monkeypatch)
    app.conf.idempotency_strict = True
    # When
    with caplog.at_level(logging.WARNING, "celery_idempotent"):
        start(app)
    # Then
    assert caplog.records == []


def test_a_strict_worker_starts_where_the_store_is_away(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tasks wait for it, and so may come back by themselves."""
    # Given
    find(monkeypatch, AWAY)
    app.conf.idempotency_strict = True
    # Then
    start(app)


def test_a_server_that_hangs_hangs_no_start(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The checks are left after a while, a strict worker's too."""
    # Given
    answers = threading.Event()
    monkeypatch.setattr(startup, "examine", lambda app, *, pool: answers.wait(60) and [FAULT])
    monkeypatch.setattr(startup, "_PATIENCE_S", 0.05)
    app.conf.idempotency_strict = True
    # When
    with caplog.at_level(logging.WARNING, "celery_idempotent"):
        start(app)
    answers.set()
    # Then
    assert [record.getMessage() for record in caplog.records] == [
        "the check-up takes too long, and is left: the store may not answer"
    ]


def test_a_fault_of_the_checks_is_no_fault_of_the_worker(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and the worker starts."""

    # Given
    def broken(app: Celery, *, pool: str) -> list[Finding]:
        raise RuntimeError("an odd answer of a server")

    monkeypatch.setattr(startup, "examine", broken)
    # When
    with caplog.at_level(logging.WARNING, "celery_idempotent"):
        start(app)
    # Then
    assert "an odd answer of a server" in caplog.text


def test_a_wrong_setting_is_said_as_it_is(app: Celery) -> None:
    """Strict or not, nothing could work with it."""
    # Given
    app.conf.idempotency_accept = "no-time-limit"
    # Then
    with pytest.raises(ConfigurationError, match="idempotency_accept"):
        start(app)


def test_a_worker_that_starts_knows_the_remote_commands(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was not started by Celery's command line."""
    # Given
    find(monkeypatch)
    for command in ("idempotency", "idempotency_forget"):
        monkeypatch.delitem(Panel.data, command, raising=False)
    # When
    start(app)
    # Then
    assert {"idempotency", "idempotency_forget"} <= set(Panel.data)


def test_the_pool_is_looked_at(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    """Threads may share records in memory, so that only a weaker finding is left."""
    # When
    with caplog.at_level(logging.WARNING, "celery_idempotent"):
        start(app)
    # Then
    assert "memory:" in caplog.text
    assert "memory-with-processes" not in caplog.text
