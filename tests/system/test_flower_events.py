"""A Flower that knows nothing of this library shows which tasks were duplicates, and of what."""

from __future__ import annotations

import pytest

from tests.conftest import MakeSystem
from tests.support.flowers import NEWEST, VERSIONS, Browser
from tests.support.waiting import eventually
from tests.system.conftest import StartFlower


def states(browser: Browser) -> dict[str, str]:
    """The state of each task that Flower knows."""
    return {task_id: task["state"] for task_id, task in browser.get("/api/tasks").json.items()}


def events(browser: Browser, kind: str) -> int:
    """How many events of one kind Flower has counted."""
    lines = browser.get("/metrics").text.splitlines()
    mine = [line for line in lines if line.startswith("flower_events_total{") and kind in line]
    return int(sum(float(line.rpartition(" ")[2]) for line in mine))


def search_box(browser: Browser, text: str) -> set[str]:
    """The tasks that are listed when this is typed into Flower's search box."""
    page = browser.get(
        "/tasks/datatable",
        **{
            "draw": 1,
            "start": 0,
            "length": 100,
            "search[value]": text,
            "order[0][column]": 0,
            "order[0][dir]": "asc",
            "columns[0][data]": "name",
        },
    )
    return {task["uuid"] for task in page.json["data"]}


def wait_for_states(browser: Browser, expected: dict[str, str]) -> None:
    def settled() -> bool:
        known = states(browser)
        return all(known.get(task_id) == state for task_id, state in expected.items())

    eventually(settled, f"Flower knows {expected}")


@pytest.mark.parametrize(
    ("version", "pool"),
    [(version, "prefork") for version in VERSIONS]
    + [(NEWEST, pool) for pool in ("threads", "solo", "gevent")],
)
def test_a_duplicate_is_shown_as_deduplicated(
    make_redis_system: MakeSystem, start_flower: StartFlower, version: str, pool: str
) -> None:
    """By its state, its result, the search box, the API and the counters; nothing else changes."""
    # Given
    system = make_redis_system()
    browser = start_flower(system.settings, version).browser()
    system.start_worker(pool=pool, options=["-E"])
    charge = system.task("charge")
    # When
    original = charge.delay(42)
    result = original.get(timeout=30)
    duplicate = charge.delay(42)
    other = charge.delay(7)
    assert duplicate.get(timeout=30) == result
    assert other.get(timeout=30) != result
    # Then
    wait_for_states(
        browser,
        {original.id: "SUCCESS", other.id: "SUCCESS", duplicate.id: "DEDUPLICATED"},
    )
    said = f"deduplicated key=order:42 original={original.id}"
    found = browser.get("/api/tasks", state="DEDUPLICATED").json
    assert set(found) == {duplicate.id}
    assert found[duplicate.id]["result"] == said
    assert browser.get(f"/api/task/info/{duplicate.id}").json["state"] == "DEDUPLICATED"
    assert said in browser.get(f"/task/{duplicate.id}").text
    # Then it is found
    assert search_box(browser, "state:DEDUPLICATED") == {duplicate.id}
    assert search_box(browser, "result:order:42") == {duplicate.id}
    assert search_box(browser, "order:42") == {duplicate.id}
    assert search_box(browser, original.id) == {original.id, duplicate.id}
    if version != "1.2.0":  # whose API takes no search
        for text, ids in (("order:42", {duplicate.id}), (original.id, {original.id, duplicate.id})):
            assert set(browser.get("/api/tasks", search=text).json) == ids
    # Then the counters count, and what is stored is what was stored
    assert events(browser, "task-succeeded") == 3
    assert events(browser, "task-deduplicated") == 1
    assert (duplicate.state, duplicate.result) == ("SUCCESS", result)
    assert system.ledger.count("effect", key=42) == 1


def test_a_duplicate_that_had_to_wait_is_shown_as_deduplicated(
    make_redis_system: MakeSystem, start_flower: StartFlower
) -> None:
    """Its states follow each other: received, to be retried, and in the end a duplicate."""
    # Given
    system = make_redis_system()
    browser = start_flower(system.settings).browser()
    system.start_worker(options=["-E"])
    charge = system.task("charge")
    original = charge.delay(42, gate="go")
    system.ledger.wait_for("start", id=original.id)
    # When
    duplicate = charge.delay(42, gate="go")
    eventually(lambda: states(browser).get(duplicate.id) == "RETRY", "the duplicate waits")
    system.ledger.open("go")
    assert duplicate.get(timeout=30) == original.get(timeout=30)
    # Then
    wait_for_states(browser, {original.id: "SUCCESS", duplicate.id: "DEDUPLICATED"})
    assert events(browser, "task-succeeded") == 2


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_dropped_duplicate_is_shown_as_deduplicated(
    make_redis_system: MakeSystem, start_flower: StartFlower, pool: str
) -> None:
    """It ends as REVOKED, and what it was dropped for stands in its result."""
    # Given
    system = make_redis_system(idempotency_on_running="drop")
    browser = start_flower(system.settings).browser()
    system.start_worker(pool=pool, options=["-E"])
    charge = system.task("charge")
    original = charge.delay(42, gate="go")
    system.ledger.wait_for("start", id=original.id)
    # When
    dropped = charge.delay(42, gate="go")
    # Then
    wait_for_states(browser, {dropped.id: "DEDUPLICATED"})
    found = browser.get("/api/tasks", state="DEDUPLICATED").json
    assert f"is being run by task {original.id}" in found[dropped.id]["result"]
    assert dropped.state == "REVOKED"
    # When
    system.ledger.open("go")
    original.get(timeout=30)
    # Then
    wait_for_states(browser, {original.id: "SUCCESS", dropped.id: "DEDUPLICATED"})
    assert events(browser, "task-revoked") == 1


