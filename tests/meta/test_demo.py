"""The demo, run as a user runs it: its faults take place, and it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.demo.acts import ACTS
from examples.demo.ledger import Entry, Ledger
from examples.demo.scene import LABELS
from examples.demo.stage import PLAIN, SIDES
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
BY_NAME = {act.name: act for act in ACTS}

#: Set by a developer or by CI, they would decide what a test here is about.
_COLOUR_VARIABLES = {"FORCE_COLOR", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES"}

pytestmark = [pytest.mark.system, pytest.mark.long(10)]


@dataclass
class Demo:
    """A demo that runs, or ran, with a directory of its own for all that it leaves."""

    process: subprocess.Popen[str]
    temporary: Path

    @property
    def directory(self) -> Path:
        """Where its ledger and its logs are."""
        (found,) = self.temporary.glob("celery-idempotent-demo-*")
        return found

    def lines(self) -> list[Entry]:
        """Its ledger, empty before there is one."""
        found = list(self.temporary.glob("*/ledger.jsonl"))
        return Ledger(found[0]).entries() if found else []

    def seen(self, event: str) -> list[Entry]:
        return [entry for entry in self.lines() if entry.event == event]


def start(
    temporary: Path,
    *arguments: str,
    program: str | None = None,
    stdout: int = subprocess.PIPE,
    environment: dict[str, str] | None = None,
) -> Demo:
    how = ["-c", program] if program else ["-m", "examples.demo"]
    inherited = {key: value for key, value in os.environ.items() if key not in _COLOUR_VARIABLES}
    environment = {
        **inherited,
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(temporary),
        # Whoever has these set must not find the demo's charges in a queue of theirs.
        "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
        "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/1",
        **(environment or {}),
    }
    process = subprocess.Popen(
        [sys.executable, *how, *arguments],
        cwd=temporary,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )
    return Demo(process, temporary)


@dataclass(frozen=True)
class Run:
    """What a demo left when it had ended."""

    code: int
    out: str
    err: str
    entries: tuple[Entry, ...]

    def of(self, side: str, event: str, act: str = "") -> list[Entry]:
        return [
            entry
            for entry in self.entries
            if entry.side == side and entry.event == event and entry.order.startswith(act)
        ]


def finished(demo: Demo) -> Run:
    out, err = demo.process.communicate(timeout=200)
    return Run(demo.process.returncode, out, err, tuple(demo.lines()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of all acts, as `make demo` does it, its ledger kept."""
    return finished(start(tmp_path_factory.mktemp("whole"), "--keep"))


def test_every_promise_holds(whole: Run) -> None:
    """All acts, played on real workers, end with exit code 0 and without a broken promise."""
    assert whole.code == 0, whole.err + whole.out
    assert whole.out.count("held") >= len(ACTS)
    assert "BROKEN" not in whole.out


def test_progress_is_told_in_plain_lines(whole: Run) -> None:
    """Where stdout is no terminal, each act and what each side does is a line with its time."""
    for act in ACTS:
        assert re.search(rf"^ *[\d.]+s  {re.escape(act.title)}\. ", whole.out, re.MULTILINE)
    assert re.search(r"^ *[\d.]+s  plain Celery: ten equal calls$", whole.out, re.MULTILINE)


@pytest.mark.parametrize("side", SIDES)
def test_the_table_says_what_the_ledger_says(whole: Run, side: str) -> None:
    """The charges in the table are the ledger's lines, act by act, for both sides."""
    # Given
    in_ledger = [len(whole.of(side, "charged", f"{act.name}-")) for act in ACTS]
    # When
    rows = re.findall(rf"{LABELS[side]} +(\d+) +(\d+) +(\d+) +(\d+)", whole.out)
    # Then
    assert [int(charges) for _, charges, _, _ in rows] == in_ledger
    assert all(calls == answered for calls, _, answered, _ in rows)


def test_plain_celery_charges_once_a_call_and_once_a_redelivery(whole: Run) -> None:
    """What the reader compares with: without the guard the same faults charge again."""
    charges = {act.name: len(whole.of(PLAIN, "charged", f"{act.name}-")) for act in ACTS}
    assert charges == {
        "at-once": 10,
        "later": 2,
        "back-off": 6,
        "kill": 2,
        "overrun": 2,
        "chord": 4,
        "cut": 6,
    }


@pytest.mark.parametrize("side", SIDES)
def test_the_kill_hits_in_mid_charge_and_is_redelivered(whole: Run, side: str) -> None:
    """The killed worker had begun to charge and had not charged; its message came again."""
    # Given
    killed = whole.of(side, "killed")[0]
    # When
    victim = next(e for e in whole.of(side, "began", "kill-") if e.worker == killed.worker)
    # Then
    deliveries = [e for e in whole.of(side, "delivered") if e.task_id == victim.task_id]
    assert not [e for e in whole.of(side, "charged", "kill-") if e.worker == killed.worker]
    assert len(deliveries) >= 2
    assert not deliveries[0].redelivered
    assert any(entry.redelivered for entry in deliveries[1:])


@pytest.mark.parametrize("side", SIDES)
def test_the_overrun_is_redelivered_while_it_runs(whole: Run, side: str) -> None:
    """The second delivery came before the first one's charge."""
    # Given
    first = whole.of(side, "began", "overrun-")[0]
    charge = next(e for e in whole.of(side, "charged", "overrun-") if e.pid == first.pid)
    # When
    again = next(
        e for e in whole.of(side, "delivered") if e.task_id == first.task_id and e.redelivered
    )
    # Then
    entries = list(whole.entries)
    assert entries.index(first) < entries.index(again) < entries.index(charge)


