"""The commands for operators: what they write, for people and for programs, and how they end."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext

from celery_idempotent import IdempotentTask, State
from celery_idempotent.core.codec import Kind, Outcome
from celery_idempotent.core.keys import Owner
from celery_idempotent.core.message import OWN
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.step import Step, StepState
from celery_idempotent.core.verdicts import Renewal, Reserve
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.ops.cli import act, check, idempotency
from celery_idempotent.ops.doctor import Finding
from celery_idempotent.ops.history import History
from celery_idempotent.ops.sentences import duration
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.base import Sample
from celery_idempotent.stores.memory import MemoryStore
from tests.support import warm
from tests.support.commands import Commands
from tests.support.records import JSON, StoredRecords

#: Two calls.
FIRST, SECOND = (str(uuid.UUID(int=number)) for number in (1, 2))


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("shop", set_as_current=False)
    app.conf.update(
        broker_url="memory://",
        result_backend="cache+memory://",
        idempotency_store_url=f"memory://{uuid.uuid4().hex}",
    )

    options = {"name": "shop.charge", "idempotency_key": "order:{order}", "shared": False}

    @app.task(base=IdempotentTask, **options)
    def charge(order: int) -> int:
        return order

    yield app
    app.close()


@pytest.fixture
def stored(app: Celery) -> StoredRecords:
    environment = environment_of(app)
    assert isinstance(environment.store, MemoryStore)
    return StoredRecords(environment.store, environment.prefix)


@pytest.fixture
def run(app: Celery, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(app, capsys)


def tell(app: Celery, what: str, name: str, task_id: str | None, **more: Any) -> None:
    """Have the journal know of an event."""
    environment_of(app).journal.write(what, name, "shop.charge", task_id, **more)


# --- list ----------------------------------------------------------------------------------------


def test_list_writes_a_document_a_record(run: Commands, stored: StoredRecords) -> None:
    """In a pipe it is JSON, one record a line, with all that a list knows."""
    # Given
    name = stored.done("order:42", owner=FIRST)
    # When
    done = run("list")
    # Then
    assert done.code == 0
    (record,) = done.lines
    assert record["name"] == name
    assert (record["task"], record["key"], record["state"]) == (
        "shop.charge",
        "order:42",
        "succeeded",
    )
    assert record["owner_id"] == FIRST


def test_list_writes_a_table_for_people(run: Commands, stored: StoredRecords) -> None:
    """Columns stand under their titles, and colours are for terminals only."""
    # Given
    stored.done("order:42", owner=FIRST)
    stored.hold("order:7", owner=SECOND)
    # When
    done = run("list", "--text")
    # Then
    title, *rows = done.out.splitlines()
    assert title.split() == ["STATE", "TASK", "KEY", "OWNER", "CLAIMED", "LEFT"]
    assert len(rows) == 2
    for row in rows:
        assert row[title.index("KEY") :].startswith("order:")
        assert row[title.index("OWNER") :].startswith("00000000-")
    assert "\x1b" not in done.out


def test_a_lease_that_is_over_is_marked(run: Commands, app: Celery, stored: StoredRecords) -> None:
    """In the list, in show and in why: such a record counts as running, and nobody runs it."""
    # Given
    stored.cut_off("order:1", owner=FIRST)
    name, _ = stored.hold("order:2", owner=SECOND)
    tell(app, "claimed", name, SECOND)
    # Then
    table = {line.split()[2]: line for line in run("list", "--text").out.splitlines()[1:]}
    assert table["order:1"].endswith("lease over")
    assert "lease over" not in table["order:2"]
    listed = {line["key"]: line["is_lease_over"] for line in run("list").lines}
    assert listed == {"order:1": True, "order:2": False}
    over = "over: the next delivery takes over"
    for owner, is_over in ((FIRST, True), (SECOND, False)):
        for command in (["show", owner], ["why", owner]):
            done = run(*command, "--scan", "--text")
            assert (over in done.out) is is_over, command
            assert run(*command, "--scan").lines[0]["is_lease_over"] is is_over


def test_claimed_is_when_a_run_claimed_it(
    run: Commands, app: Celery, stored: StoredRecords
) -> None:
    """A person who settles a record doesn't change that; a key that was freed has no such time."""
    # Given
    names = {key: stored.unknown(key) for key in ("order:1", "order:2", "order:3")}
    tell(app, "claimed", names["order:1"], FIRST)
    (shown,) = run("show", "order:1").lines
    before = {line["key"]: line["claimed_at"] for line in run("list").lines}
    assert all(before.values())
    # When
    assert run("resolve", "--yes", "order:1", "--succeeded", "1").code == 0
    assert run("resolve", "--yes", "order:2", "--rerun").code == 0
    assert run("forget", "--yes", "order:3").code == 0
    # Then
    listed = {line["name"]: line["claimed_at"] for line in run("list").lines}
    assert run("show", "order:1").lines[0]["claimed_at"] == shown["claimed_at"]
    assert listed[names["order:2"]] is listed[names["order:3"]] is None
    assert "claimed" in run("show", "order:1", "--text").out
    # When the journal was told of the run a moment after it had its key
    name = stored.done("order:4")
    record = stored.store.get(name)
    assert record is not None
    tell(app, "claimed", name, FIRST, token=record.token)
    # Then
    listed = {line["name"]: line["claimed_at"] for line in run("list").lines}
    assert run("show", "order:4").lines[0]["claimed_at"] == listed[name]
    assert "claimed" not in run("show", names["order:3"], "--text").out


