"""An operator's session in a real browser: find the record of order 42, and have it run again."""

from __future__ import annotations

import pytest

from celery_idempotent.core.record import State
from tests.conftest import MakeSystem
from tests.support.chromium import Chromium
from tests.support.flowers import NEWEST, VERSIONS
from tests.support.waiting import eventually
from tests.system.conftest import StartFlower


@pytest.mark.parametrize("version", VERSIONS)
def test_an_operator_finds_a_record_and_frees_it(
    make_redis_system: MakeSystem, start_flower: StartFlower, chromium: Chromium, version: str
) -> None:
    """From the tab to the key, from the key to its record, and from there to the next run."""

    def keep(name: str) -> None:
        if version == NEWEST:  # these are the pictures in the documentation
            chromium.screenshot(name)

    # Given an order that was charged and asked for again, among others
    system = make_redis_system()
    flower = start_flower(system.settings, version, tab=True)
    system.start_worker(concurrency=2, options=["-E"])
    charge = system.task("charge")
    original = charge.delay(42)
    first = original.get(timeout=30)
    for order in (7, 42, 1042, 8):
        charge.delay(order).get(timeout=30)
    duplicate = charge.delay(42)
    assert duplicate.get(timeout=30) == first
    running = charge.delay(9, gate="go")
    system.ledger.wait_for("start", id=running.id)
    system.task("charge_or_fail").delay(12, "never").get(timeout=30, propagate=False)
    seen = flower.browser()
    eventually(lambda: "DEDUPLICATED" in seen.get(f"/task/{duplicate.id}").text, "Flower knows")

    # When she opens the tab
    chromium.open(f"http://127.0.0.1:{flower.port}/tasks")
    chromium.follow("Idempotency")
    # Then all records are there, and counted
    assert chromium.address.endswith("/idempotency")
    eventually(lambda: chromium.find("[data-count='succeeded']").text == "4", "counts come in")
    assert chromium.find("[data-count='total']").text == "6"
    keep("flower-records")

    # When she searches for order 42
    box = chromium.find("#idempotency-match")
    box.send_keys("order 42")
    chromium.leave_by(chromium.find("form[role='search'] button"))
    # Then it is found, and orders that are not meant are not
    table = chromium.find("#idempotency-table tbody").text
    assert "order:42" in table
    assert "order:7" not in table
    assert chromium.find("#idempotency-match").get_attribute("value") == "order 42"

    # When she opens it
    chromium.follow("order:42")
    # Then she sees what it is
    record = chromium.find("#idempotency-record").text
    for text in ("shop.charge", "succeeded", original.id, duplicate.id, first["receipt"]):
        assert text in record
    keep("flower-record")

    # When she forgets it, and says so twice
    chromium.leave_by(chromium.find("#idempotency-forget"))
    assert "It succeeded" in chromium.text
    assert system.app.tasks["shop.charge"].idempotency_record(42).state is State.SUCCEEDED
    keep("flower-forget")
    chromium.leave_by(chromium.find("#idempotency-forget-now"))
    # Then the key is free, and the next call runs
    assert "The key is free" in chromium.find("#idempotency-done").text
    assert "released" in chromium.find("#idempotency-record").text
    again = charge.delay(42).get(timeout=30)
    assert again["receipt"] != first["receipt"]
    assert system.ledger.count("effect", key=42) == 2
    # And the original's own page leads to the record
    chromium.open(f"http://127.0.0.1:{flower.port}/task/{duplicate.id}")
    keep("flower-task")
    chromium.follow("order:42")
    assert "succeeded" in chromium.find("#idempotency-record").text
    assert not chromium.errors()
    system.ledger.open("go")


def test_a_key_from_a_network_runs_no_script(
    make_redis_system: MakeSystem, start_flower: StartFlower, chromium: Chromium
) -> None:
    """A key that is markup is shown as it is written, on each page that has it."""
    # Given
    system = make_redis_system()
    flower = start_flower(system.settings, NEWEST, tab=True)
    system.start_worker(concurrency=1, options=["-E"])
    attack = "<img src=x onerror=\"document.title='taken'\">"
    call = system.task("echo").apply_async(("a", attack), idempotency_key=attack)
    assert call.get(timeout=30) == attack
    # When
    base = f"http://127.0.0.1:{flower.port}"
    chromium.open(f"{base}/idempotency?match=img")
    titles = [chromium.title]
    chromium.follow(attack)
    titles.append(chromium.title)
    chromium.leave_by(chromium.find("#idempotency-forget"))
    titles.append(chromium.title)
    eventually(lambda: flower.browser().get(f"/task/{call.id}").status == 200, "Flower knows")
    chromium.open(f"{base}/task/{call.id}")
    titles.append(chromium.title)
    # Then
    assert not any(title == "taken" for title in titles)
    assert attack in chromium.text
    assert not chromium.errors()


def test_an_unknown_outcome_is_resolved_by_hand(
    make_redis_system: MakeSystem, start_flower: StartFlower, chromium: Chromium
) -> None:
    """What an operator says was the result is what every call gets from then on."""
    # Given a run that was cut off, where nobody knows whether it charged
    options = {"shop.charge": {"idempotency_on_interrupted": "unknown"}}
    system = make_redis_system(task_options=options, idempotency_lease=1)
    flower = start_flower(system.settings, NEWEST, tab=True)
    worker = system.start_worker(concurrency=1, options=["-E"])
    charge = system.task("charge")
    cut_off = charge.delay(42, gate="never")
    system.ledger.wait_for("start", id=cut_off.id)
    worker.kill()
    system.start_worker(concurrency=1, options=["-E"])
    asked = charge.delay(42)
    assert "nobody knows" in str(asked.get(timeout=30, propagate=False))
    # When
    chromium.open(f"http://127.0.0.1:{flower.port}/idempotency?state=unknown")
    chromium.follow("order:42")
    chromium.leave_by(chromium.find("#idempotency-resolve"))
    chromium.find("input[value='succeeded']").click()
    chromium.find("textarea[name='answer']").send_keys('{"receipt": "found in the books"}')
    chromium.leave_by(chromium.find("#idempotency-resolve-now"))
    # Then
    assert "It is resolved" in chromium.find("#idempotency-done").text
    assert charge.delay(42).get(timeout=30) == {"receipt": "found in the books"}
    assert system.ledger.count("effect") == 0
