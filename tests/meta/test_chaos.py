"""The judgement of chaos finds each violation in a made-up ledger, and excuses what it may."""

from __future__ import annotations

import itertools
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from billiard.pool import READY
from billiard.queues import _SimpleQueue
from rich.console import Console

from celery_idempotent.testing.servers import RedisServer
from tests.chaos import aof
from tests.chaos.evidence import Answer, Done, Evidence, Published, Verdict
from tests.chaos.history import history_of
from tests.chaos.judgement import judge
from tests.chaos.marks import COPY
from tests.chaos.plan import (
    LEASE_S,
    LONG_S,
    SHORT_S,
    STALLS,
    Act,
    make_plan,
    parts_of,
)
from tests.chaos.report import conclude
from tests.support.histories.checker import check

Line = dict[str, Any]
EVERYTHING = parts_of(rabbitmq=True, postgresql=True)


QUEUED = {"copy": "m", "queue": "q"}


class Story:
    """What happened to one key, told line by line; at first all goes well."""

    def __init__(self, key: str = "k") -> None:
        self.key = key
        self.lines: list[Line] = []
        self.faults: list[Done] = []
        self.rows: dict[str, int] = {}
        self.answers = {"call": Answer("SUCCESS", "receipt")}
        self.published = [Published("redis", "charge", {"call": key})]

    def add(self, event: str, at: float, pid: int = 1, **fields: Any) -> None:
        self.lines.append({"event": event, "at": at, "pid": pid, "key": self.key, **fields})

    def run(
        self,
        at: float,
        pid: int = 1,
        node: str = "a",
        effect: float | None = None,
        end: float | None = None,
        recorded: float | None = None,
        asked: float | None = None,
    ) -> None:
        """A body that begins at a time; what is not given did not come about."""
        token = {"token": int(at * 10)}
        if asked is not None:
            self.add("claimed", at, pid, asked=asked, **token)
        self.add("begin", at, pid, id="call", node=node, **token)
        if effect is not None:
            self.add("effect", effect, pid, step="", receipt="r", **token)
        if end is not None:
            self.add("end", end, pid, id="call", node=node, **token)
        if recorded is not None:
            self.add("settled", recorded, pid, state="succeeded", taken=True, **token)
            self.add("recorded", recorded, pid, step="", **token)

    def step(
        self,
        at: float,
        token: int,
        pid: int = 1,
        recorded: float | None = None,
        asked: float | None = None,
    ) -> None:
        """A step's effect, when the key was asked for before it, and when its record was there."""
        more = {} if asked is None else {"asked": asked}
        self.add("effect", at, pid, step="a", receipt="r", token=token, **more)
        if recorded is not None:
            self.add("recorded", recorded, pid, step="a", token=token)

    def fault(self, act: Act, began: float, seconds: float = 0.0, **whom: Any) -> None:
        self.faults.append(Done(act, began, began + seconds, **whom))

    def judged(self, **more: Any) -> Verdict:
        return judge(self.evidence(**more))

    def evidence(self, **more: Any) -> Evidence:
        return Evidence(
            entries=sorted(self.lines, key=lambda line: line["at"]),
            faults=self.faults,
            published=self.published,
            answers=self.answers,
            rows=self.rows,
            **more,
        )


def found(verdict: Verdict) -> set[str]:
    """The sorts of violations."""
    return {violation.what for violation in verdict.violations}


# --- the plan ------------------------------------------------------------------------------------


def test_a_seed_makes_the_same_plan_again() -> None:
    """The same seed, time and parts: the same calls and faults; another seed: others."""
    assert make_plan(7, 60, EVERYTHING) == make_plan(7, 60, EVERYTHING)
    assert make_plan(7, 60, EVERYTHING).calls != make_plan(8, 60, EVERYTHING).calls
    assert make_plan(7, 60, EVERYTHING).faults != make_plan(8, 60, EVERYTHING).faults


def test_the_traffic_of_a_part_does_not_depend_on_what_else_there_is() -> None:
    """Without RabbitMQ the half on Redis gets the very same calls."""

    def on_redis(plan: Any) -> list[Any]:
        return [call for call in plan.calls if call.part == "redis"]

    alone = make_plan(7, 60, parts_of(rabbitmq=False, postgresql=False))
    assert on_redis(alone) == on_redis(make_plan(7, 60, EVERYTHING))


