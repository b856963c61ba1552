"""An outcome that nobody knows, settled by a person while workers run."""

from __future__ import annotations

import os
import signal

import pytest

from celery_idempotent import OutcomeUnknown, Record, State
from celery_idempotent.ops.history import History
from celery_idempotent.settings import environment_of
from tests.conftest import MakeSystem
from tests.support.commands import Commands
from tests.support.system import System
from tests.support.waiting import eventually


def record_of(system: System) -> Record:
    record: Record | None = system.task("book").idempotency_record(1, "go")
    assert record is not None
    return record


def cut_off(system: System) -> str:
    """Have a run killed after its first step; the id of its call, whose outcome is unknown."""
    system.start_worker(concurrency=1)
    result = system.task("book").delay(1, "go")
    system.ledger.wait_for("effect")
    eventually(lambda: record_of(system).has_steps, "the step is recorded")
    (begun,) = system.ledger.entries("start")
    os.kill(begun["pid"], signal.SIGKILL)
    with pytest.raises(OutcomeUnknown):
        result.get(timeout=30)
    call: str = result.id
    return call


def test_what_failed_is_undone_and_then_free(
    make_system: MakeSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message undoes the finished step, without the body; the next call runs from its start."""
    # Given
    system = make_system()
    call = cut_off(system)
    # When
    done = Commands(system.app, capsys)("resolve", "--yes", "order:1", "--failed", "no stock left")
    # Then
    assert done.code == 0, done.err
    (refund,) = system.ledger.wait_for("refund")
    assert refund["order"] == 1
    system.wait_until_quiet()
    assert system.ledger.count("start") == 1
    assert record_of(system).state is State.RELEASED
    assert record_of(system).owner_id == call
    # When
    system.ledger.open("go")
    again = system.task("book").delay(1, "go").get(timeout=30)
    # Then
    assert again["order"] == 1
    assert (system.ledger.count("effect"), system.ledger.count("refund")) == (2, 1)
    environment = environment_of(system.app)
    history = History(environment.store, environment.prefix)
    assert [told.more["how"] for told in history.events() if told.what == "resolved"] == ["failed"]


def test_what_succeeded_is_the_answer_of_all_that_come(
    make_redis_system: MakeSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    """The result that a person gave, and no run."""
    # Given
    system = make_redis_system()
    cut_off(system)
    # When
    result = '{"order": 1, "receipt": "by hand"}'
    done = Commands(system.app, capsys)("resolve", "--yes", "order:1", "--succeeded", result)
    # Then
    assert done.code == 0, done.err
    assert system.task("book").delay(1, "go").get(timeout=30) == {"order": 1, "receipt": "by hand"}
    assert system.ledger.count("start") == 1


def test_what_may_run_again_goes_on_after_its_finished_steps(
    make_redis_system: MakeSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next call runs the body, and not the step that was done."""
    # Given
    system = make_redis_system()
    cut_off(system)
    # When
    done = Commands(system.app, capsys)("resolve", "--yes", "order:1", "--rerun")
    # Then
    assert done.code == 0, done.err
    system.ledger.open("go")
    assert system.task("book").delay(1, "go").get(timeout=30)["order"] == 1
    assert (system.ledger.count("start"), system.ledger.count("effect")) == (2, 1)


def test_a_call_is_run_again_from_a_step_on(
    make_system: MakeSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker gets the message, under another id, and does the step again: once, asked twice."""
    # Given
    system = make_system()
    call = cut_off(system)
    system.ledger.open("go")
    run = Commands(system.app, capsys)
    (step,) = (name for name in run("show", "order:1").lines[0]["steps"])
    # When
    asked = ("resume", "order:1", "--args", '[1, "go"]', "--yes")
    done = [run(*asked, "--from", step["name"]), run(*asked)]
    # Then
    system.wait_until_quiet()
    assert done[0].code == 0, done[0].err
    record = record_of(system)
    assert record.state is State.SUCCEEDED
    assert record.owner_id != call
    assert record.owner_id == done[0].lines[0]["task_id"]
    assert system.ledger.count("effect") == 2
