"""What happens to deliveries is noted in memory, and sent in batches that no task waits for."""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import Lost, Recorded
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.run import journal as module
from celery_idempotent.run.claimant import Ending
from celery_idempotent.run.heartbeat import Heartbeat
from celery_idempotent.run.journal import Journal, Subject, UnsentEntry
from celery_idempotent.run.telling import Telling, ToldRun
from celery_idempotent.stores.journal import ListedRuns
from celery_idempotent.stores.memory import MemoryStore

NAME = "idempotent:journal"


class Turns:
    """Stands for the heartbeat: the test says when its turn comes."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], object]] = []
        self.musts: list[bool] = []

    def later(
        self, tell: Callable[[], object], what: str, for_s: float, *, must: bool = True
    ) -> None:
        self.jobs.append(tell)
        self.musts.append(must)

    def take_turn(self) -> None:
        """Do what was asked for; what can't be done now is asked for again."""
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            try:
                job()
            except StoreUnavailable:
                self.jobs.append(job)


class CountingStore(MemoryStore):
    """Counts additions, and can be away, before or after it took what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.additions: list[int] = []
        self.away = False
        self.answer_lost = False
        self.broken = False

    def append_events(self, journal: str, events: Sequence[bytes], most: int) -> None:
        self.additions.append(len(events))
        if self.broken:
            raise RuntimeError("a fault of the store's client")
        if self.away:
            raise StoreUnavailable("away")
        super().append_events(journal, events, most)
        if self.answer_lost:
            raise StoreUnavailable("its answer was lost")

    def told(self) -> list[dict[str, Any]]:
        """All events, oldest first."""
        stored = self.read_events(NAME, None, 100_000)
        return [json.loads(event.packed) for event in reversed(stored)]


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    turns = Turns()
    monkeypatch.setattr(module, "heartbeat", turns)
    return turns


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def journal(store: CountingStore) -> Journal:
    return Journal(store, NAME, 1_000_000)


def add(journal: Journal, what: str, key: str, task: str, task_id: str | None, **more: Any) -> None:
    """Add an entry of what happens now."""
    journal.put(UnsentEntry(module.monotonic(), what, Subject(key, task, task_id), more))


def test_a_delivery_sends_nothing(journal: Journal, store: CountingStore, turns: Turns) -> None:
    """However many events there are: they wait in memory, and one turn is asked for."""
    # When
    for number in range(100):
        add(journal, "succeeded", f"k{number}", "shop.charge", f"id-{number}")
    # Then
    assert store.additions == []
    assert len(turns.jobs) == 1


def test_a_turn_sends_all_in_a_few_commands(
    journal: Journal, store: CountingStore, turns: Turns
) -> None:
    """A thousand executions are five commands, in the order in which they happened."""
    # Given
    for number in range(1000):
        add(journal, "succeeded", f"k{number}", "shop.charge", f"id-{number}", token=number + 1)
    # When
    turns.take_turn()
    # Then
    assert len(store.additions) == 5
    assert [event["id"] for event in store.told()] == [f"id-{number}" for number in range(1000)]


def test_the_next_event_asks_for_the_next_turn(
    journal: Journal, store: CountingStore, turns: Turns
) -> None:
    """After all was sent, one more event is sent too."""
    # Given
    add(journal, "succeeded", "k1", "shop.charge", "id-1")
    turns.take_turn()
    assert turns.jobs == []
    # When
    add(journal, "succeeded", "k2", "shop.charge", "id-2")
    turns.take_turn()
    # Then
    assert [event["id"] for event in store.told()] == ["id-1", "id-2"]


@pytest.mark.parametrize(
    ("value", "read"),
    [
        *(('ü \ud800 "quoted" \\ \n \x00', None), (7, None), (2**60, None), (True, None)),
        *((0.0004, 0.0), (1.23456, 1.235), (1e22, None), (math.inf, None)),
        *((["a", 1], None), ({"a": None}, None), (Path("x"), "x")),
    ],
    ids=repr,
)
def test_each_value_is_json(
    journal: Journal, store: CountingStore, turns: Turns, value: Any, read: Any
) -> None:
    """Numbers have three decimal places; what JSON has no form for is its text."""
    # When
    add(journal, "succeeded", f"k {value}", "shop.charge", None, it=value)
    turns.take_turn()
    # Then
    (event,) = store.told()
    read = value if read is None else read
    assert (event["it"], type(event["it"])) == (read, type(read))
    assert (event["key"], event["id"]) == (f"k {value}", None)


def test_an_event_of_another_process_names_it(
    journal: Journal, store: CountingStore, turns: Turns
) -> None:
    """Once: a reader may refuse a name that comes twice."""
    # When
    add(journal, "process lost", "k", "shop.charge", "id-1", node="w1", pid=7)
    turns.take_turn()
    # Then
    (stored,) = store.read_events(NAME, None, 10)
    assert stored.packed.count(b'"pid"') == 1
    assert store.told()[0]["pid"] == 7


def test_an_event_says_what_is_known(journal: Journal, store: CountingStore, turns: Turns) -> None:
    """What, which key, task and call, by whom; what is not known takes no room."""
    # When
    add(journal, "waiting", "k", "shop.charge", "id-2", original="id-1", delay=1.23456, label="")
    turns.take_turn()
    # Then
    (event,) = store.told()
    assert event.pop("by").split(".")[1] == str(os.getpid())
    assert event.pop("age") >= 0
    assert event == {
        "event": "waiting",
        "key": "k",
        "task": "shop.charge",
        "id": "id-2",
        "pid": os.getpid(),
        "original": "id-1",
        "delay": 1.235,
    }


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ('it\'s "quoted" \\ and \n', 'it\'s "quoted" \\ and \n'),
        ("Grüße, \ud800", "Grüße, \ud800"),
        (2**60, 2**60),
        (-1, -1),
        (True, True),
        (0.12345, 0.123),
        (1e-9, 0.0),
        (-2.5, -2.5),
        (1e300, 1e300),
        (("a", 1), ["a", 1]),
        ({"n": None}, {"n": None}),
        (ValueError("x"), "x"),
    ],
)
def test_whatever_is_told_of_an_event_is_read_again(
    journal: Journal, store: CountingStore, turns: Turns, value: object, told: object
) -> None:
    """What is written by hand is the JSON that a reader takes."""
    # When
    add(journal, "waiting", "k", "shop.charge", None, value=value)
    turns.take_turn()
    # Then
    (event,) = store.told()
    assert event["value"] == told
    assert type(event["value"]) is type(told)
    assert event["id"] is None


def test_an_event_of_another_process_says_which(
    journal: Journal, store: CountingStore, turns: Turns
) -> None:
    """A worker's parent tells of a child that was lost; otherwise it is the one that tells."""
    # When
    add(journal, "process lost", "k", "shop.charge", "id-1", pid=4711)
    add(journal, "succeeded", "k", "shop.charge", "id-1")
    turns.take_turn()
    # Then
    assert [event["pid"] for event in store.told()] == [4711, os.getpid()]


