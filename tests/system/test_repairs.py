"""A repair by the command line, whose process is killed at each point of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from celery_idempotent import State
from celery_idempotent.settings import environment_of
from tests.conftest import MakeSystem
from tests.support import warm
from tests.support.repairs import KILLED_AT, POINTS, STEPS
from tests.support.system import System
from tests.support.tasks import SETTINGS_VARIABLE
from tests.support.waiting import eventually
from tests.support.workers import ROOT

NAME = "idempotent:{shop.ship:order:1}"


def resume(system: System, *options: str, killed_at: str = "") -> int:
    """Resume the call by a process of its own; return how it ended."""
    command = ("-m", "celery", "-A", "tests.support.app", "idempotency", "resume", "order:1")
    variables = {SETTINGS_VARIABLE: json.dumps(system.settings), "PYTHONPATH": str(ROOT)}
    if killed_at:
        variables[KILLED_AT] = killed_at
    with open(f"{system.ledger.path}.command", "wb") as log:
        process = warm.start(
            [*command, *options, "--yes"], cwd=ROOT, env={**os.environ, **variables}, stdout=log
        )
    eventually(lambda: process.poll() is not None, "the command has ended", timeout=60)
    return int(process.poll() or 0)


@pytest.fixture(params=["redis", "sqlite"])
def broken(request: pytest.FixtureRequest, make_system: MakeSystem, tmp_path: Path) -> System:
    """A system, without a worker by now, with a call that has done all of its steps, and failed."""
    settings: dict[str, Any] = {"test_repairs": True, "result_extended": True}
    if request.param == "sqlite":
        settings["idempotency_store_url"] = f"sqlite:///{tmp_path}/records.db"
    system = make_system(**settings)
    store = environment_of(system.app).store
    if store.needs_schema:
        store.create_schema()
    worker = system.start_worker(concurrency=1)
    failed = system.task("ship").delay(1)
    assert isinstance(failed.get(timeout=30, propagate=False), ValueError)
    system.wait_until_quiet()
    worker.kill()
    assert set(store.steps(NAME)) == {*STEPS}
    return system


@pytest.mark.parametrize("point", POINTS)
def test_a_repair_whose_process_is_killed(broken: System, point: str) -> None:
    """Before the message is sent all is as before; from then on the call is repaired."""
    # Given
    store = environment_of(broken.app).store
    before, steps = store.get(NAME), store.steps(NAME)
    assert before is not None
    # When
    assert resume(broken, "--from", "charge", killed_at=point) == -signal.SIGKILL
    # Then
    record, is_sent = store.get(NAME), point != "before the broker"
    assert record is not None
    assert broken.broker.messages() == int(is_sent)
    if point == "behind the store":
        assert (record.state, record.token > before.token) == (State.RELEASED, True)
        assert set(store.steps(NAME)) == {"reserve"}
    else:
        assert (record, store.steps(NAME)) == (before, steps)
    # When it is asked for again where nothing was done, and the code is mended
    if not is_sent:
        assert resume(broken, "--from", "charge") == 0
        assert broken.broker.messages() == 1
    broken.ledger.open("mended")
    broken.start_worker(concurrency=1)
    broken.ledger.wait_for("end", key=1)
    broken.wait_until_quiet()
    # Then
    done = [entry["step"] for entry in broken.ledger.entries("effect")]
    assert done == [*STEPS, "charge", "mail"]
    assert broken.ledger.count("start") == 2
    record = store.get(NAME)
    assert record is not None
    assert record.state is State.SUCCEEDED