@pytest.mark.parametrize("seed", range(20))
def test_a_stall_costs_every_lease_or_none(seed: int) -> None:
    """Stalls are shorter than what is left of a lease when it is renewed, or longer than it."""
    # When
    stalls = [it for it in make_plan(seed, 180, EVERYTHING).faults if it.act in STALLS]
    # Then
    assert SHORT_S[1] < LEASE_S / 3
    assert LONG_S[0] > LEASE_S
    for stall in stalls:
        low, high = SHORT_S if stall.seconds < LEASE_S else LONG_S
        assert low <= stall.seconds <= high
    for first, second in itertools.pairwise(stalls):
        assert second.at - (first.at + first.seconds) > LEASE_S / 3


@pytest.mark.parametrize("seed", range(5))
def test_everything_is_killed_in_each_part(seed: int) -> None:
    """In three minutes children, and whole workers, of each part."""
    # When
    faults = make_plan(seed, 180, EVERYTHING).faults
    # Then
    for act in (Act.KILL_CHILD, Act.KILL_WORKER):
        killed = {fault.part for fault in faults if fault.act is act}
        assert killed == {part.name for part in EVERYTHING}


# --- the judgement -------------------------------------------------------------------------------


def test_a_run_without_a_fault_holds() -> None:
    """One body, one effect, one record, one answer."""
    # Given
    story = Story()
    story.run(1.0, effect=1.1, end=1.2, recorded=1.3)
    # When
    verdict = story.judged()
    # Then
    assert verdict.holds
    assert verdict.figures["keys"] == verdict.figures["effects"] == 1


def overlapping() -> Story:
    story = Story()
    story.run(1.0, pid=1, node="a", end=19.0)
    story.run(7.0, pid=2, node="b", effect=7.1, end=7.2, recorded=7.3)
    return story


def test_two_bodies_at_once_are_an_overlap() -> None:
    """A body that begins while another of its key is at it, and nothing excuses that."""
    verdict = overlapping().judged()
    assert found(verdict) == {"overlap"}


LONG, SHORT = LEASE_S + 0.5, 0.8


@pytest.mark.parametrize(
    ("act", "began", "seconds", "whom", "excused"),
    [
        (Act.STOP_CHILD, 1.4, LONG, {"pid": 1}, True),
        (Act.STOP_WORKER, 1.4, LONG, {"node": "a"}, True),
        (Act.KILL_SERVER, 1.4, LONG, {}, True),
        (Act.PAUSE_SERVER, 1.4, LONG, {}, True),
        (Act.KILL_CHILD, 6.9, 0.0, {"pid": 1}, True),  # it did not live to see the other
        (Act.KILL_WORKER, 6.9, 0.0, {"node": "a"}, True),
        (Act.STOP_CHILD, 1.4, SHORT, {"pid": 1}, False),  # too short to cost it its lease
        (Act.KILL_SERVER, 1.4, SHORT, {}, False),
        (Act.STOP_CHILD, 1.4, LONG, {"pid": 2}, False),  # the other one
        (Act.STOP_WORKER, 1.4, LONG, {"node": "b"}, False),
        (Act.STOP_CHILD, 7.1, LONG, {"pid": 1}, False),  # after the other had begun
        (Act.STOP_CHILD, 6.9, LONG, {"pid": 1}, False),  # most of its lease was left
        (Act.STOP_CHILD, -2.0, LONG, {"pid": 1}, False),  # over for long: it was renewed again
        (Act.KILL_CHILD, 7.1, 0.0, {"pid": 1}, False),
        (Act.CUT, 1.4, LONG, {}, False),  # costs no lease
    ],
)
def test_what_excuses_an_overlap(
    act: Act, began: float, seconds: float, whom: dict[str, Any], excused: bool
) -> None:
    """The first holder's death, or a stall of it longer than the lease, before the second one."""
    # Given
    story = overlapping()
    story.fault(act, began, seconds, **whom)
    # Then
    assert found(story.judged()) == (set() if excused else {"overlap"})


def test_a_holder_that_lost_its_key_is_none_any_more() -> None:
    """Overtaken once, with an excuse, a run that goes on is in nobody's way."""
    # Given
    story = overlapping()
    story.fault(Act.STOP_CHILD, 1.4, LONG, pid=1)
    story.run(12.0, pid=3, node="c", end=12.5)
    # When
    verdict = story.judged()
    # Then
    assert found(verdict) == set()
    assert verdict.figures["overlaps after a lost lease"] == 1