@pytest.mark.parametrize("side", SIDES)
def test_the_cut_hits_when_the_money_has_moved(whole: Run, side: str) -> None:
    """The first attempt of each order had moved the money in a worker that was then killed."""
    # Given
    killed = {entry.worker for entry in whole.of(side, "killed")}
    moved = whole.of(side, "moved", "cut-")
    # Then
    assert len(moved) == 6
    for order in {entry.order for entry in moved}:
        first, second = (entry for entry in moved if entry.order == order)
        assert first.worker in killed
        assert second.worker != first.worker
        assert second.task_id == first.task_id


def test_a_broken_promise_ends_it_with_1(tmp_path: Path) -> None:
    """With the guard off a promise breaks: exit code 1, which one, and where the logs are."""
    # When
    demo = start(tmp_path, "--act", "later", "--unguarded")
    run = finished(demo)
    # Then
    assert run.code == 1, run.err + run.out
    assert BY_NAME["later"].title in run.err
    assert "each order is charged once" in run.err
    assert "BROKEN" in run.out
    assert str(demo.directory) in run.err
    assert {path.name for path in demo.directory.glob("*.log")} >= {"plain-1.log"}


@dataclass(frozen=True)
class Screen:
    """What a demo left that was played at a terminal."""

    no_color: bool
    code: int
    err: str
    shown: bytes
    #: The files that are there after it.
    files: tuple[Path, ...]


@pytest.fixture(scope="module", params=[False, True], ids=["colour", "no colour"])
def screen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Screen:
    """One act, played at a terminal."""
    directory = tmp_path_factory.mktemp("terminal")
    ours, theirs = pty.openpty()
    environment = {"TERM": "xterm", **({"NO_COLOR": "1"} if request.param else {})}
    demo = start(directory, "--act", "later", stdout=theirs, environment=environment)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    _, err = demo.process.communicate(timeout=60)
    files = tuple(directory.iterdir())
    return Screen(request.param, demo.process.returncode, err, shown, files)


def test_it_leaves_no_files_unless_asked(screen: Screen) -> None:
    """Where every promise held, the ledger and the logs are removed."""
    assert screen.code == 0, screen.err
    assert screen.files == ()


def test_a_terminal_sees_it_move(screen: Screen) -> None:
    """On a terminal the table is drawn anew while it fills, in colour unless NO_COLOR is set."""
    assert screen.code == 0, screen.err
    assert screen.shown.count(b"What happens") > 2
    assert b"\x1b[1A" in screen.shown
    assert (b"\x1b[1;32mheld" in screen.shown) is not screen.no_color


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Demo]:
    """A demo in the middle of its longest act, ended after the test whatever happens."""
    demo = start(tmp_path, "--act", "overrun", "--keep")
    try:
        eventually(lambda: len(demo.seen("began")) == 2 or demo.process.poll() is not None)
        yield demo
    finally:
        if demo.process.poll() is None:
            demo.process.terminate()
        demo.process.communicate(timeout=30)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_all_that_it_started(running: Demo, number: int, code: int) -> None:
    """Ctrl-C, or SIGTERM, ends workers, pool children and server, and says so by its exit code."""
    # Given
    workers = {entry.pid for entry in running.seen("ready")}
    children = {entry.pid for entry in running.seen("began")}
    log = (running.directory / "plain-1.log").read_text()
    port = re.search(r"127\.0\.0\.1:(\d+)/0", log)
    assert port is not None, log
    # When
    running.process.send_signal(number)
    # Then
    assert running.process.wait(timeout=30) == code
    assert len(workers) == 5
    eventually(lambda: not any(alive(pid) for pid in workers | children), "all processes gone")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(port[1]))) != 0


def alive(pid: int) -> bool:
    """Whether the process runs; a dead one that nobody has collected yet doesn't."""
    done = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return bool(done.stdout.strip()) and not done.stdout.strip().startswith("Z")


def test_list_says_the_acts_and_their_promises(tmp_path: Path) -> None:
    """--list names every act and what must hold in it, and starts nothing."""
    # When
    run = finished(start(tmp_path, "--list"))
    # Then
    assert run.code == 0
    for act in ACTS:
        assert f"{act.name}: {act.told}" in run.out
        assert all(promise.says in run.out for promise in act.promises)
    assert not list(tmp_path.iterdir())


def test_an_act_that_is_none_is_refused(tmp_path: Path) -> None:
    """--act takes the names of the acts only, and says which these are."""
    # When
    run = finished(start(tmp_path, "--act", "encore"))
    # Then
    assert run.code == 2
    assert "back-off" in run.err


def test_without_rich_the_error_names_the_extra(tmp_path: Path) -> None:
    """Where the table's library is missing, the message says which extra brings it."""
    # Given
    program = (
        "import runpy, sys; sys.modules['rich'] = None;"
        "runpy.run_module('examples.demo', run_name='__main__')"
    )
    # When
    run = finished(start(tmp_path, program=program))
    # Then
    assert run.code == 1
    assert "celery-idempotent[demo]" in run.err
    assert "Traceback" not in run.err