def test_list_begins_with_what_happened_last(
    run: Commands, app: Celery, stored: StoredRecords
) -> None:
    """The journal gives the order; what it doesn't know of follows, and nothing comes twice."""
    # Given
    names = {number: stored.done(f"order:{number}") for number in range(5)}
    for number in (3, 1, 3, 4):
        tell(app, "succeeded", names[number], FIRST)
    # When
    listed = [record["key"] for record in run("list").lines]
    # Then
    assert listed[:3] == ["order:4", "order:3", "order:1"]
    assert sorted(listed[3:]) == ["order:0", "order:2"]


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        (["--task", "shop.charge"], ["order:1", "order:2", "order:4"]),
        (["--task", "shop.*"], ["order:1", "order:2", "order:3", "order:4"]),
        (["--state", "running"], ["order:2", "order:4"]),
        (["--state", "lease-over"], ["order:4"]),
        (["--state", "lease-over", "--scan"], ["order:4"]),
        (["--state", "lease-over", "--task", "shop.refund"], []),
        (["--match", "order:3"], ["order:3"]),
        (["--match", "ORDER 3"], ["order:3"]),
        (["--match", FIRST], ["order:1"]),
        (["--task", "shop.charge", "--state", "unknown"], []),
    ],
    ids=str,
)
def test_list_takes_filters(
    run: Commands, app: Celery, stored: StoredRecords, options: list[str], keys: list[str]
) -> None:
    """By task, state and part of the key, whether the journal knows a record or not."""
    # Given
    stored.done("order:1", owner=FIRST)
    stored.hold("order:2")
    stored.cut_off("order:4")
    name = stored.done("order:3", task="shop.refund")
    tell(app, "succeeded", name, SECOND)
    # When
    done = run("list", *options)
    # Then
    assert done.code == 0
    assert sorted(record["key"] for record in done.lines) == keys


def test_list_says_that_there_may_be_more(run: Commands, stored: StoredRecords) -> None:
    """Where the limit was reached, on stderr: what it writes stays a list."""
    # Given
    for number in range(5):
        stored.done(f"order:{number}")
    # Then
    assert len(run("list", "--limit", "3").lines) == 3
    assert "--limit 0" in run("list", "--limit", "3").err
    assert len(run("list", "--limit", "0").lines) == 5
    assert run("list").err == ""


def test_list_of_nothing_is_no_error(run: Commands) -> None:
    """It says so on stderr."""
    done = run("list")
    assert (done.code, done.out) == (0, "")
    assert "no such record" in done.err
    assert "no task" not in done.err


@pytest.mark.parametrize("command", [("list",), ("forget", "--yes"), ("resolve", "--rerun")])
def test_a_misspelt_task_is_pointed_out(
    run: Commands, stored: StoredRecords, command: tuple[str, ...]
) -> None:
    """Where nothing is found; a task whose code is gone has records still."""
    # Given
    stored.done("order:1", "shop.gone")
    # Then
    for task, hint in (("shop.chrage", " Did you mean shop.charge?"), ("nosuch.*", "")):
        done = run(*command, "--task", task)
        assert (done.code, done.out) == (0, "")
        assert f"There is no such record. This app has no task {task}.{hint}\n" in done.err
    assert "no task" not in run(*command, "--task", "shop.c*").err
    assert len(run("list", "--task", "shop.gone").lines) == 1


@pytest.mark.parametrize(
    ("kind", "ended"),
    [(Kind.RESULT, "succeeded"), (Kind.NOT_KEPT, "succeeded"), (Kind.FAILURE, "failed")],
)
def test_a_key_without_a_window_is_found_by_what_is_shown(
    run: Commands, stored: StoredRecords, kind: Kind, ended: str
) -> None:
    """It is released: that its key is free, and how its last run ended, stands beside the state."""
    # Given
    name = stored.freed("order:1", kind=kind)
    stored.done("order:2")
    said = f"the key is free, its last run {ended}"
    # Then
    for command in ("list", "show"):
        shown = next(line for line in run(command, *[name][: command == "show"]).lines)
        assert (shown["state"], shown["is_free"]) == ("released", True)
    (row,) = run("list", "--state", "released", "--text").out.splitlines()[1:]
    assert row.startswith("released ")
    assert row.endswith(said)
    assert f"released, {said}" in run("show", "order:1", "--text").out
    assert name not in run("list", "--state", "succeeded").out
    assert said in run("forget", "order:1", "--dry-run", "--text").err
    assert run("stats").lines[0]["states"] == {"released": 1, "succeeded": 1}


def test_each_state_that_is_listed_can_be_asked_for(run: Commands, stored: StoredRecords) -> None:
    """By the word that the list shows."""
    # Given
    stored.freed("order:1")
    stored.done("order:2")
    stored.hold("order:3")
    stored.unknown("order:4")
    stored.write(stored.done("order:5"), b"?")
    # Then
    listed = {line["key"]: line["state"] for line in run("list").lines}
    assert len(set(listed.values())) == 5
    for key, state in listed.items():
        assert [line["key"] for line in run("list", "--state", state).lines] == [key]


def test_an_unreadable_record_is_in_the_list(run: Commands, stored: StoredRecords) -> None:
    """With its name, to be forgotten by."""
    # Given
    stored.write("idempotent:{shop.charge:order:1}", b"\x01nonsense")
    # When
    (record,) = run("list", "--state", "unreadable").lines
    # Then
    assert record["key"] == "order:1"
    assert "forget" in record["problem"]