def test_an_outage_of_the_server_excuses_nobody_whose_records_are_elsewhere() -> None:
    """A session's records are in its database, which nothing happens to."""
    # Given
    story = overlapping()
    story.fault(Act.KILL_SERVER, 1.4, LONG)
    # Then
    assert found(story.judged(apart=frozenset({"a", "b"}))) == {"overlap"}


def twice() -> Story:
    story = Story()
    story.run(1.0, pid=1, node="a", effect=1.5)
    story.run(20.0, pid=2, node="b", effect=20.1, end=20.2, recorded=20.3)
    return story


def ended_and_recorded(story: Story, at: float) -> None:
    story.add("end", at, 1, id="call", node="a", token=10)
    story.add("settled", at, 1, state="succeeded", taken=True, token=10)
    story.add("recorded", at, 1, step="", token=10)


@pytest.mark.parametrize(
    ("act", "began", "seconds", "whom", "excused"),
    [
        (Act.KILL_CHILD, 1.6, 0.0, {"pid": 1}, True),
        (Act.KILL_WORKER, 1.6, 0.0, {"node": "a"}, True),
        (Act.STOP_CHILD, 1.6, LONG, {"pid": 1}, True),
        (Act.PAUSE_SERVER, 1.6, LONG, {}, True),
        (Act.KILL_CHILD, 0.9, 0.0, {"pid": 1}, False),  # before it began
        (Act.KILL_CHILD, 1.6, 0.0, {"pid": 3}, False),
        (Act.STOP_CHILD, 1.6, SHORT, {"pid": 1}, False),
        (Act.PAUSE_SERVER, 1.6, SHORT, {}, False),
        (Act.CUT, 1.6, 0.0, {}, False),
    ],
)
def test_what_excuses_a_second_effect(
    act: Act, began: float, seconds: float, whom: dict[str, Any], excused: bool
) -> None:
    """A kill between claim and record, or a stall there that is longer than the lease."""
    # Given
    story = twice()
    if not (act in (Act.KILL_CHILD, Act.KILL_WORKER) and excused):
        story.add("end", 15.0, 1, id="call", node="a", token=10)
    story.fault(act, began, seconds, **whom)
    # When
    verdict = story.judged()
    # Then
    assert found(verdict) == (set() if excused else {"repeated effect"})
    assert verdict.figures["repeated effects, each with its fault"] == excused


@pytest.mark.parametrize(("asked", "excused"), [(0.8, True), (0.95, False)])
def test_a_stop_between_claim_and_begin_excuses(asked: float, excused: bool) -> None:
    """The window opens when the key was asked for, which is before the body notes its begin."""
    # Given
    story = Story()
    story.run(8.0, pid=1, node="a", effect=8.5, end=9.0, asked=asked)
    story.run(20.0, pid=2, node="b", effect=20.1, end=20.2, recorded=20.3)
    story.fault(Act.STOP_CHILD, 0.9 - LONG, LONG, pid=1)
    # Then
    assert found(story.judged()) == (set() if excused else {"repeated effect"})


@pytest.mark.parametrize(("killed", "excused"), [(9.4, True), (9.6, False)])
def test_a_kill_excuses_until_the_store_was_told_of_the_end(killed: float, excused: bool) -> None:
    """A refusal ends the window, too: what its process dies of later has nothing to do with it."""
    # Given
    story = Story()
    story.run(1.0, pid=1, node="a", effect=1.5, end=9.0)
    story.add("settled", 9.5, 1, token=10, state="succeeded", taken=False)
    story.run(20.0, pid=2, node="b", effect=20.1, end=20.2, recorded=20.3)
    story.fault(Act.KILL_CHILD, killed, pid=1)
    # Then
    assert found(story.judged()) == (set() if excused else {"repeated effect"})


def test_a_kill_after_the_record_excuses_nothing() -> None:
    """What was recorded is not run again: two effects, and two runs that were accepted."""
    # Given
    story = twice()
    ended_and_recorded(story, 1.7)
    story.fault(Act.KILL_CHILD, 1.8, pid=1)
    # Then
    assert found(story.judged()) == {"repeated effect", "accepted twice"}


def test_two_accepted_runs_are_found_even_with_an_excuse_for_the_effect() -> None:
    """A stall may repeat an effect; it never makes two completions count."""
    # Given
    story = twice()
    ended_and_recorded(story, 19.0)
    story.fault(Act.STOP_CHILD, 1.6, LONG, pid=1)
    # Then
    assert found(story.judged()) == {"accepted twice"}


