"""The commands on a store with a hundred thousand records, and at a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from configparser import ConfigParser
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from celery_idempotent.core.codec import Kind, Outcome
from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import Record, State
from celery_idempotent.ops.cli.console import Console
from celery_idempotent.run.journal import Journal
from celery_idempotent.stores.journal import journal_key
from celery_idempotent.stores.redis.store import RedisStore
from celery_idempotent.testing.servers import RedisServer
from tests.support import warm
from tests.support.commands import Commands
from tests.support.system import STORE_DB
from tests.support.tasks import SETTINGS_VARIABLE, make_app
from tests.support.workers import ROOT

MANY = 100_000
STATES = (State.SUCCEEDED, State.SUCCEEDED, State.RELEASED, State.SUCCEEDED)
#: One in so many is unknown.
UNKNOWN = 1000
#: So many events are about records; the rest of the records the journal doesn't know.
TOLD = 500


def name_of(number: int) -> str:
    return f"idempotent:{{shop.charge:order:{number}}}"


def owner_of(number: int) -> str:
    return str(uuid.UUID(int=number))


@pytest.fixture(scope="module")
def large() -> Iterator[RedisServer]:
    """A server with a hundred thousand records, and a journal of the last that happened."""
    outcome = Outcome(Kind.RESULT, "application/json", "utf-8", b'{"receipt": 7}').pack()
    with RedisServer() as server:
        with redis.Redis.from_url(server.url(STORE_DB)) as client:
            for start in range(0, MANY, 10_000):
                pipeline = client.pipeline(transaction=False)
                for number in range(start, start + 10_000):
                    state = STATES[number % len(STATES)]
                    if number % UNKNOWN == 995:
                        state = State.UNKNOWN
                        entry = f"{1_700_000_000_000_000 + number} {name_of(number)}"
                        pipeline.zadd("idempotent:unknown", {entry: number})
                    record = Record(
                        state,
                        1_700_000_000_000_000 + number,
                        owner=Owner(owner_of(number)).pack(),
                        outcome=b"" if state is State.UNKNOWN else outcome,
                    )
                    pipeline.set(name_of(number), record.pack(), px=86_400_000)
                pipeline.execute()
        store = RedisStore.from_url(server.url(STORE_DB))
        journal = Journal(store, journal_key("idempotent"), 10_000)
        for number in range(TOLD):
            journal.write("succeeded", name_of(number), "shop.charge", owner_of(number), took=0.1)
        store.close()
        yield server


def settings(server: RedisServer, directory: Path) -> dict[str, Any]:
    return {
        "broker_url": server.url(0),
        "result_backend": server.url(1),
        "idempotency_store_url": server.url(STORE_DB),
        "test_ledger": str(directory / "ledger"),
    }


@pytest.fixture
def app(large: RedisServer, tmp_path: Path) -> Iterator[Celery]:
    app = make_app(settings(large, tmp_path))
    yield app
    app.close()


@pytest.fixture
def run(app: Celery, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(app, capsys)


class Counted:
    """How often the server went through keys, and how many records were read."""

    def __init__(self, server: RedisServer) -> None:
        self._client = redis.Redis.from_url(server.url())
        self._client.config_resetstat()

    def calls(self, command: str) -> int:
        stats: dict[str, Any] = self._client.info("commandstats")
        return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def counted(large: RedisServer) -> Iterator[Counted]:
    counted = Counted(large)
    yield counted
    counted.close()


@pytest.mark.parametrize(
    ("command", "reads"),
    [
        (["list"], 200),
        (["list", "--text", "--limit", "20"], 200),
        (["list", "--state", "unknown", "--limit", "0"], 2 * MANY // UNKNOWN),
        (["list", "--match", "order:499"], 200),
        (["list", "--match", "order:99999"], 40),
        (["stats"], 13_000),
        (["show", "order:99999"], 40),
        (["show", name_of(77_777)], 5),
        (["show", owner_of(321)], 40),
        (["why", owner_of(123)], 5),
        (["forget", "--yes", "order:99998"], 40),
        (["resolve", "--yes", "order:99995", "--rerun"], 40),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_asked_for_is_found_without_going_through_the_store(
    run: Commands, counted: Counted, command: list[str], reads: int
) -> None:
    """By its key, by its name, or by the journal; the number of all records doesn't matter.

    What may be a key is looked for as each task's: its record, and its reservation.
    """
    # When
    done = run(*command, *(["--limit", "1"] if "--match" in command else []))
    # Then
    assert done.code == 0, done.err
    assert done.out
    assert counted.calls("scan") <= (13 if command == ["stats"] else 0)
    assert counted.calls("getrange") + counted.calls("get") <= reads


@pytest.mark.parametrize(
    "command",
    [
        ["list", "--limit", "0"],
        ["list", "--match", "order:9999", "--limit", "0"],
        ["list", "--state", "unknown", "--scan", "--limit", "0"],
    ],
    ids=" ".join,
)
def test_long_answers_are_streamed(
    run: Commands, counted: Counted, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first lines are written when few records have been read, and no step is a long one."""
    # Given
    read_by_then: list[int] = []
    say = Console.say

    def noted(console: Console, text: str = "") -> None:
        read_by_then.append(counted.calls("getrange")) if not read_by_then else None
        say(console, text)

    monkeypatch.setattr(Console, "say", noted)
    # When
    done = run(*command)
    # Then
    assert done.code == 0
    expected = {"--match": 11, "--state": MANY // UNKNOWN - 1}.get(command[1], MANY)
    assert len(done.out.splitlines()) == expected
    assert read_by_then[0] <= 3000
    # A thousand at a time, and so no server is kept from its other work for long.
    assert counted.calls("scan") >= MANY // 2000


def test_stats_say_how_far_they_are(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes a while: meanwhile stderr tells how many there were so far."""
    # Given
    monkeypatch.setattr("celery_idempotent.ops.cli.console._SOON_S", 0.0)
    # When
    done = run("stats", "--exact")
    # Then
    assert done.lines[0]["records"] == MANY
    assert done.err.splitlines()[0].endswith("keys gone through so far ...")
    assert len(done.err.splitlines()) > 10


def test_stats_are_estimated_by_a_sample(run: Commands) -> None:
    """They are near; what is unknown is exact."""
    # Given
    (exact,) = run("stats", "--exact").lines
    # When
    (told,) = run("stats").lines
    # Then
    assert (exact["exact"], told["exact"]) == (True, False)
    assert told["records"] == pytest.approx(exact["records"], rel=0.02)
    assert told["states"]["unknown"] == exact["states"]["unknown"]
    assert told["states"]["succeeded"] == pytest.approx(exact["states"]["succeeded"], rel=0.02)


@pytest.mark.parametrize("command", [["show"], ["why"], ["forget", "--yes"]], ids=" ".join)
def test_what_is_nowhere_is_said_at_once(
    run: Commands, counted: Counted, command: list[str]
) -> None:
    """Only --scan looks for it everywhere."""
    # Given
    nowhere = str(uuid.uuid4())
    # Then
    assert run(*command, nowhere).code == 1
    assert counted.calls("scan") == 0
    assert run(*command, nowhere, "--scan").code == 1
    assert counted.calls("scan") >= MANY // 2000


# --- as Celery's own command ---------------------------------------------------------------------


def command_path(directory: Path) -> str:
    """A PYTHONPATH on which Celery finds the command, whether the library is installed or not."""
    names = {entry.name for entry in entry_points(group="celery.commands")}
    if "idempotency" not in names:
        parser = ConfigParser()
        parser.read(ROOT / "setup.cfg")
        declared = parser["options.entry_points"]["celery.commands"]
        info = directory / "declared" / "celery_idempotent-0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: celery-idempotent\nVersion: 0\n"
        )
        (info / "entry_points.txt").write_text(f"[celery.commands]\n{declared.strip()}\n")
        return f"{ROOT}{os.pathsep}{info.parent}"
    return str(ROOT)


def environment(server: RedisServer, directory: Path) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if name != "NO_COLOR"},
        "TERM": "xterm",
        "PYTHONPATH": command_path(directory),
        SETTINGS_VARIABLE: json.dumps(settings(server, directory)),
    }


def celery(*args: str) -> list[str]:
    return [sys.executable, "-m", "celery", "-A", "tests.support.app", *args]


def at_a_terminal(command: Sequence[str], env: dict[str, str], answer: str = "") -> tuple[int, str]:
    """Run a command at a terminal of its own, where somebody types an answer."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True
    )
    os.close(theirs)
    told = b""
    typed = not answer
    while True:
        ready, _, _ = select.select([ours], [], [], 60)
        assert ready, f"nothing for a minute, after {told!r}"
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not chunk:
            break
        told += chunk
        if not typed and b"[y/N]" in told:
            os.write(ours, answer.encode())
            typed = True
    os.close(ours)
    return process.wait(60), told.decode("utf-8", "replace")


def test_it_is_a_command_of_celerys(large: RedisServer, tmp_path: Path) -> None:
    """Found by its entry point, in a process of its own, writing JSON into a pipe."""
    # When
    done = warm.run(
        celery("idempotency", "list", "--limit", "3")[1:],
        cwd=ROOT,
        env=environment(large, tmp_path),
    )
    # Then
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["task"] for line in done.stdout.splitlines()] == ["shop.charge"] * 3