# --- show ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "order:42",
        "shop.charge:order:42",
        "idempotent:{shop.charge:order:42}",
        FIRST,
        SECOND,
    ],
)
def test_show_finds_a_record_by_what_a_person_has(
    run: Commands, app: Celery, stored: StoredRecords, text: str
) -> None:
    """Its key, its name, the call that owns it, or one that was answered with its outcome."""
    # Given
    name = stored.done("order:42", owner=FIRST)
    tell(app, "deduplicated", name, SECOND, original=FIRST)
    # When
    (record,) = run("show", text).lines
    # Then
    assert record["name"] == name
    assert record["result"] == '{"receipt": 7}'
    assert record["duplicates"] == [SECOND]


def test_show_tells_a_person_all_of_it(run: Commands, app: Celery, stored: StoredRecords) -> None:
    """What it is, whose, since when and for how long, its result and its duplicates."""
    # Given
    name, held = stored.hold("order:42", owner=FIRST)
    outcome = Outcome(Kind.RESULT, *JSON, b'"pi_1"').pack()
    step = Step(StepState.DONE, 0, outcome, b'{"task": "shop.refund"}')
    stored.store.step(Renewal(name, held, 30_000, 100_000), "charge", step.pack())
    tell(app, "deduplicated", name, SECOND, original=FIRST)
    # When
    text = run("show", "order:42", "--text").out
    # Then
    told = dict(line.split(None, 1) for line in text.splitlines())
    assert told["key"] == "order:42"
    assert told["state"] == "running"
    assert told["owner"] == FIRST
    assert told["process"] == "77 on host-1"
    assert told["duplicates"] == SECOND
    assert told["step"] == 'charge: done, can be undone: "pi_1"'


def test_show_tells_of_a_call_that_is_queued(run: Commands, stored: StoredRecords) -> None:
    """It was published with ``idempotency_on_enqueue``, and no worker has it yet."""
    # Given
    name, _ = stored.hold("order:42", owner=FIRST)
    owner = Owner(SECOND).pack()
    stored.store.reserve(name, Reserve(Reservation(owner), 10_000, attaches=False))
    assert "queued" not in run("show", "order:42", "--text").out
    # When
    stored.store.confirm(name, owner, 60_000)
    # Then
    assert f"queued: task {SECOND}, published" in run("show", "order:42", "--text").out


def test_show_finds_a_key_that_is_no_name(run: Commands, app: Celery) -> None:
    """What can't stand in a record's name is digested there, and found all the same."""
    # Given
    task: Any = app.tasks["shop.charge"]
    task.apply((1,), idempotency_key="request a {b}")
    # When
    (record,) = run("show", "request a {b}").lines
    # Then
    assert record["key"] == "request a {b}"
    assert record["name"].startswith("idempotent:{shop.charge:~")


def test_show_exits_with_one_where_nothing_is_found(run: Commands) -> None:
    """And says what was looked for."""
    done = run("show", "order:43")
    assert (done.code, done.out) == (1, "")
    assert "order:43" in done.err


@pytest.mark.parametrize("scan", [(), ("--scan",)])
def test_show_finds_no_key_but_one_with_quotes(
    run: Commands, stored: StoredRecords, scan: tuple[str, ...]
) -> None:
    """A number as a text has quotes in its key, and a shell takes them away: it is asked for."""
    # Given
    stored.done("order:'1'")
    stored.done("order:2")
    # Then
    for text, meant in (("order:1", "order:'1'"), ("order:'2'", "order:2")):
        done = run("show", text, *scan)
        assert done.code == 1
        assert done.err.endswith(f'{text}. Did you mean "{meant}"?\n')
    assert run("show", "order:'1'").code == 0
    assert ("--scan" in run("show", "order:3", *scan).err) is not bool(scan)
    assert "this is empty" in run("show", "", *scan).err


def test_show_finds_no_key_but_one_of_a_request(
    app: Celery, run: Commands, stored: StoredRecords
) -> None:
    """A call that a request made has the request's key before its own: it is asked for."""
    # Given
    tell(app, "claimed", stored.done("ann%2F7f3a|shop.charge|order:42"), FIRST)
    # When
    done = run("show", "order:42")
    # Then
    assert done.code == 1
    assert done.err.endswith('order:42. Did you mean "ann%2F7f3a|shop.charge|order:42"?\n')


def test_show_gives_every_record_that_may_be_meant(run: Commands, stored: StoredRecords) -> None:
    """The same key of two tasks is two records."""
    # Given
    stored.done("order:42", task="shop.refund")
    stored.done("order:42", task="shop.receipt")
    # Then
    assert {record["task"] for record in run("show", "order:42", "--scan").lines} == {
        "shop.refund",
        "shop.receipt",
    }


# --- why -----------------------------------------------------------------------------------------


def test_why_says_what_happened_to_a_duplicate(
    run: Commands, app: Celery, stored: StoredRecords
) -> None:
    """Of which call, and how often it waited before."""
    # Given
    name = stored.done("order:42", owner=FIRST)
    for count in range(3):
        tell(app, "waiting", name, SECOND, original=FIRST, delay=0.5, waits=count)
    tell(app, "deduplicated", name, SECOND, original=FIRST, waits=3)
    # When
    (account,) = run("why", SECOND).lines
    # Then
    assert f"duplicate of task {FIRST}" in account["summary"]
    assert "put back 3 times" in account["summary"]
    assert [line["text"].split(":")[0] for line in account["story"]] == [
        f"Task {FIRST} held the key order",
        f"It is a duplicate of task {FIRST}, which had the key order",
    ]
    assert account["record"]["owner_id"] == FIRST