@pytest.mark.parametrize(("killed", "excused"), [(1.15, True), (1.05, False), (1.3, False)])
def test_a_step_is_repeated_only_between_its_effect_and_its_record(
    killed: float, excused: bool
) -> None:
    """Before its effect it was not done, after its record it is not done again."""
    # Given
    story = Story()
    story.run(1.0, pid=1)
    story.step(1.1, token=10, pid=1, recorded=None if excused else 1.2)
    story.run(2.0, pid=2, end=2.5, recorded=2.6)
    story.step(2.1, token=20, pid=2, recorded=2.2)
    story.fault(Act.KILL_CHILD, killed, pid=1)
    # Then
    assert found(story.judged()) == (set() if excused else {"repeated effect"})


@pytest.mark.parametrize(("asked", "excused"), [(8.0, True), (8.8, False)])
def test_a_step_that_asked_before_it_stood_still_may_be_repeated(
    asked: float, excused: bool
) -> None:
    """It held its key when it asked; one that asks after a stop is told."""
    # Given
    story = Story()
    story.run(1.0, pid=1)
    story.step(8.9, token=10, pid=1, asked=asked)
    story.run(7.5, pid=2, end=7.9, recorded=8.0)
    story.step(7.6, token=75, pid=2, recorded=7.7)
    story.fault(Act.STOP_CHILD, 8.5 - LONG, LONG, pid=1)
    # Then
    assert found(story.judged()) == (set() if excused else {"repeated effect"})


def test_a_second_row_is_never_excused() -> None:
    """Not by any fault: that is what sessions and keyed inserts are for."""
    # Given
    story = Story()
    story.run(1.0, end=1.2, recorded=1.3)
    story.rows = {"k": 2}
    story.fault(Act.KILL_CHILD, 1.1, pid=1)
    # Then
    assert found(story.judged()) == {"repeated row"}


def test_a_key_without_an_effect_is_lost() -> None:
    """It was called, and somebody was even told that it was done."""
    assert found(Story().judged()) == {"lost"}


@pytest.mark.parametrize("state", ["PENDING", "STARTED", "RETRY"])
def test_a_call_without_an_outcome_is_unanswered(state: str) -> None:
    """Each call counts, a duplicate, too."""
    # Given
    story = Story()
    story.run(1.0, effect=1.1, end=1.2, recorded=1.3)
    story.published.append(Published("redis", "charge", {"duplicate": "k"}))
    story.answers["duplicate"] = Answer(state)
    # Then
    assert found(story.judged()) == {"unanswered"}


def test_a_call_that_failed_is_found() -> None:
    """Nothing in the traffic fails by itself."""
    # Given
    story = Story()
    story.run(1.0, effect=1.1, end=1.2, recorded=1.3)
    story.answers["call"] = Answer("FAILURE", {"exc_type": "OperationalError"})
    # Then
    assert found(story.judged()) == {"failed"}


@pytest.mark.parametrize(
    ("kind", "act", "message", "excused"),
    [
        ("chord", Act.KILL_SERVER, "Callback error: OperationalError('Error 111')", True),
        ("chord", Act.KILL_SERVER, "Dependency m raised network:ConnectionError", True),
        ("chord", Act.CUT, "Callback error: OperationalError('closed')", True),
        ("chord", Act.KILL_SERVER, "Dependency m raised ValueError('no')", False),
        ("chord", Act.KILL_CHILD, "Callback error: OperationalError('Error 111')", False),
        ("chain", Act.KILL_SERVER, "Callback error: OperationalError('Error 111')", False),
    ],
)
def test_only_a_chord_may_fail_for_want_of_a_broker_or_a_backend(
    kind: str, act: Act, message: str, excused: bool
) -> None:
    """Celery fails a chord that it can't go on with just then: by its very words, and no more."""
    # Given
    story = Story("tail-call")
    story.published = [Published("redis", kind, {"call": "tail-call"}, at=1.0)]
    failure = {"exc_type": "ChordError", "exc_message": [message]}
    story.answers["call"] = Answer("FAILURE", failure)
    story.fault(act, 2.0, 0.1)
    # When
    verdict = story.judged()
    # Then
    assert found(verdict) == (set() if excused else {"failed", "lost"})
    assert verdict.figures["chords that Celery gave up in an outage"] == excused