def test_a_redelivery_of_the_original_is_no_duplicate(
    make_redis_system: MakeSystem, start_flower: StartFlower
) -> None:
    """The broker delivers the call's own message again: it is answered, and shown as a success."""
    # Given
    system = make_redis_system(visibility_timeout=1)
    browser = start_flower(system.settings).browser()
    system.start_worker(options=["-E"])
    original = system.task("charge").delay(42, gate="go")
    system.ledger.wait_for("start", id=original.id)
    # When
    system.ledger.wait_for("received", id=original.id, redelivered=True)
    system.ledger.open("go")
    original.get(timeout=30)
    system.wait_until_quiet()
    # Then
    eventually(lambda: events(browser, "task-succeeded") >= 2, "the copy was answered")
    wait_for_states(browser, {original.id: "SUCCESS"})
    assert events(browser, "task-deduplicated") == 0
    assert system.ledger.count("effect") == 1


def test_a_stored_failure_is_shown_as_a_failure(
    make_redis_system: MakeSystem, start_flower: StartFlower
) -> None:
    """A duplicate that got the first call's failure failed: whoever counts failures counts it."""
    # Given
    options = {"shop.charge_or_fail": {"idempotency_store_failures": True}}
    system = make_redis_system(task_options=options)
    browser = start_flower(system.settings).browser()
    system.start_worker(options=["-E"])
    task = system.task("charge_or_fail")
    # When
    calls = [task.delay(42, "never")]
    calls[0].get(timeout=30, propagate=False)
    calls.append(task.delay(42, "never"))
    calls[1].get(timeout=30, propagate=False)
    # Then
    wait_for_states(browser, {call.id: "FAILURE" for call in calls})
    assert events(browser, "task-failed") == 2
    assert events(browser, "task-deduplicated") == 0
    assert system.ledger.count("start") == 1


def test_no_result_makes_a_task_look_like_a_duplicate(
    make_redis_system: MakeSystem, start_flower: StartFlower
) -> None:
    """A task that returns the very text is a success like any other."""
    # Given
    system = make_redis_system()
    browser = start_flower(system.settings).browser()
    system.start_worker(options=["-E"])
    text = "deduplicated key=order:42 original=0"
    # When
    forger = system.task("echo").delay("forger", text)
    assert forger.get(timeout=30) == text
    duplicate = system.task("echo").delay("forger", text)
    assert duplicate.get(timeout=30) == text
    # Then
    wait_for_states(browser, {forger.id: "SUCCESS", duplicate.id: "DEDUPLICATED"})


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_can_be_told_later_to_send_events(
    make_redis_system: MakeSystem, start_flower: StartFlower, pool: str
) -> None:
    """As Flower does it for a worker that was started without ``-E``."""
    # Given
    system = make_redis_system()
    system.start_worker(pool=pool, heartbeat=True)
    charge = system.task("charge")
    original = charge.delay(42)
    result = original.get(timeout=30)
    assert charge.delay(42).get(timeout=30) == result
    browser = start_flower(system.settings).browser()
    system.app.control.enable_events(reply=True)
    # When
    duplicate = charge.delay(42)
    assert duplicate.get(timeout=30) == result
    # Then
    wait_for_states(browser, {duplicate.id: "DEDUPLICATED"})


def test_it_can_be_turned_off(make_redis_system: MakeSystem, start_flower: StartFlower) -> None:
    """With ``idempotency_events = False`` Flower shows what it would without this library."""
    # Given
    system = make_redis_system(idempotency_events=False)
    browser = start_flower(system.settings).browser()
    system.start_worker(options=["-E"])
    charge = system.task("charge")
    # When
    original = charge.delay(42)
    result = original.get(timeout=30)
    duplicate = charge.delay(42)
    assert duplicate.get(timeout=30) == result
    # Then
    wait_for_states(browser, {original.id: "SUCCESS", duplicate.id: "SUCCESS"})
    assert events(browser, "task-succeeded") == 2
    assert events(browser, "task-deduplicated") == 0


def test_shadow_mode_shows_what_would_have_been(
    make_redis_system: MakeSystem, start_flower: StartFlower
) -> None:
    """Both calls ran; the second is shown as one that would have been a duplicate."""
    # Given
    system = make_redis_system(idempotency_mode="shadow")
    browser = start_flower(system.settings).browser()
    system.start_worker(options=["-E"])
    charge = system.task("charge")
    # When
    original = charge.delay(42)
    first = original.get(timeout=30)
    duplicate = charge.delay(42)
    second = duplicate.get(timeout=30)
    # Then
    assert first["receipt"] != second["receipt"]
    wait_for_states(browser, {original.id: "SUCCESS", duplicate.id: "SHADOW_DUPLICATE"})
    said = browser.get(f"/api/task/info/{duplicate.id}").json["result"]
    assert said.startswith(f"would be deduplicated key=order:42 original={original.id} result=")
    assert second["receipt"] in said
    assert events(browser, "task-succeeded") == 2