def test_why_says_what_happened_to_an_original(
    run: Commands, app: Celery, stored: StoredRecords
) -> None:
    """How it ended, what a person did then, and who was answered with its outcome."""
    # Given
    name = stored.done("order:42", owner=FIRST)
    tell(app, "succeeded", name, FIRST, took=0.25, attempt=2, node="w1")
    tell(app, "deduplicated", name, SECOND, original=FIRST)
    tell(app, "forgotten", name, None, via="a test")
    # When
    done = run("why", FIRST, "--text")
    # Then
    assert done.code == 0
    assert "ran for 0.25 s (attempt 2) on w1" in done.out
    assert "forgotten (a test)" in done.out
    assert f"answered the call {SECOND}" in done.out


def test_why_of_a_key_names_its_owner(run: Commands, stored: StoredRecords) -> None:
    """It tells of calls, and a key has many."""
    # Given
    stored.done("order:1", owner=FIRST)
    # When
    done = run("why", "order:1")
    # Then
    assert done.code == 1
    assert f"order:1 is a key: its owner is {FIRST}." in done.err
    assert "Nothing is known" in run("why", "order:2").err


def test_why_says_how_a_run_was_cut_off(
    run: Commands, app: Celery, stored: StoredRecords, capsys: pytest.CaptureFixture[str]
) -> None:
    """When it began and where, what ended it, and what to type."""
    # Given
    name = stored.unknown("order:1")
    tell(app, "claimed", name, FIRST, node="celery@w", pid=7)
    tell(app, "process lost", name, FIRST, node="celery@w", pid=7)
    tell(app, "unknown", name, SECOND, original=FIRST)
    # When
    done = run("why", SECOND, "--text")
    # Then
    assert f"The run of task {FIRST} began at " in done.out
    assert " on celery@w, process 7; it lost its process at " in done.out
    assert "celery -A ... idempotency resolve" in done.out
    assert "ended its lease at once" in run("why", FIRST, "--text").out
    # When
    context = CLIContext(app, no_color=True, workdir=None)
    with suppress(SystemExit):
        idempotency.main(["why", SECOND, "--text"], "manage.py idempotency", obj=context)
    # Then
    said = capsys.readouterr().out
    assert "  manage.py idempotency resolve" in said
    assert "celery -A" not in said
    # When a person has settled it
    run("resolve", "order:1", "--rerun", "--yes")
    # Then
    assert "The key is free now: its next call runs." in run("why", FIRST, "--text").out


@pytest.mark.parametrize("is_lost", [True, False], ids=["the process", "the whole worker"])
def test_why_says_who_took_over_a_run_that_was_killed(
    run: Commands, app: Celery, stored: StoredRecords, is_lost: bool
) -> None:
    """Which call got the key and when; the killed one began to run, whatever answered it then."""
    # Given
    name = stored.done("order:42", owner=SECOND)
    tell(app, "succeeded", name, SECOND, took=0.0)  # an earlier run, which took nothing over
    tell(app, "claimed", name, FIRST, node="celery@w", pid=7)
    if is_lost:
        tell(app, "process lost", name, FIRST, node="celery@w", pid=7)
    tell(app, "claimed", name, SECOND)
    # When
    (account,) = run("why", FIRST).lines
    # Then
    *_, (at, _) = [(it["at"], it["text"]) for it in run("why", SECOND).lines[0]["story"]]
    assert f" Task {SECOND} got the key at {at}." in account["summary"]
    assert ("not heard of again" in account["summary"]) is not is_lost
    # When its message comes again
    tell(app, "deduplicated", name, FIRST, original=SECOND)
    (account,) = run("why", FIRST).lines
    # Then
    answered = f"It was answered with the outcome of task {SECOND}."
    assert account["story"][-1]["text"] == answered
    began, *_, end = account["summary"].partition(f" Task {SECOND} got the key at {at}. ")
    assert began.startswith("It got the key order:42 and began to run on celery@w, process 7.")
    assert ("Its process was lost on celery@w, process 7" in began) is is_lost
    assert end == answered
    # When it waited for the other call too long instead
    tell(app, "refused", name, FIRST, original=SECOND)
    # Then
    assert run("why", FIRST).lines[0]["summary"].endswith("its body was not run again.")


@pytest.mark.parametrize("last", ["ended", "interrupted"])
def test_why_says_what_a_worker_told_of_a_run_that_it_ended(
    run: Commands, app: Celery, stored: StoredRecords, last: str
) -> None:
    """The worker writes that down, and so does the process, whichever of them is first."""
    # Given
    name = stored.done("order:42", owner=SECOND)
    tell(app, "claimed", name, FIRST, node="celery@w", pid=7)
    first = {"ended": "interrupted", "interrupted": "ended"}[last]
    for what in (first, last):
        time.sleep(0.002)  # the journal has milliseconds
        tell(app, what, name, FIRST, took=1.0, error="TimeLimitExceeded")
    # When
    (account,) = run("why", FIRST).lines
    # Then
    assert "told its caller that it failed with TimeLimitExceeded" in account["summary"]


def test_why_falls_back_on_the_record(run: Commands, stored: StoredRecords) -> None:
    """Where the journal doesn't reach back to a call, its record may still be there."""
    # Given
    stored.done("order:42", owner=FIRST)
    # When
    done = run("why", FIRST, "--scan")
    # Then
    assert "does not reach back" in done.lines[0]["summary"]