@pytest.mark.parametrize(
    ("lines", "act", "excused"),
    [
        (["counting"], Act.KILL_CHILD, True),
        (["counting"], Act.KILL_SERVER, True),
        (["counting", "counted"], Act.KILL_CHILD, False),
        (["counting", "counting", "counted"], Act.KILL_SERVER, True),  # its first answer was lost
        (["counting", "counted", "counting", "counted"], Act.KILL_SERVER, False),
        ([], Act.KILL_CHILD, False),
        (["counting"], Act.CUT, False),
        (["counting", "sent"], Act.KILL_CHILD, False),
    ],
)
def test_only_a_chord_that_was_cut_off_as_it_was_counted_may_have_no_body(
    lines: list[str], act: Act, excused: bool
) -> None:
    """The process that was to send the body died at it, and the body was never sent."""
    # Given
    story = Story("part")
    story.run(1.0, effect=1.1, end=1.2, recorded=1.3)
    story.published = [Published("redis", "chord", {"call": "part", "body": "tail-body"})]
    for at, event in enumerate(lines, start=2):
        whose = "body" if event == "sent" else "call"
        story.lines.append({"event": event, "at": at, "pid": 1, "id": whose, **QUEUED})
    story.fault(act, 10.0, pid=1)
    # When
    verdict = story.judged()
    # Then
    assert found(verdict) == (set() if excused else {"unanswered", "lost"})
    assert verdict.figures["chords cut off as Celery counted a part"] == excused


def test_duplicates_with_differing_answers_are_found() -> None:
    """Both ways: two answers where there was one effect, or where a fault made two."""
    # Given
    clean, faulty = Story(), twice()
    clean.run(1.0, effect=1.1, end=1.2, recorded=1.3)
    faulty.fault(Act.KILL_CHILD, 1.6, pid=1)
    for story in (clean, faulty):
        story.published.append(Published("redis", "charge", {"duplicate": "k"}))
        story.answers["duplicate"] = Answer("SUCCESS", "another receipt")
    # Then
    assert found(clean.judged()) == {"differing answers"}
    assert found(faulty.judged()) == set()


def message(tag: str) -> bytes:
    headers = {COPY: f"mark of {tag}", "id": f"id of {tag}"}
    return json.dumps({"headers": headers, "properties": {"delivery_tag": tag}}).encode()


def writes(*lines: str) -> list[list[bytes]]:
    """The server's log: a word that begins with ``@`` stands for the message with that tag."""
    return [
        [message(word[1:]) if word.startswith("@") else word.encode() for word in line.split()]
        for line in lines
    ]


@pytest.mark.parametrize(
    ("log", "gone"),
    [
        (["LPUSH q @a"], set()),  # it waits
        (["LPUSH q @a", "RPOP q"], {"a"}),  # taken, and not noted
        (["LPUSH q @a", "RPOP q", "HSET unacked a ..."], set()),  # held
        (["LPUSH q @a", "LPUSH q @b", "RPOP q", "HSET unacked a ..."], set()),
        (["LPUSH q @a", "LPUSH q @b", "RPOP q", "RPOP q", "HSET unacked b ..."], {"a"}),
        (["LPUSH q @a", "RPUSH q @b", "RPOP q", "HSET unacked a ..."], {"b"}),
        (  # delivered again, and lost then
            [
                "LPUSH q @a",
                "RPOP q",
                "HSET unacked a ...",
                "HDEL unacked a",
                "RPUSH q @a",
                "RPOP q",
            ],
            {"a"},
        ),
        (["LPUSH other @a", "RPOP other"], set()),
        (["SELECT 1", "LPUSH q @a", "RPOP q"], set()),
    ],
)
def test_what_kombu_lost_is_read_from_the_servers_own_log(log: list[str], gone: set[str]) -> None:
    """A message that was taken off its queue and never noted as held; no other."""
    assert aof.lost(writes(*log), ["q"]) == {f"mark of {it}": f"id of {it}" for it in gone}


def test_the_servers_log_is_read_as_it_is_written(tmp_path: Path) -> None:
    """Commands of a real server, over a kill and a restart."""
    # Given
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with RedisServer(directory=tmp_path, args=options) as server:
        with redis.Redis.from_url(server.url()) as client:
            for tag in ("a", "b"):
                client.lpush("q", message(tag))
            client.brpop(["q"])
            server.kill()
            server.restart()
            client.brpop(["q"])
            client.hset("unacked", "b", "held")
        # Then
        assert aof.lost(aof.commands(tmp_path), ["q"]) == {"mark of a": "id of a"}