def test_an_event_says_how_old_it_is(
    journal: Journal, store: CountingStore, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waited for its turn, or for the store, is told as old as it is by then."""
    # Given
    now = [1000.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    add(journal, "succeeded", "k", "shop.charge", "id-1")
    # When
    now[0] += 2.5
    turns.take_turn()
    # Then
    assert store.told()[0]["age"] == 2500


class ListingStore(CountingStore):
    """Lists the runs that are under way."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way: list[str] = []

    @property
    def run_lists(self) -> ListingStore:
        return self

    def append_with_runs(
        self, journal: str, events: Sequence[bytes], most: int, runs: ListedRuns
    ) -> None:
        self.append_events(journal, events, most)
        self.under_way += [key for key, _ in runs.begun]
        for key, _ in runs.ended:
            self.under_way.remove(key)


class Run:
    """A run that tells how it began when it is asked."""

    def __init__(self, key: str, task_id: str) -> None:
        self._began = module.monotonic()
        self._key = key
        self._id = task_id

    @property
    def held(self) -> tuple[str, int]:
        return self._key, 1

    def claimed(self) -> UnsentEntry:
        subject = Subject(self._key, "shop.charge", self._id)
        return UnsentEntry(self._began, "claimed", subject, {})


def test_a_short_run_is_one_event(journal: Journal, store: CountingStore, turns: Turns) -> None:
    """The beginning of a run that is over at the next turn says nothing more than its end."""
    # Given
    short = Run("k", "id-1")
    journal.begin(short)
    journal.begin(Run("other", "id-2"))
    journal.ended(short)
    add(journal, "succeeded", "k", "shop.charge", "id-1", took=0.2)
    journal.begin(Run("k", "id-3"))
    # When
    turns.take_turn()
    # Then in the order in which it happened
    told = [(event["event"], event["id"]) for event in store.told()]
    assert told == [("claimed", "id-2"), ("succeeded", "id-1"), ("claimed", "id-3")]


def test_a_long_run_is_seen_while_it_runs(
    journal: Journal, store: CountingStore, turns: Turns
) -> None:
    """Its beginning is told before its end is known, and once; its end is told then."""
    # When
    run = Run("k", "id-1")
    journal.begin(run)
    turns.take_turn()
    add(journal, "succeeded", "other", "shop.charge", "id-2")
    turns.take_turn()
    journal.ended(run)
    add(journal, "succeeded", "k", "shop.charge", "id-1")
    turns.take_turn()
    # Then
    told = [(event["event"], event["id"]) for event in store.told()]
    assert told == [("claimed", "id-1"), ("succeeded", "id-2"), ("succeeded", "id-1")]


def test_a_run_alone_asks_for_a_turn(journal: Journal, store: CountingStore, turns: Turns) -> None:
    """It is seen even where nothing else happens, and is not asked about again."""
    # Given
    journal.begin(Run("k", "id-1"))
    assert len(turns.jobs) == 1
    # When
    turns.take_turn()
    # Then
    assert [event["event"] for event in store.told()] == ["claimed"]
    assert turns.jobs == []


def test_a_run_that_begins_during_a_turn_is_told_at_the_next(
    journal: Journal, store: CountingStore, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counted on that turn, which had looked before it came."""
    # Given
    append = store.append_events

    def meanwhile(*args: Any) -> None:
        append(*args)
        if len(store.additions) == 1:
            journal.begin(Run("k", "id-2"))

    monkeypatch.setattr(store, "append_events", meanwhile)
    add(journal, "succeeded", "k", "shop.charge", "id-1")
    turns.take_turn()
    # When
    turns.take_turn()
    # Then
    told = [(event["event"], event["id"]) for event in store.told()]
    assert told == [("succeeded", "id-1"), ("claimed", "id-2")]


def test_a_run_that_ends_without_a_word_is_told_to_have_begun(
    journal: Journal, store: CountingStore, turns: Turns
) -> None:
    """Somebody took its key: that it ran at all is told, once, and before that."""
    # Given
    lost, told = Run("k", "id-1"), Run("k", "id-2")
    journal.begin(lost)
    add(journal, "lost", "k", "shop.charge", "id-1")
    journal.begin(told)
    journal.ended(told)
    # When
    for run in (lost, told):
        if journal.ended(run):
            journal.put(run.claimed())
    turns.take_turn()
    # Then
    found = [(event["event"], event["id"]) for event in store.told()]
    assert found == [("claimed", "id-1"), ("lost", "id-1")]


def test_runs_that_are_over_are_not_kept(journal: Journal, turns: Turns) -> None:
    """Neither where there is a turn, nor where there is none."""
    # Given
    over, under_way = Run("k", "id-1"), Run("k", "id-2")
    seen = [weakref.ref(over), weakref.ref(under_way)]
    journal.begin(over)
    journal.begin(under_way)
    # When
    journal.ended(over)
    turns.take_turn()
    del over, under_way
    # Then
    assert [one() for one in seen] == [None, None]


def test_events_wait_for_a_store_that_is_away(
    journal: Journal, store: CountingStore, turns: Turns
) -> None:
    """They are told when it is back, and nothing is asked for twice meanwhile."""
    # Given
    store.away = True
    add(journal, "store away", "k", "shop.charge", "id-1")
    turns.take_turn()
    add(journal, "waiting", "k", "shop.charge", "id-1")
    assert len(turns.jobs) == 1
    # When
    store.away = False
    turns.take_turn()
    # Then
    assert [event["event"] for event in store.told()] == ["store away", "waiting"]


def test_an_outage_fills_no_memory(
    journal: Journal, store: CountingStore, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a bound events are dropped, and the journal says how many are missing."""
    # Given
    monkeypatch.setattr(module, "_BOUND", 10)
    store.away = True
    # When
    for number in range(25):
        add(journal, "waiting", "k", "shop.charge", f"id-{number}")
    turns.take_turn()
    store.away = False
    turns.take_turn()
    # Then
    told = store.told()
    assert [event["id"] for event in told if event["id"]] == [f"id-{n}" for n in range(10)]
    assert [event["events"] for event in told if event["event"] == "missing"] == [15]


def test_a_lost_answer_makes_no_two_events_of_one(
    journal: Journal, store: CountingStore, turns: Turns
) -> None:
    """What is sent again carries the same number, so that a reader can tell."""
    # Given
    journal.begin(Run("k", "id-1"))
    add(journal, "waiting", "k", "shop.charge", "id-2")
    store.answer_lost = True
    turns.take_turn()
    # When
    store.answer_lost = False
    add(journal, "succeeded", "k", "shop.charge", "id-1", token=1)
    turns.take_turn()
    # Then
    numbers: dict[str, set[str]] = {}
    for event in store.told():
        numbers.setdefault(event["event"], set()).add(event["by"])
    assert {what: len(by) for what, by in numbers.items()} == {
        "claimed": 1,
        "waiting": 1,
        "succeeded": 1,
    }
    assert len(set.union(*numbers.values())) == 3


def test_a_fault_of_the_store_reaches_no_task(
    journal: Journal, store: CountingStore, turns: Turns
) -> None:
    """Whatever goes wrong while events are sent, they are counted as missing, and it goes on."""
    # Given
    store.broken = True
    add(journal, "succeeded", "k", "shop.charge", "id-1")
    turns.take_turn()
    # When
    store.broken = False
    add(journal, "succeeded", "k", "shop.charge", "id-2")
    turns.take_turn()
    # Then
    told = store.told()
    assert [event["events"] for event in told if event["event"] == "missing"] == [1]
    assert told[-1]["id"] == "id-2"


def test_a_child_tells_nothing_of_its_parents(
    journal: Journal, store: CountingStore, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a fork, what waited in the parent is the parent's to tell."""
    # Given
    add(journal, "succeeded", "k", "shop.charge", "of the parent")
    child = os.getpid() + 1
    # When
    monkeypatch.setattr(os, "getpid", lambda: child)
    turns.jobs.clear()
    add(journal, "succeeded", "k", "shop.charge", "of the child")
    turns.take_turn()
    # Then
    assert [(event["id"], event["pid"]) for event in store.told()] == [("of the child", child)]


def test_what_a_person_does_is_told_at_once(
    journal: Journal, store: CountingStore, turns: Turns
) -> None:
    """It is rare, and the process that does it may be gone in a moment."""
    # When
    journal.write("forgotten", "k", "shop.charge", None, via="cli")
    # Then
    assert [event["event"] for event in store.told()] == ["forgotten"]
    assert turns.jobs == []


def test_what_a_person_does_does_not_depend_on_it(journal: Journal, store: CountingStore) -> None:
    """A store that is away for the journal is no error of what was done."""
    # Given
    store.away = True
    # When
    journal.write("forgotten", "k", "shop.charge", None)
    # Then
    assert store.additions == [1]


@pytest.mark.parametrize("most", [0, 10])
def test_it_can_be_turned_off(store: CountingStore, turns: Turns, most: int) -> None:
    """Kept: 0. Then nothing waits, and nothing is sent."""
    # Given
    journal = Journal(store, NAME, most)
    # When
    add(journal, "succeeded", "k", "shop.charge", "id-1")
    journal.write("forgotten", "k", "shop.charge", None)
    turns.take_turn()
    # Then
    assert len(store.additions) == (0 if most == 0 else 2)


def test_a_store_without_journals_is_no_error(turns: Turns) -> None:
    """A store of the user's own may keep none."""

    # Given
    class Unwritten(MemoryStore):
        journals = None

    journal = Journal(Unwritten(), NAME, 100)
    # When
    add(journal, "succeeded", "k", "shop.charge", "id-1")
    journal.write("forgotten", "k", "shop.charge", None)
    # Then
    assert journal.most == 0
    assert turns.jobs == []


def test_no_process_waits_for_it_when_it_ends(
    journal: Journal, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last events are sent, if the store takes them at once; if not, they are let go."""
    # Given
    beat = Heartbeat()
    monkeypatch.setattr(module, "heartbeat", beat)
    store.away = True
    add(journal, "succeeded", "k", "shop.charge", "id-1")
    # When
    nothing_left = beat.flush(60)
    # Then
    assert nothing_left
    assert 1 <= len(store.additions) <= 2


def test_the_last_events_are_sent_when_a_process_ends(
    journal: Journal, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was noted just before is not lost to an orderly end."""
    # Given
    beat = Heartbeat()
    monkeypatch.setattr(module, "heartbeat", beat)
    add(journal, "succeeded", "k", "shop.charge", "id-1")
    # When
    beat.flush(60)
    # Then
    assert [event["id"] for event in store.told()] == ["id-1"]


class TestRunsUnderWay:
    """A store that lists runs is told of them in the commands of the journal."""

    @pytest.fixture
    def store(self) -> ListingStore:
        return ListingStore()

    def test_a_short_run_is_not_listed(
        self, journal: Journal, store: ListingStore, turns: Turns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is over at the next turn."""
        # Given
        monkeypatch.setattr(store, "append_with_runs", None)
        run = Run("k", "id-1")
        journal.begin(run)
        journal.ended(run)
        add(journal, "succeeded", "k", "shop.charge", "id-1")
        # When
        turns.take_turn()
        # Then
        assert len(store.told()) == 1

    def test_a_run_is_listed_until_its_end_is_sent(
        self, journal: Journal, store: ListingStore, turns: Turns
    ) -> None:
        """With the entry of its beginning, and with that of its end."""
        # Given
        run = Run("k", "id-1")
        journal.begin(run)
        # When
        turns.take_turn()
        # Then
        assert store.under_way == ["k"]
        # When
        journal.ended(run)
        add(journal, "succeeded", "k", "shop.charge", "id-1")
        turns.take_turn()
        # Then
        assert store.under_way == []
        assert store.additions == [1, 1]

    @pytest.mark.parametrize("is_short", [True, False])
    def test_a_run_that_was_cut_off_is_listed(
        self, journal: Journal, store: ListingStore, turns: Turns, is_short: bool
    ) -> None:
        """However short it was: the store has it as under way still."""
        # Given
        run = Run("k", "id-1")
        journal.begin(run)
        if not is_short:
            turns.take_turn()
        # When
        journal.ended(run, cut_off=True)
        add(journal, "interrupted", "k", "shop.charge", "id-1")
        turns.take_turn()
        # Then
        assert store.under_way == ["k"]

    def test_while_the_store_is_away_nothing_is_lost(
        self, journal: Journal, store: ListingStore, turns: Turns
    ) -> None:
        """It is told once the store is back."""
        # Given
        runs = [Run(f"k{number}", f"id-{number}") for number in range(2)]
        store.away = True
        for run in runs:
            journal.begin(run)
        turns.take_turn()
        journal.ended(runs[0])
        add(journal, "succeeded", "k0", "shop.charge", "id-0")
        turns.take_turn()
        # When
        store.away = False
        turns.take_turn()
        # Then
        assert store.under_way == ["k1"]

    def test_a_long_outage_fills_no_memory(
        self,
        journal: Journal,
        store: ListingStore,
        turns: Turns,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """As many runs wait to be listed as entries wait to be sent, the last ones."""
        # Given
        monkeypatch.setattr(module, "_BOUND", 2)
        journal._reset()
        store.away = True
        for number in range(3):
            journal.begin(Run(f"k{number}", f"id-{number}"))
            turns.take_turn()
        # When
        store.away = False
        turns.take_turn()
        # Then
        assert store.under_way == ["k1", "k2"]

    def test_what_can_not_be_listed_is_not_tried_for_ever(
        self,
        journal: Journal,
        store: ListingStore,
        turns: Turns,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A list that the store refuses is dropped together with the entries it came with."""
        # Given
        journal.begin(Run("k0", "id-0"))
        with monkeypatch.context() as refusing:
            refusing.setattr(store, "append_with_runs", None)
            turns.take_turn()
        # When
        journal.begin(Run("k1", "id-1"))
        turns.take_turn()
        # Then
        assert store.under_way == ["k1"]

    def test_a_run_of_a_dead_process_is_listed(
        self, journal: Journal, store: ListingStore, turns: Turns
    ) -> None:
        """Its parent tells of it."""
        # When
        journal.write("process lost", "k", "shop.charge", "id-1", is_cut_off=True)
        # Then
        assert store.under_way == ["k"]
        assert [event["event"] for event in store.told()] == ["process lost"]

    @pytest.mark.parametrize("is_short", [True, False])
    @pytest.mark.parametrize(
        ("state", "verdict", "is_listed"),
        [
            (State.SUCCEEDED, Recorded(1), False),
            (State.RELEASED, Lost(Record(State.RUNNING, 2)), False),
            (State.SUCCEEDED, None, True),
            (State.RUNNING, Recorded(1), True),
            (State.COMPENSATING, Recorded(1), True),
            (None, None, True),
        ],
        ids=["ended", "lost", "unrecorded", "cut off", "compensating", "no end"],
    )
    def test_what_the_store_has_as_under_way_is_listed(
        self,
        journal: Journal,
        store: ListingStore,
        turns: Turns,
        state: State | None,
        verdict: Recorded | Lost | None,
        is_listed: bool,
        is_short: bool,
    ) -> None:
        """Whatever the end of a run is, or if it has none."""
        # Given
        lost = verdict.record if isinstance(verdict, Lost) else None
        run: Any = SimpleNamespace(
            token=1,
            interruptions=0,
            failed=None,
            is_elsewhere=False,
            claimant=SimpleNamespace(retries=0),
            lease=SimpleNamespace(lost=lost),
            end=lambda _: verdict,
            let_go=lambda: None,
        )
        told = ToldRun(Telling(journal, Subject("k", "shop.charge", "id-1"), "k"), run)
        if not is_short:
            turns.take_turn()
        # When
        if state is not None:
            told.end(Ending(state))
        if not told.is_over:
            told.let_go()
        add(journal, "waiting", "other", "shop.charge", "id-2")
        turns.take_turn()
        # Then
        assert store.under_way == ["k"] * is_listed

    def test_without_a_journal_nothing_is_listed(self, store: ListingStore, turns: Turns) -> None:
        """Nor is anything kept in memory for it."""
        # Given
        journal = Journal(store, NAME, 0)
        run = Run("k", "id-1")
        # When
        journal.begin(run)
        journal.ended(run)
        journal.write("process lost", "k", "shop.charge", "id-1", is_cut_off=True)
        # Then
        assert not turns.jobs
        assert not journal._ended
        assert store.under_way == []
