"""What ``make bench`` says of what it measured, and where it leaves that."""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from benchmarks.speed import report
from benchmarks.speed.load import Cost, Pool, Worker, goals_of, measure_load, waiters
from benchmarks.speed.measure import Goal, Section
from benchmarks.speed.paper import Paper, memory_on_paper
from benchmarks.speed.waiting import Found, lateness, polled
from celery_idempotent.testing.servers import RedisServer

HOLDS = Goal("1a", "a share", 0.97, ">=", 0.95, "97 of 100")
FAILS = Goal("1b", "a share", 0.93, ">=", 0.95)
UNMEASURED = Goal("3a", "the best peer to us", None, ">=", 1)
FIGURE = Goal("7d", "on paper", 12_345.6)


@pytest.mark.parametrize(
    ("goal", "word"), [(HOLDS, "yes"), (FAILS, "NO"), (UNMEASURED, "not measured"), (FIGURE, "-")]
)
def test_each_goal_has_its_word(goal: Goal, word: str) -> None:
    """A goal holds, or doesn't, or wasn't measured; a figure without a bound is none."""
    assert report.verdict(goal) == word


@pytest.mark.parametrize(
    ("goal", "holds"),
    [
        (Goal("", "", 1.0, ">=", 1), True),
        (Goal("", "", 0.99, ">=", 1), False),
        (Goal("", "", 300.0, "<=", 300), True),
        (Goal("", "", 301.0, "<=", 300), False),
    ],
)
def test_a_goal_holds_at_its_bound(goal: Goal, holds: bool) -> None:
    """The bound itself is good enough, and nothing past it is."""
    assert goal.holds is holds


def _run(
    monkeypatch: pytest.MonkeyPatch, folder: Path, found: Section, *options: str
) -> tuple[Result, Path]:
    main: Any = importlib.import_module("benchmarks.speed.__main__")
    monkeypatch.setattr(main, "_MEASURES", {"guard": lambda *_: found})
    monkeypatch.setattr(main, "_FOLDER", folder / "benchmarks")
    monkeypatch.delenv("QUICK", raising=False)
    return CliRunner().invoke(main.main, options), folder / "benchmarks" / "results.json"


@pytest.mark.parametrize(("goal", "code"), [(HOLDS, 0), (FIGURE, 0), (FAILS, 1), (UNMEASURED, 1)])
def test_a_goal_that_fails_or_was_not_measured_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, goal: Goal, code: int
) -> None:
    """A goal that wasn't measured is none that holds."""
    result, _ = _run(monkeypatch, tmp_path, Section([goal]), "--no-write")

    assert result.exit_code == code, result.output


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ((), True),
        (("--quick",), False),
        (("--only", "guard"), False),
        (("--no-write",), False),
        (("--quick", "--write"), True),
    ],
)
def test_only_a_whole_and_full_run_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: tuple[str, ...], written: bool
) -> None:
    """A quick run, or a part of one, leaves the results of a full one alone, unless asked."""
    found = Section([HOLDS, FIGURE], {"growth": [{"records": 10_000, "ratio": 1.01}]})
    result, results = _run(monkeypatch, tmp_path, found, *options)

    assert result.exit_code == 0, result.output
    assert results.is_file() is written
    if written:
        kept = json.loads(results.read_text())
        assert [(goal["number"], goal["holds"]) for goal in kept["goals"]] == [
            ("1a", True),
            ("7d", None),
        ]
        assert kept["tables"] == found.tables
        assert kept["quick"] is ("--quick" in options)