@pytest.mark.parametrize("gone", ["call", "another"])
def test_what_kombu_lost_excuses_only_the_calls_that_it_belongs_to(gone: str) -> None:
    """Another call with the same key is to be answered all the same."""
    # Given
    story = Story()
    story.answers.clear()
    # When
    verdict = story.judged(lost={"mark": gone})
    # Then
    assert found(verdict) == (set() if gone == "call" else {"lost", "unanswered"})
    assert verdict.figures["messages lost by kombu"] == 1


# --- the history ---------------------------------------------------------------------------------


def right() -> Story:
    """A run that stands still and is taken over; both ends are told, and the later one counts."""
    story = Story()
    story.run(1.0, pid=1, node="a")
    story.fault(Act.STOP_WORKER, 1.4, LONG, node="a")
    story.run(7.0, pid=2, node="b")
    story.add("end", 7.2, 2, id="call", node="b", token=70, state="returned", value="receipt")
    story.add("settled", 7.3, 2, state="succeeded", taken=True, token=70)
    story.add("stored", 7.4, 2, id="call", state="SUCCESS", value="receipt")
    story.add("end", 8.0, 1, id="call", node="a", token=10, state="returned", value="late")
    story.add("settled", 8.1, 1, state="succeeded", taken=False, token=10)
    return story


def promises_broken(story: Story) -> list[str]:
    return [one.rule for one in check(history_of(story.evidence()), LEASE_S)]


def test_a_right_run_breaks_no_promise() -> None:
    """The ledger and the fault log, as a history, are what the contract says."""
    # Given such a run; when its history is checked; then nothing is found
    assert promises_broken(right()) == []


def accept_both(story: Story) -> None:
    story.lines[-1]["taken"] = True


def forget_the_stop(story: Story) -> None:
    story.faults.clear()


def answer_nobody(story: Story) -> None:
    story.answers.clear()
    story.lines = [line for line in story.lines if line["event"] != "stored"]


def answer_something_else(story: Story) -> None:
    story.answers["call"] = Answer("SUCCESS", "another receipt")


def wait_on(story: Story) -> None:
    story.add("stored", 9.0, 3, id="call", state="RETRY", value=None)


def run_once_more(story: Story) -> None:
    story.run(20.0, pid=3, node="c", end=21.0)


def send_twice(story: Story) -> None:
    story.published = [Published("redis", "chain", {"call": "k"})]
    for pid in (2, 3):
        story.add("sent", 7.35, pid, id="next", sender="call", by="m")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (accept_both, "accepted twice"),
        (forget_the_stop, "overlap"),
        (answer_nobody, "lost"),
        (answer_something_else, "wrong answer"),
        (wait_on, "answer changed"),
        (run_once_more, "ran again"),
        (send_twice, "callbacks twice"),
    ],
)
def test_a_broken_promise_is_found_in_the_history(
    change: Callable[[Story], None], rule: str
) -> None:
    """Whatever judgement says of it: the history shows it, by the contract alone."""
    # Given
    story = right()
    # When
    change(story)
    # Then
    assert promises_broken(story) == [rule]


def test_the_report_gives_an_account_and_the_command_that_repeats_it() -> None:
    """Key, ledger, the faults near it, and what to type."""
    # Given
    story = overlapping()
    story.fault(Act.STOP_CHILD, 1.4, SHORT, pid=1)
    console = Console(width=100)
    # When
    with console.capture() as captured:
        conclude(console, make_plan(7, 60, EVERYTHING), story.judged(), [])
    # Then
    text = captured.get()
    assert "overlap: k" in text
    assert "begin pid=2 id=call node=b token=70" in text
    assert "-- stop a child 1 (0.80 s)" in text
    assert "make chaos SEED=7 MINUTES=1" in text


def test_a_result_that_is_read_from_its_middle_is_no_pickle() -> None:
    """What a worker then logs tells that it was a result: docs/chaos.rst names it."""
    # Given two results in a pipe of a pool
    pipe = _SimpleQueue()
    for job in (1, 2):
        pipe.put((READY, (job, None, (True, (0, "'held'", 0.01)), 9)))
    # When a reader ends after the length of the first, and another one goes on
    os.read(pipe._reader.fileno(), 4)
    for _ in range(2):
        with pytest.raises(EOFError):
            pipe.get()
    # Then
    with pytest.raises(pickle.UnpicklingError, match=r"invalid load key, '\\x01'"):
        pipe.get()