def test_all_records_are_gone_through_only_if_asked(
    run: Commands, stored: StoredRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may hold millions: without --scan the answer is that it isn't known at once."""
    # Given
    stored.done("order:42", task="shop.of_another_app", owner=FIRST)
    scans: list[str] = []
    scan = stored.store.scan
    monkeypatch.setattr(stored.store, "scan", lambda it: scans.append(it) or scan(it))
    # When
    for text in ("order:42", FIRST):
        for command in (["show"], ["forget", "--yes"], ["resolve", "--rerun", "--yes"]):
            done = run(*command, text)
            assert done.code == 1
            assert "--scan" in done.err
    assert "--scan" in run("why", FIRST).err
    # Then
    assert scans == []
    assert run("show", "order:42", "--scan").code == 0
    assert scans != []


def test_unknown_ones_are_listed_without_a_search(
    run: Commands, stored: StoredRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store lists them; --scan goes through all records, too."""
    # Given
    stored.done("order:1")
    name = stored.unknown("order:2")
    monkeypatch.setattr(stored.store, "scan", lambda it: pytest.fail("all were gone through"))
    # Then
    assert [one["name"] for one in run("list", "--state", "unknown").lines] == [name]
    assert run("list", "--state", "unknown", "--task", "shop.refund").lines == []
    assert run("resolve", "--rerun", "--task", "shop.charge", "--count", "1").code == 0
    assert run("list", "--state", "unknown").lines == []


def test_what_is_named_exactly_comes_first(
    run: Commands, app: Celery, stored: StoredRecords
) -> None:
    """Before what the journal told of last, and before all that contains the words."""
    # Given
    names = [stored.done(f"order:4{number}") for number in ("2", "20", "21")]
    for name in names:
        tell(app, "succeeded", name, FIRST)
    # When
    found = [one["name"] for one in run("list", "--match", "order:42").lines]
    # Then
    assert found == [names[0], names[2], names[1]]


def test_stats_of_many_are_estimates(
    run: Commands, stored: StoredRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say so; what is unknown is exact, and --exact counts all."""
    # Given
    for number in range(40):
        stored.done(f"order:{number}")
    stored.unknown("order:40")
    keys = list(stored.store.scan("idempotent:{*}"))
    sample = [Sample(keys[:10], 41)]
    monkeypatch.setattr(stored.store, "sample", lambda prefix, most: sample)
    # When
    (told,) = run("stats").lines
    # Then
    assert not told["exact"]
    assert told["records"] == 41
    assert told["states"]["unknown"] == 1
    assert "by a sample of 10" in run("stats", "--text").out
    (told,) = run("stats", "--exact").lines
    assert told["exact"]
    assert told["states"] == {"succeeded": 40, "unknown": 1}


def test_why_exits_with_one_where_nothing_is_known(run: Commands, app: Celery) -> None:
    """And says what the reasons may be."""
    done = run("why", FIRST)
    assert (done.code, done.out) == (1, "")
    assert "idempotency_journal" in done.err


# --- forget --------------------------------------------------------------------------------------


def test_forget_wants_a_yes(run: Commands, stored: StoredRecords) -> None:
    """Where nobody can be asked it does nothing without, and that is a wrong use."""
    # Given
    name = stored.done("order:42", owner=FIRST)
    # When
    done = run("forget", "order:42")
    # Then
    assert done.code == 2
    assert "--yes" in done.err
    record = stored.store.get(name)
    assert record is not None
    assert record.state is State.SUCCEEDED


def test_forget_frees_a_key(run: Commands, app: Celery, stored: StoredRecords) -> None:
    """The next call runs, and the journal knows who did it."""
    # Given
    name = stored.done("order:42", owner=FIRST)
    # When
    done = run("forget", "--yes", "order:42")
    # Then
    assert (done.code, done.lines) == (0, [{"name": name, "forgotten": True}])
    record = stored.store.get(name)
    assert record is not None
    assert record.owner_id is None
    (event,) = environment_of(app).store.read_events("idempotent:journal", None, 10)  # type: ignore[attr-defined]
    assert b'"forgotten"' in event.packed
    assert b"celery idempotency" in event.packed


def test_forget_of_a_free_key_says_that_it_was_free(
    run: Commands, app: Celery, stored: StoredRecords
) -> None:
    """What is kept of a last run is something to forget; a key that is only free is not."""
    # Given
    name = stored.freed("order:42")
    # When
    answers = [run("forget", "order:42", "--yes") for _ in range(2)]
    # Then
    assert [done.code for done in answers] == [0, 0]
    assert [done.lines[0]["forgotten"] for done in answers] == [True, False]
    said = run("forget", "order:42", "--yes", "--text").out
    assert said == "order:42 of shop.charge was free already.\n"
    events = History(stored.store, stored.prefix).of_record(name)
    assert [told.what for told in events] == ["forgotten"]


def test_forget_of_a_free_key_drops_its_steps_and_its_reservation(
    run: Commands, app: Celery, stored: StoredRecords
) -> None:
    """A key that resume has freed has steps still, and one that is queued stops other calls."""
    # Given
    name, held = stored.hold("order:1")
    step = Step(StepState.DONE, 1, Outcome(Kind.RESULT, *JSON, b"1").pack()).pack()
    stored.store.step(Renewal(name, held, 30_000, 100_000), "pay", step)
    kept = stored.store.get(name)
    assert kept is not None
    stored.end(name, kept._replace(owner=b"", nonce=b""), State.RELEASED)
    queued = stored.done("order:2")
    run("forget", "order:2", "--yes")
    owner = Owner(SECOND).pack()
    stored.store.reserve(queued, Reserve(Reservation(owner), 10_000, attaches=False))
    stored.store.confirm(queued, owner, 3_600_000)
    # Then
    for key in ("order:1", "order:2"):
        answers = [run("forget", key, "--yes").lines[0]["forgotten"] for _ in range(2)]
        assert answers == [True, False], key
    assert stored.store.steps(name) == {}
    assert stored.store.reservation(queued) is None


def test_forget_takes_several_and_none_if_one_is_not_there(
    run: Commands, stored: StoredRecords
) -> None:
    """What was meant is not clear then."""
    # Given
    names = [stored.done(f"order:{number}") for number in (1, 2)]
    # Then
    assert run("forget", "--yes", "order:1", "order:2", "order:3").code == 1
    assert {str(record.state) for name in names if (record := stored.store.get(name))} == {
        "succeeded"
    }
    assert run("forget", "--yes", "order:1", "order:2").code == 0
    assert {str(record.state) for name in names if (record := stored.store.get(name))} == {
        "released"
    }


def test_forget_does_not_guess(run: Commands, stored: StoredRecords) -> None:
    """Where a key may be one of several records, it names them and does nothing."""
    # Given
    names = [stored.done("order:42", task=task) for task in ("shop.refund", "shop.receipt")]
    # When
    done = run("forget", "--yes", "order:42", "--scan")
    # Then
    assert done.code == 1
    assert all(name in done.err for name in names)
    assert run("forget", "--yes", names[0]).code == 0


# --- resolve -------------------------------------------------------------------------------------


def test_resolve_as_succeeded_gives_the_result_to_all_that_come(
    run: Commands, app: Celery, stored: StoredRecords
) -> None:
    """As if it had been the task's own."""
    # Given
    name = stored.unknown("order:42")
    # When
    done = run("resolve", "--yes", "order:42", "--succeeded", '{"receipt": 8}')
    # Then
    assert (done.code, done.lines) == (
        0,
        [{"name": name, "resolved": "succeeded", "compensation": None}],
    )
    task: Any = app.tasks["shop.charge"]
    assert task.apply((42,)).get() == {"receipt": 8}


def test_resolve_for_a_rerun_lets_the_next_call_run(
    run: Commands, app: Celery, stored: StoredRecords
) -> None:
    """The key is free."""
    # Given
    stored.unknown("order:42")
    # When
    assert run("resolve", "--yes", "order:42", "--rerun").code == 0
    # Then
    task: Any = app.tasks["shop.charge"]
    assert task.apply((42,)).get() == 42


def test_resolve_as_failed_frees_the_key(run: Commands, app: Celery, stored: StoredRecords) -> None:
    """Its failure is kept for who waited for it, and the next call runs."""
    # Given
    name = stored.unknown("order:42")
    # When
    assert run("resolve", "--yes", "order:42", "--failed", "no such card").code == 0
    # Then
    record = stored.store.get(name)
    assert record is not None
    assert record.state is State.RELEASED
    assert b"no such card" in record.outcome
    task: Any = app.tasks["shop.charge"]
    assert task.apply((42,)).get() == 42


def test_resolve_as_failed_publishes_what_undoes_finished_steps(
    run: Commands, app: Celery, stored: StoredRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message for the record, that only compensates."""
    # Given
    name = stored.unknown("order:42")
    held = stored.store.get(name)
    assert held is not None
    outcome = Outcome(Kind.RESULT, *JSON, b'"pi_1"').pack()
    step = Step(StepState.DONE, 0, outcome, b'{"task": "shop.refund"}')
    stored.store.step(Renewal(name, held, 30_000, 100_000), "charge", step.pack())
    sent: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(app, "send_task", lambda task, **fields: sent.append((task, fields)))
    # When
    (told,) = run("resolve", "--yes", "order:42", "--failed", "it was refunded").lines
    # Then
    record = stored.store.get(name)
    assert record is not None
    assert record.state is State.COMPENSATING
    ((task, fields),) = sent
    assert task == "shop.charge"
    assert fields["task_id"] == told["compensation"]
    header = fields["headers"][OWN]
    assert (header["ns"], header["key"], header["compensate"]) == ("shop.charge", "order:42", True)


def test_resolve_is_for_what_is_unknown(run: Commands, stored: StoredRecords) -> None:
    """Anything else is left as it is."""
    # Given
    name = stored.done("order:42")
    # When
    done = run("resolve", "--yes", "order:42", "--rerun")
    # Then
    assert done.code == 1
    assert "succeeded" in done.err
    record = stored.store.get(name)
    assert record is not None
    assert record.state is State.SUCCEEDED


def test_resolve_asks_about_nothing_that_it_would_refuse(
    run: Commands, stored: StoredRecords
) -> None:
    """Nor is an option a message."""
    # Given
    stored.freed("order:1")
    name = stored.unknown("order:2")
    # Then
    done = run("resolve", "order:1", "--rerun")
    assert done.code == 1
    assert "only what is unknown" in done.err
    assert "--yes" not in done.err
    done = run("resolve", "order:2", "--failed", "--yes")
    assert done.code == 2
    assert "--failed wants a message, and --yes is an option." in done.err
    record = stored.store.get(name)
    assert record is not None
    assert record.state is State.UNKNOWN


def test_resolve_of_several_resolves_none_if_one_is_not_unknown(
    run: Commands, stored: StoredRecords
) -> None:
    """Whichever is named first."""
    # Given
    unknown = stored.unknown("order:1")
    done = stored.done("order:2")
    # When
    result = run("resolve", unknown, done, "--rerun", "--yes")
    # Then
    assert result.code == 1
    assert stored.store.get(unknown).state is State.UNKNOWN
    assert run("resolve", unknown, "--rerun", "--yes").code == 0


@pytest.mark.parametrize("command", [("forget",), ("resolve", "--rerun")], ids=" ".join)
def test_many_at_once_want_their_count(
    run: Commands, stored: StoredRecords, command: tuple[str, ...]
) -> None:
    """A dry run shows them and does nothing; the count has to be what it said."""
    # Given
    names = [stored.unknown(f"order:{number}") for number in range(3)]
    other = stored.unknown("bill:1")
    state = ("--state", "unknown") if command[0] == "forget" else ()
    asked = (*command, "--match", "order", *state)

    def states() -> list[State]:
        return [stored.store.get(name).state for name in names]

    # When
    dry = run(*asked, "--dry-run")
    wrong = [run(*asked, *more) for more in ((), ("--yes",), ("--count", "2"))]
    # Then
    assert (dry.code, len(dry.lines)) == (0, 3)
    assert "3 records. Nothing was done. To do it: --count 3." in dry.err
    assert [done.code for done in wrong] == [2, 2, 2]
    assert states() == [State.UNKNOWN] * 3
    assert run(*asked, "--count", "3").code == 0
    assert states() == [State.RELEASED] * 3
    assert stored.store.get(other).state is State.UNKNOWN
    assert "no such record" in run(*asked, "--count", "3").err


def test_forget_of_many_leaves_what_has_changed_since(
    run: Commands, stored: StoredRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that was claimed between the look and the act is another one."""
    # Given
    name = stored.done("order:42")
    meant = act._meant

    def claimed_meanwhile(*args: Any) -> Any:
        found = meant(*args)
        stored.store.forget(name, 60_000)
        stored.done("order:42")
        return found

    monkeypatch.setattr(act, "_meant", claimed_meanwhile)
    # When
    done = run("forget", "--task", "shop.*", "--count", "1")
    # Then
    assert "has changed since: left as it is" in done.err
    assert stored.store.get(name).state is State.SUCCEEDED


@pytest.mark.parametrize("command", [("forget",), ("resolve", "--rerun")], ids=" ".join)
def test_keys_and_filters_are_not_mixed(run: Commands, command: tuple[str, ...]) -> None:
    """And one of them is wanted."""
    assert run(*command).code == 2
    assert run(*command, "order:1", "--match", "order").code == 2


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--rerun", "--succeeded", "1"],
        ["--succeeded", "1", "--failed", "no"],
        ["--succeeded", "{no JSON"],
        ["--succeeded", ""],
    ],
    ids=str,
)
def test_resolve_wants_one_answer(run: Commands, stored: StoredRecords, options: list[str]) -> None:
    """None, two, or one that is no JSON: a wrong use, and nothing is done."""
    # Given
    name = stored.unknown("order:42")
    # Then
    assert run("resolve", "--yes", "order:42", *options).code == 2
    record = stored.store.get(name)
    assert record is not None
    assert record.state is State.UNKNOWN


# --- stats, doctor, init-db ----------------------------------------------------------------------


def test_stats_counts_by_state_and_task(run: Commands, stored: StoredRecords) -> None:
    """All of them."""
    # Given
    stored.done("order:1")
    stored.done("order:2", task="shop.refund")
    stored.hold("order:3")
    # Then
    assert run("stats").lines == [
        {
            "records": 3,
            "exact": True,
            "states": {"succeeded": 2, "running": 1},
            "tasks": {"shop.charge": 2, "shop.refund": 1},
            "journal_since": None,
        }
    ]
    assert "shop.refund  1" in run("stats", "--text").out


def test_list_since_asks_the_journal_alone(
    run: Commands, app: Celery, stored: StoredRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record is gone through that nothing happened to lately."""
    # Given
    name = stored.done("order:1")
    stored.done("order:2")
    journal = environment_of(app).journal
    journal.write("succeeded", name, "shop.charge", "first", took=1.0)

    def forbidden(*_: Any) -> Any:
        raise AssertionError("gone through")

    monkeypatch.setattr(stored.store, "scan", forbidden)
    # Then
    assert [line["name"] for line in run("list", "--since", "1h").lines] == [name]
    assert run("list", "--since", "soon").code == 2


def test_stats_says_how_far_back_the_journal_reaches(run: Commands, app: Celery) -> None:
    """What was before that, nobody knows."""
    assert "journal  empty" in run("stats", "--text").out
    environment_of(app).journal.write("succeeded", "idempotent:{shop:1}", "shop.charge", "first")
    assert "journal  since 20" in run("stats", "--text").out


def test_doctor_exits_with_one_where_something_is_found(run: Commands) -> None:
    """A document a finding, or a paragraph of it."""
    done = run("doctor")
    assert done.code == 1
    assert "memory-with-processes" in {finding["name"] for finding in done.lines}
    text = run("doctor", "--text").out
    assert 'idempotency_store_url = "redis://localhost:6379/2"' in text


def test_doctor_exits_with_nought_where_nothing_is_found(run: Commands, app: Celery) -> None:
    """And says what it has looked at, to a person only."""
    # Given
    names = [finding["name"] for finding in run("doctor").lines]
    app.conf.idempotency_accept = names
    # Then
    assert (run("doctor").code, run("doctor").out) == (0, "")
    assert "Nothing found: 1 tasks" in run("doctor", "--text").out


@pytest.mark.parametrize(
    ("level", "fail_on", "code"),
    [
        ("hint", "warning", 0),
        ("hint", "hint", 1),
        ("warning", "warning", 1),
        ("warning", "error", 0),
        ("error", "error", 1),
        ("error", "never", 0),
    ],
)
def test_doctor_fails_from_a_level_on(
    run: Commands, monkeypatch: pytest.MonkeyPatch, level: str, fail_on: str, code: int
) -> None:
    """The default is a warning; what is found is written in any case."""
    # Given
    finding = Finding("late-redelivery", level, "it comes late", "Because.", "Set", "1")
    monkeypatch.setattr(check, "examine", lambda app: [finding])
    # When
    done = run("doctor", "--fail-on", fail_on)
    # Then
    assert done.code == code
    assert [it["name"] for it in done.lines] == ["late-redelivery"]
    assert run("doctor").code == (0 if level == "hint" else 1)


def test_init_db_is_for_databases(run: Commands) -> None:
    """Another store needs no tables."""
    done = run("init-db")
    assert done.code == 1
    assert "needs no tables" in done.err


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [["list"], ["show", "x"], ["why", "x"], ["forget", "x", "--yes"], ["stats"]],
    ids=lambda command: command[0],
)
def test_a_store_that_is_away_is_said_in_a_sentence(
    run: Commands, stored: StoredRecords, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """Without a traceback, with exit code 1."""

    # Given
    def away(*_: Any) -> Any:
        raise StoreUnavailable("the store at redis://:**@there does not answer")

    for name in ("read_events", "get_many", "scan"):
        monkeypatch.setattr(stored.store, name, away)
    # When
    done = run(*command)
    # Then
    assert (done.code, done.out) == (1, "")
    assert done.err == "Error: the store at redis://:**@there does not answer\n"


@pytest.mark.parametrize("command", ["list", "doctor"])
def test_an_app_without_a_store_is_told_so(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """With what to set, and without a password."""
    # Given
    app = Celery("nothing", broker="amqp://me:hunter2@localhost//", set_as_current=False)
    # When
    done = Commands(app, capsys)(command)
    app.close()
    # Then
    assert done.code == 3
    assert "idempotency_store_url" in done.err
    assert "hunter2" not in done.err


@pytest.mark.parametrize("name", sorted(idempotency.commands))
def test_every_command_has_help(run: Commands, name: str) -> None:
    """Which says what it is for."""
    done = run(name, "--help")
    assert done.code == 0
    assert len(done.out) > 100


def test_the_help_says_what_exit_codes_mean(run: Commands) -> None:
    """And what is written where."""
    text = " ".join(run("--help").out.split())
    assert "Exit codes: 0, done, or filters found nothing; 1, what was named was not found" in text
    assert "3, the app's configuration is so wrong" in text
    assert "JSON" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (9.94, "9.9 s"),
        (10.0, "10 s"),
        (119.0, "119 s"),
        (120.0, "2 min"),
        (7200.0, "2 h"),
        (86_399.0, "24 h"),
        (172_800.0, "2 d"),
        (-5.0, "-5.0 s"),
        (None, ""),
    ],
)
def test_times_are_told_in_their_largest_unit(seconds: float | None, text: str) -> None:
    """With no more digits than a person reads."""
    assert duration(seconds) == text


@pytest.mark.parametrize("command", [["list"], ["show", "order:42"], ["why", FIRST]], ids=" ".join)
def test_nothing_in_a_record_can_write_to_a_terminal(
    run: Commands, app: Celery, stored: StoredRecords, command: list[str]
) -> None:
    """A result, a label or an owner with control characters in it is shown with them escaped."""
    # Given
    evil = "\x1b[2J\x9bA\u202e\ud800\n"
    failure = f'{{"exc_type": "E", "exc_message": ["{evil.encode("unicode_escape").decode()}"]}}'
    outcome = Outcome(Kind.FAILURE, *JSON, failure.replace("\\x", "\\u00").encode()).pack()
    name = stored.done(
        "order:42", owner=FIRST, outcome=outcome, label=f"shop.charge{evil[:4]}\nkey"
    )
    tell(app, "failed", name, FIRST, error=evil, node=evil)
    # When
    done = run(*command, "--text")
    # Then
    assert done.code == 0
    assert all(line.isprintable() for line in done.out.splitlines()), done.out
    assert "\\u001b" in done.out


# --- what is imported -----------------------------------------------------------------------------

IMPORTED = """
import sys
import celery.bin.celery
from celery_idempotent.ops.cli import idempotency

def ours():
    return {name for name in sys.modules if name.startswith("celery_idempotent")}

before = ours()
assert set(idempotency.commands) >= {"list", "doctor", "relay"}
assert ours() == before
print(*sorted(before))
idempotency.commands["export"]
print(*sorted(name for name in ours() - before if ".cli." in name))
"""


def test_a_command_is_imported_when_it_is_asked_for(tmp_path: Path) -> None:
    """Each of Celery's own commands loads this group, `celery worker` as well as `--help`."""
    # Given
    program = tmp_path / "imported.py"
    program.write_text(IMPORTED)
    root = Path(__file__).parents[2]
    # When
    done = warm.run([str(program)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)})
    # Then
    assert done.returncode == 0, done.stderr
    top, commands = (set(line.split()) for line in done.stdout.splitlines())
    ops = "celery_idempotent.ops"
    assert top == {"celery_idempotent", ops, f"{ops}.cli", f"{ops}.panel"}
    assert commands == {f"{ops}.cli.console", f"{ops}.cli.move"}


def test_a_misspelt_command_is_an_error(run: Commands) -> None:
    """It says so whether the command that was meant is imported or not."""
    done = run("exprot")
    assert done.code == 2
    assert "No such command 'exprot'" in done.err
