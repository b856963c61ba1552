"""The parts of the page that need no Flower that runs: listings, counts, seams and words."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flower.urls
import pytest
from celery.events.state import Task
from tornado.template import Loader

from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.ops import flower as page
from celery_idempotent.ops.flower import flowers, listing, seams
from celery_idempotent.ops.flower.listing import PAGE, Counts, Listing, Listings
from celery_idempotent.ops.views import RecordView, Stats

ROOT = Path(__file__).parents[2]


def view(number: int, token: int = 0) -> RecordView:
    return RecordView(f"p:{{t:{number}}}", "t", str(number), "t", "running", token=token or number)


def batches(numbers: Iterable[int], size: int = 100) -> Iterator[list[RecordView]]:
    batch: list[RecordView] = []
    for number in numbers:
        batch.append(view(number))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def numbers(views: Iterable[RecordView]) -> list[int]:
    return [int(one.key) for one in views]


# --- listings -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def a_patient_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a busy machine takes to read a listing, no page of it is cut short."""
    monkeypatch.setattr(listing, "_PATIENCE_S", math.inf)


def test_what_the_journal_knows_comes_first() -> None:
    """In its order; then the rest by when it was claimed, and nothing twice."""
    # Given
    listed = Listing(batches([3, 7]), batches(range(1, 10)))
    # When
    found = listed.page(1)
    # Then
    assert numbers(found.views) == [3, 7, 9, 8, 6, 5, 4, 2, 1]
    assert found.newest_first
    assert not (found.more or found.cut_short or found.too_many)


def test_what_is_named_exactly_is_the_first_page() -> None:
    """Nothing else is read for it; whoever searches on gets the rest, and nothing twice."""
    # Given
    read: list[int] = []

    def rest() -> Iterator[list[RecordView]]:
        for batch in batches(range(1, 10)):
            read.append(len(batch))
            yield batch

    listed = Listing(iter(()), rest(), [view(7)])
    # When
    found = listed.page(1)
    # Then
    assert numbers(found.views) == [7]
    assert found.cut_short
    assert read == []
    assert numbers(listed.page(1).views) == [7, 9, 8, 6, 5, 4, 3, 2, 1]


def test_a_large_store_is_listed_as_it_comes() -> None:
    """Behind what the journal knows, in no order, and the page says so."""
    # Given
    many = [5000 + number for number in range(4000)]
    listed = Listing(batches(range(60)), batches(many))
    # Then
    first, second = listed.page(1), listed.page(2)
    assert numbers(first.views) == list(range(50))
    assert first.newest_first
    assert numbers(second.views) == [*range(50, 60), *many[:40]]
    assert not second.newest_first
    assert second.more


def test_pages_can_be_asked_for_in_any_order() -> None:
    """And again."""
    listed = Listing(iter(()), batches(range(1, 5001)))
    pages = {number: numbers(listed.page(number).views) for number in (3, 1, 100, 2, 3)}
    assert pages[1] == list(range(1, 51))
    assert pages[3] == list(range(101, 151))
    assert pages[100] == list(range(4951, 5001))
    assert listed.page(101).views == []
    assert not listed.page(100).more


def test_a_page_that_takes_too_long_is_cut_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And goes on where it stopped when it is asked for again."""
    # Given a clock on which each look is later than the last
    clock = iter(range(10_000))
    monkeypatch.setattr(listing, "time", SimpleNamespace(monotonic=lambda: next(clock) * 0.001))
    monkeypatch.setattr(listing, "_PATIENCE_S", 0.005)
    listed = Listing(iter(()), ([view(n)] if n % 10 == 9 else [] for n in range(200)))
    # When
    looks = [listed.page(1)]
    while looks[-1].cut_short:
        looks.append(listed.page(1))
    # Then
    assert len(looks) > 5
    assert [len(look.views) for look in looks] == sorted(len(look.views) for look in looks)
    assert numbers(looks[-1].views) == list(range(9, 200, 10))


def test_a_listing_does_not_grow_without_bounds() -> None:
    """Beyond ten thousand records one has to ask more narrowly."""
    listed = Listing(iter(()), batches(range(1, 30_000)))
    last = listed.page(10_000)
    assert last.number == 10_000 // PAGE
    assert last.too_many
    assert not last.more
    assert len(last.views) == PAGE


def test_a_store_that_goes_away_does_not_spoil_a_listing() -> None:
    """What was read is still there."""

    # Given
    def source() -> Iterator[list[RecordView]]:
        yield [view(1)]
        raise StoreUnavailable("away")

    listed = Listing(source(), iter(()))
    # Then
    with pytest.raises(StoreUnavailable):
        listed.page(1)
    assert numbers(listed.page(1).views) == [1]


def test_the_listings_used_least_go_away() -> None:
    """A Flower that runs for months keeps a few."""
    # Given
    kept = Listings()
    first = kept.open(Listing(iter(()), iter(())))
    second = kept.open(Listing(iter(()), iter(())))
    # When
    for _ in range(31):
        assert kept.get(first)
        kept.open(Listing(iter(()), iter(())))
    # Then
    assert kept.get(first)
    assert kept.get(second) is None
    assert kept.get(None) is None


# --- counts ---------------------------------------------------------------------------------------


def test_counts_are_counted_once_for_all_readers() -> None:
    """A count is good for a while, however many ask."""
    # Given
    made: list[Stats] = []

    def count() -> Stats:
        made.append(Stats(total=len(made) + 1))
        return made[-1]

    counts = Counts(count)
    # Then
    assert [counts.get() for _ in range(5)] == [made[0]] * 5
    assert len(made) == 1


def test_nobody_waits_for_a_count_that_is_under_way() -> None:
    """Who asks meanwhile gets the last one, or is told that there is none yet."""
    # Given
    began, go_on = threading.Event(), threading.Event()

    def count() -> Stats:
        began.set()
        assert go_on.wait(30)
        return Stats(total=1)

    counts = Counts(count)
    counting = threading.Thread(target=counts.get)
    counting.start()
    assert began.wait(30)
    # Then
    assert counts.get() is None
    go_on.set()
    counting.join(30)
    found = counts.get()
    assert found is not None
    assert found.total == 1


def test_a_count_that_failed_is_tried_again() -> None:
    """The store may be back."""
    # Given
    answers: list[Any] = [StoreUnavailable("away"), Stats(total=2)]

    def count() -> Stats:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Stats)
        return answer

    counts = Counts(count)
    # Then
    with pytest.raises(StoreUnavailable):
        counts.get()
    assert counts.get() == Stats(total=2)


# --- seams ----------------------------------------------------------------------------------------


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower as it was imported: what a test adds to it goes away again."""
    monkeypatch.setattr(flower.urls, "handlers", list(flower.urls.handlers))
    monkeypatch.setattr(flower.urls, "settings", dict(flower.urls.settings))
    monkeypatch.setattr(Task, "_fields", Task._fields)


