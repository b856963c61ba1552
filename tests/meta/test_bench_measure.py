"""How speed is timed: contestants take turns, and a figure says how sure it is."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import celery
import pytest
import redis
from celery_singleton.backends import RedisBackend

from benchmarks.speed import enqueue, measure, peers
from benchmarks.speed.bare import Bare
from benchmarks.speed.measure import Effort, Goal, Ratio, ratio, rounds
from celery_idempotent.testing.servers import RedisServer


def silent(text: str) -> None:
    """Say nothing."""


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (range(100), Ratio(49.5, 39, 60)),
        ([3.0, 1.0, 2.0], Ratio(2.0, 1.0, 3.0)),
        ([1.0], Ratio(1.0, 1.0, 1.0)),
    ],
)
def test_a_ratio_lies_between_two_of_those_found(found: Any, expected: Ratio) -> None:
    """Of many rounds some in the middle say it, of few all do."""
    assert Ratio.of(found) == expected


@pytest.mark.parametrize("slip", ["", "bare:{task:one}:sent:id"], ids=["eager", "in a worker"])
@pytest.mark.parametrize("packed", [False, True], ids=["by redis-py", "by our connections"])
def test_the_bare_side_sends_what_the_scripts_take(packed: bool, slip: str) -> None:
    """A claim, its completion and a replay: the scripts' arguments are those of today."""
    # Given
    with RedisServer() as server:
        bare = Bare(server.url(), packed=packed)
        key, owner = "bare:{task:one}", b"U" + bytes(16)
        # When
        token = bare.claim(key, owner, slip)
        assert isinstance(token, int)
        bare.complete(key, owner, token, slip)
        replayed = bare.claim(key, b"U" + b"\1" * 16, slip)
        # Then
        assert isinstance(replayed, bytes)
        assert bare.timed_scripts(3, 0)[0] > 0


def test_what_a_plain_task_takes_is_taken_off_both_sides() -> None:
    """Round by round: a slow round is slow for all of them."""
    # Given a second round in which all takes twice as long
    ours, theirs, plain = [3.0, 6.0], [5.0, 10.0], [1.0, 2.0]
    # Then
    assert ratio(theirs, ours, plain).median == 2.0
    assert ratio(theirs, ours).median == pytest.approx(5 / 3)


def test_a_goal_says_between_what_its_figure_lies() -> None:
    """So that a reader can tell a miss from chance; whether it holds is for the median."""
    goal = Goal.of("1a", "a share", Ratio(0.94, 0.9, 0.98), ">=", 0.95)

    assert goal.holds is False
    assert goal.bounds == (0.9, 0.98)


def test_each_takes_its_turns_and_none_is_always_after_the_same() -> None:
    """Each is as often before another as after it."""
    # Given
    played: list[str] = []

    def player(name: str) -> Any:
        def play(count: int) -> None:
            assert count in (2, 4)
            played.append(name)

        return play

    # When
    found = rounds({name: player(name) for name in "abc"}, 4, Effort(20), silent)
    # Then one turn of each to warm up, and twenty that count
    assert {name: len(seconds) for name, seconds in found.items()} == dict.fromkeys("abc", 20)
    assert Counter(played) == dict.fromkeys("abc", 21)
    orders = ["".join(played[at : at + 3]) for at in range(3, 63, 3)]
    assert orders[1::2] == [order[::-1] for order in orders[::2]]
    assert len(set(orders)) == 6


def test_a_contestant_may_say_by_itself_how_long_it_took() -> None:
    """A worker's turn has parts that don't count, such as filling its queue."""
    found = rounds({"worker": lambda count: 0.25}, 4, Effort(3), silent)

    assert found == {"worker": [0.25] * 3}


@pytest.mark.parametrize(("round_s", "played"), [(0.0, 100), (1.0, 10), (60.0, 5)])
def test_a_slow_machine_plays_fewer_rounds(
    monkeypatch: pytest.MonkeyPatch, round_s: float, played: int
) -> None:
    """As many as there is time for, yet not so few that they say nothing."""
    # Given
    now = [0.0]
    monkeypatch.setattr(measure, "time", SimpleNamespace(monotonic=lambda: now[0]))
    said: list[str] = []
    # When
    turns = 0
    for _ in Effort(100, within=10).turns(said.append):
        turns += 1
        now[0] += round_s
    # Then
    assert turns == played
    assert said[0] == "round 1 of 100"


def test_who_came_closest_is_measured_again_until_it_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that had luck in a few rounds is not what a goal hangs on, nor one that had bad luck."""
    # Given
    rows = {name: SimpleNamespace(ratios={}) for name in "abc"}
    luck = {"a": [0.9, 1.3], "b": [1.2, 1.1], "c": [1.4]}
    efforts: list[tuple[str, bool]] = []

    def duel(what: str, name: str, players: Any, rows: Any, effort: Effort, say: Any) -> None:
        efforts.append((name, effort.rounds > 100))
        rows[name].ratios[what] = luck[name].pop(0)

    monkeypatch.setattr(peers, "_duel", duel)
    # When
    measured: Any = peers._measure
    measured("first", list("abc"), {}, rows, False, silent)
    # Then a was lucky: b is the closest
    assert efforts == [("a", False), ("b", False), ("c", False), ("a", True), ("b", True)]
    assert min(row.ratios["first"] for row in rows.values()) == 1.1


@pytest.mark.long(4)
def test_each_mode_stops_a_duplicate_at_the_enqueue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and each peer's, while the first call is queued and while it runs."""
    # Given peers that were measured before, on a server that is gone
    monkeypatch.setattr("celery_once.backends.redis.redis", redis.Redis(port=1))
    monkeypatch.setattr("celery_singleton.backends._backend", RedisBackend("redis://127.0.0.1:1"))
    # When
    with RedisServer() as server:
        found = enqueue.measure_enqueue(server, True, silent)
    # Then
    rows = {row["name"]: row for row in found.tables["enqueue"]}
    assert set(rows) == {mode.name for mode in enqueue.MODES}
    ours = [rows[f"celery-idempotent, {how}"] for how in ("attach", "raise")]
    # One to the store, and one to the result backend. Before 5.7 Celery may send that one another
    # command when the caller drops the result.
    most = 2.0 if celery.VERSION >= (5, 7) else 3.0
    trips = [row["trips"][state] for row in ours for state in ("queued", "running")]
    assert 2.0 <= min(trips) <= max(trips) <= most
    # A published call: four to the store. celery-once has two, to take and give back a lock.
    results = min(row["first_trips"] for name, row in rows.items() if "once" in name) - 2
    assert [row["first_trips"] - results for row in ours] == [4.0, 4.0]
    assert [goal.number for goal in found.goals] == ["3e", "3f", "3g", "3h"]
    assert enqueue.as_rst(list(rows.values()), "said").count("   * -") == 1 + len(rows)