def test_a_part_that_is_kept_takes_the_place_of_its_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All others stay, and the page says what was measured when."""
    # Given
    curve = {"growth": [{"records": 10_000, "ratio": 1.01}]}
    _run(monkeypatch, tmp_path, Section([HOLDS, FIGURE], curve))
    for figure in (11.0, 12.0):
        # When
        part = Section([Goal("7d", "on paper", figure)], {"more": figure})
        result, results = _run(monkeypatch, tmp_path, part, "--only", "guard", "--write")
        # Then
        assert result.exit_code == 0, result.output
        kept = json.loads(results.read_text())
        assert [(goal["number"], goal["figure"]) for goal in kept["goals"]] == [
            ("1a", 0.97),
            ("7d", figure),
        ]
        assert kept["tables"] == {**curve, "more": figure}
        whole, rows = kept["conditions"].split("\n\n")
        assert whole.startswith("Measured on")
        assert rows.startswith("Rows 7d to 7d: Measured on")
    # Once nothing is left of the whole run, it is not named.
    result, results = _run(monkeypatch, tmp_path, Section([HOLDS]), "--only", "guard", "--write")
    lines = json.loads(results.read_text())["conditions"].split("\n\n")
    assert [line[:15] for line in lines] == ["Rows 7d to 7d: ", "Rows 1a to 1a: "]
    # A part that stands on both sides of another's rows does not speak for those.
    part = Section([HOLDS, Goal("8a", "on paper", 1.0)])
    result, results = _run(monkeypatch, tmp_path, part, "--only", "guard", "--write")
    lines = json.loads(results.read_text())["conditions"].split("\n\n")
    assert [line.partition(": ")[0] for line in lines] == [
        "Rows 7d to 7d",
        "Rows 1a to 1a, 8a to 8a",
    ]


def test_a_goal_that_fails_is_said_on_the_page(tmp_path: Path) -> None:
    """No figure is left out of the page, and one that fails stands out."""
    page = report.as_rst(Section([HOLDS, FAILS, FIGURE]), "Measured somewhere.")

    assert page.count("* - 1a") == page.count("* - 1b") == page.count("* - 7d") == 1
    assert page.count("**no**") == 1
    assert "12,346" in page


def test_the_page_begins_with_what_a_reader_wants_to_know() -> None:
    """Few figures, in words that need no other table; what was not measured is left out."""
    goals = [Goal("4a", "commands", 2, "<=", 2), Goal("2b", "replay", 0.9, bounds=(0.88, 0.92))]

    table = report.costs_as_rst(Section([HOLDS, *goals]))

    assert re.findall(r"^   \* - (.+)\n     - (.+)$", table, re.M) == [
        ("What it costs", "Figure"),
        ("Commands to the store for a first execution", "2"),
        (
            "Time of one round trip by redis-py, to what a duplicate adds to a task",
            "0.9 (0.88 to 0.92)",
        ),
    ]


def test_paper_is_a_multiple_of_one_execution() -> None:
    """A million a minute at 60 µs are one busy core, or two that are half busy."""
    paper = Paper(cpu_us=60, script_us=20, network_bytes=750)

    assert paper.cores == pytest.approx(2)
    assert memory_on_paper(2**30 / 1_440_000_000).figure == pytest.approx(1)
    assert paper.megabits == pytest.approx(100)


def test_a_worker_under_load_is_set_beside_plain_celery() -> None:
    """In the same pool; what is late is the difference between the two."""
    # Given
    plain, ours = Cost(100.0, 0.02, 0.05), Cost(90.0, 0.02, 0.0525)
    rows = {"prefork 4": {"plain": plain, "Redis": ours, "PostgreSQL": Cost(50.0, 0.03, 0.06)}}
    # When
    [goal] = goals_of(rows)
    # Then
    assert (goal.number, goal.figure, goal.bound) == ("9a", 0.9, None)
    assert "plain 100/s" in goal.detail
    assert "Redis 90/s, at half of plain's load p99 +2.5 ms" in goal.detail
    assert "PostgreSQL 50/s, at half of plain's load p99 +10.0 ms" in goal.detail


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """One for all workers here: the app of the measurement is made for the first server."""
    with RedisServer() as server:
        os.environ["SPEED_URL"] = server.url(0).rpartition("/")[0]
        yield server


@pytest.fixture
def worker(server: RedisServer) -> Iterator[Worker]:
    """Start a worker, and end it."""
    worker = Worker(server, Pool("prefork", 2), server.url(2))
    yield worker
    worker.close()


@pytest.mark.system
def test_calls_pass_through_a_worker_under_load(worker: Worker) -> None:
    """Each gets its result, and says how long that took; the memory is of all its processes."""
    # When
    took, answered = worker.passed("guarded", 10, 0.0)
    # Then
    assert len(answered) == 10
    assert 0 < max(answered) <= took
    assert worker.memory() > 3 * 10_000_000


@pytest.mark.parametrize("measured", ["loads", "waits"])
def test_its_workers_heed_no_tasks_but_their_own(
    measured: str, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """They are imported by other tests' processes, too."""
    # Given
    importlib.import_module(f"benchmarks.speed.{measured}")
    app = Celery("other", broker="memory://", set_as_current=False)

    def other(one: str) -> str:
        return one

    # When
    app.task(name="other")(other).apply(("one",))
    # Then
    assert not caplog.records


@pytest.mark.system
def test_a_worker_is_weighed_while_duplicates_wait(worker: Worker) -> None:
    """They wait until the run is over, and are answered."""
    # When
    before, during = worker.held(20, print)
    # Then
    assert min(before, during) > 3 * 10_000_000


@pytest.mark.system
def test_a_worker_is_weighed_while_it_holds_plain_calls(worker: Worker) -> None:
    """They are due later."""
    # When
    before, during = worker.delayed(20)
    # Then
    assert min(before, during) > 3 * 10_000_000


def test_the_memory_of_waiters_is_set_beside_plain_celery() -> None:
    """What a worker holds at once, for each message."""
    # When
    held = {"guarded": (60_000_000, 320_000_000), "plain": (60_000_000, 160_000_000)}
    goal = waiters(held, 20_000)
    # Then
    assert (goal.number, goal.figure, goal.bound) == ("9h", pytest.approx(13.0), None)
    assert "from 60 MB to 320; plain Celery takes 5.0 kB" in goal.detail


def test_lateness_is_of_all_rounds_with_as_many_duplicates() -> None:
    """However long the runs took; the goal is about the count that is latest."""

    # Given
    def found(*beyond: float) -> list[Found]:
        return [Found(2.0, 1.0 + late, 2.0, 1.0, 1.0) for late in beyond]

    played = {"1 s, 10": found(0.3), "1 s, 200": found(0.1, 0.5, 0.6), "9 s, 200": found(0.7, 0.2)}
    # When
    goal = lateness(played)
    # Then
    assert (goal.figure, goal.bounds) == (pytest.approx(0.5), pytest.approx((0.1, 0.7)))
    assert goal.holds is False
    assert "worst: 200 duplicates; 5 rounds; 1 s, 10: 0.30 s" in goal.detail


def test_what_a_poll_adds_is_a_part_of_the_run() -> None:
    """What the pool needs to work the duplicates off is no lateness of the poll's."""
    # Given
    found = {"1 s, 2000": Found(1.1, 2.05, 4.0, 2.0, 1.0), "10 s, 10": Found(2.0, 1.5, 1.6, 0.5, 1)}
    # When
    goal = polled(found)
    # Then
    assert (goal.figure, goal.holds) == (pytest.approx(0.1), True)
    assert goal.detail == "worst: 10 s, 10; 1 s, 2000: 0.05 s; 10 s, 10: 1.00 s"


def test_a_quick_run_leaves_the_load_out() -> None:
    """It takes minutes."""
    assert measure_load(RedisServer(), True, print).goals == []