@pytest.mark.parametrize("kind", ["inspect", "control"])
def test_celery_knows_the_commands_for_workers(
    large: RedisServer, tmp_path: Path, kind: str
) -> None:
    """Whoever types them is told what they do."""
    done = warm.run(celery(kind, "--list")[1:], cwd=ROOT, env=environment(large, tmp_path))
    assert f"  {'idempotency_forget KEY' if kind == 'control' else 'idempotency '}" in done.stdout


def test_a_terminal_gets_a_table_in_colour(large: RedisServer, tmp_path: Path) -> None:
    """Without being asked for; and without colour where that is said."""
    env = environment(large, tmp_path)
    code, told = at_a_terminal(celery("idempotency", "list", "--limit", "3"), env)
    assert code == 0
    assert "STATE" in told
    assert "\x1b[" in told
    _, plain = at_a_terminal(celery("--no-color", "idempotency", "list", "--limit", "3"), env)
    assert "STATE" in plain
    assert "\x1b[" not in plain


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1)])
def test_a_terminal_is_asked_before_a_key_is_freed(
    large: RedisServer, tmp_path: Path, answer: str, code: int
) -> None:
    """And what is not said yes to is not done."""
    # Given
    number = 50_000 + code
    env = environment(large, tmp_path)
    # When
    ended, told = at_a_terminal(celery("idempotency", "forget", f"order:{number}"), env, answer)
    # Then
    assert f"Forget order:{number} of shop.charge" in told
    assert ended == code
    store = RedisStore.from_url(large.url(STORE_DB))
    record = store.get(name_of(number))
    store.close()
    assert record is not None
    assert (record.owner_id is None) == (code == 0)


@pytest.mark.parametrize("command", [["list", "--limit", "3"], ["stats", "--text"]], ids=" ".join)
def test_output_that_nobody_reads_ends_a_command_quietly(
    large: RedisServer, tmp_path: Path, command: list[str]
) -> None:
    """As a shell says it of any program whose reader has gone, ``... | head``; and a full disk."""
    # Given
    ours, theirs = os.pipe()
    os.close(ours)
    with open("/dev/full", "wb") as full:
        ends = []
        # When
        for output in (theirs, full.fileno()):
            done = subprocess.run(
                celery("idempotency", *command),
                cwd=ROOT,
                env=environment(large, tmp_path / str(output)),
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
            )
            ends.append((done.returncode, done.stderr))
    os.close(theirs)
    # Then
    assert ends == [
        (141, ""),
        (1, "Error: could not write the output: No space left on device\n"),
    ]