def test_the_page_is_installed_once(untouched: None) -> None:
    """However often a configuration file is read."""
    # When
    assert page.install()
    handlers, fields = list(flower.urls.handlers), Task._fields
    assert page.install()
    # Then
    assert flower.urls.handlers == handlers
    assert Task._fields == fields
    assert fields[-2:] == ("idempotency_key", "idempotency_original")
    assert Task().as_dict()["idempotency_key"] is None
    names = [getattr(handler, "name", None) for handler in handlers]
    assert names.count("idempotency") == 1


def test_a_flower_without_a_list_of_pages_is_left_alone(
    untouched: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It starts without the page, and says why there is none."""
    monkeypatch.setattr(flower.urls, "handlers", ())
    with caplog.at_level(logging.WARNING):
        assert not page.install()
    assert "no page for idempotency" in caplog.text


def test_a_flower_without_settings_is_left_alone(
    untouched: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it is changed."""
    handlers = list(flower.urls.handlers)
    monkeypatch.delattr(flower.urls, "settings")
    with caplog.at_level(logging.WARNING):
        assert not page.install()
    assert flower.urls.handlers == handlers
    assert caplog.records


def test_a_flower_with_other_pages_is_left_alone(
    untouched: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the classes of its pages are missing there is no page either, and no error."""
    handlers = list(flower.urls.handlers)
    monkeypatch.setitem(sys.modules, "celery_idempotent.ops.flower.urls", None)
    with caplog.at_level(logging.WARNING):
        assert not page.install()
    assert flower.urls.handlers == handlers
    assert caplog.records


def test_another_template_loader_is_respected(
    untouched: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The page is there, at its address; only the tab isn't."""
    theirs = Loader(flower.urls.settings["template_path"])
    flower.urls.settings["template_loader"] = theirs
    with caplog.at_level(logging.WARNING):
        assert page.install()
    assert flower.urls.settings["template_loader"] is theirs
    assert "no tab" in caplog.text


def test_a_navigation_of_an_unknown_form_stays_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It gets no tab, rather than a broken one."""
    text = "<nav><a href='/broker'>Broker</a></nav>"
    with caplog.at_level(logging.WARNING):
        assert seams.patched("navbar.html", text) == text
    assert "/idempotency" in caplog.text
    assert seams.patched("task.html", text) == text
    assert seams.patched("broker.html", text) == text


def test_without_flower_the_command_says_what_to_install() -> None:
    """And no other command needs Flower, or Tornado."""
    # Given an interpreter in which neither can be imported
    program = """
import sys
sys.modules.update(flower=None, tornado=None)
from click.testing import CliRunner
from celery_idempotent.ops.cli import idempotency
done = CliRunner().invoke(idempotency, ["flower"])
assert done.exit_code == 1, done
assert "celery-idempotent[flower]" in done.output, done.output
"""
    # When
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    # Then
    assert done.returncode == 0, done.stderr


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, ""),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (86_399, "23 h 59 min"),
        (90_061, "1 d 1 h"),
    ],
)
def test_lengths_of_time_are_said_as_people_do(seconds: float | None, said: str) -> None:
    """In at most two units."""
    assert flowers.span(seconds) == said


def test_long_task_ids_are_shortened_in_lists() -> None:
    """A UUID to its first part; what is short stays."""
    assert flowers.short("0b5cbf0e-5d4a-4a0c-a5a4-7e3c2d1f0a9b") == "0b5cbf0e…"
    assert flowers.short("import-2026-11") == "import-2026-11"
    assert flowers.short(None) == ""


def test_duplicates_are_those_of_the_journal_and_those_that_flower_remembers() -> None:
    """The newest first, and none twice."""
    # Given
    tasks = {
        "a": SimpleNamespace(idempotency_record="r", state="DEDUPLICATED"),
        "b": SimpleNamespace(idempotency_record="r", state="SUCCESS"),
        "c": SimpleNamespace(idempotency_record="other", state="DEDUPLICATED"),
        "d": SimpleNamespace(state="DEDUPLICATED"),
        "e": SimpleNamespace(idempotency_record="r", state="DEDUPLICATED"),
    }
    application = SimpleNamespace(events=SimpleNamespace(state=SimpleNamespace(tasks=tasks)))
    # Then
    assert flowers.duplicates_of(application, "r", ["a", "z"]) == ["e", "a", "z"]
    assert flowers.knows(application, "b")
    assert not flowers.knows(application, "z")
    assert not flowers.knows(application, None)
