"""What runs the graveyard and the comparison: no play lasts for ever, nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner

from benchmarks.compare import run as comparison
from benchmarks.playing import run as playing
from benchmarks.playing.bench import BenchError, PlayedBench
from benchmarks.playing.ledger import Ledger
from benchmarks.playing.process import PROJECT, born, lives
from benchmarks.playing.run import Play, Run
from celery_idempotent.testing.servers import RedisServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

#: A player that waits for ever, and so does its worker; the worker's pid is in a file.
STUCK = """
    import os, subprocess, sys, time
    from pathlib import Path
    from benchmarks.playing.player import end_with_the_run, say

    def wait_in_vain():
        (Path(os.environ["PLAYED_LEDGER"]) / f"{os.getpid()} waits").touch()
        while True:
            time.sleep(0.1)

    if sys.argv[1:] == ["worker"]:
        wait_in_vain()
    directory = Path(os.environ["PLAYED_LEDGER"])
    with open(directory / "worker1.log", "wb") as log:
        command = [sys.executable, __file__, "worker"]
        worker = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    (directory / "pid").write_text(str(worker.pid))
    end_with_the_run(worker.kill)
    say("worker", pid=worker.pid)
    say("begun", name="the first one")
    say("begun", name="the second one")
    say("seen", name="the first one")
    print("about to wait", file=sys.stderr, flush=True)
    {waits}
"""
#: How long a play may take, in seconds: longer than a test does.
LIMIT_S = 60
RUN = """
    import sys
    from pathlib import Path
    from benchmarks.playing.run import Play, Run

    play = Play("stuck", ["stuck"], {"PYTHONPATH": sys.argv[1]}, lambda line: None)
    Run(Path(sys.argv[1])).play_all([play], 1)
"""


def stuck(directory: Path, waits: str = "wait_in_vain()") -> tuple[Play, list[dict[str, Any]]]:
    """A play that does not end by itself, and what it says that it saw."""
    source = textwrap.dedent(STUCK).replace("{waits}", waits)
    (directory / "stuck.py").write_text(source)
    seen: list[dict[str, Any]] = []
    path = os.pathsep.join([str(directory), str(PROJECT)])
    return Play("stuck", ["stuck"], {"PYTHONPATH": path}, seen.append), seen


def run_until(fact: Callable[[], object], directory: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run by whose clock a play has had its time as soon as something holds."""

    def monotonic() -> float:
        return time.monotonic() + (LIMIT_S if fact() else 0)

    monkeypatch.setattr(playing, "time", SimpleNamespace(monotonic=monotonic))
    return Run(directory, limit_s=LIMIT_S)


def test_a_play_that_hangs_is_told_of_and_ended(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names what was played, and shows the logs and where each process stands."""
    # Given
    play, seen = stuck(tmp_path)

    def waits() -> bool:
        return bool(seen) and len([*tmp_path.glob("stuck/* waits")]) == 2

    run = run_until(waits, tmp_path, monkeypatch)
    # When
    wrong = run.play_all([play], 1)
    # Then
    assert wrong["stuck"].startswith("it was ended after 60 s; being played: the second one (for ")
    assert [it["name"] for it in seen] == ["the first one"]
    told = capfd.readouterr().err
    for words in ("the end of driver.log", "about to wait", "stacks in worker1.log"):
        assert words in told
    assert told.count("in wait_in_vain") == 2
    assert not lives(int((tmp_path / "stuck" / "pid").read_text()))


def test_a_play_that_does_not_react_to_anything_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped ends all the same."""
    # Given
    play, seen = stuck(tmp_path, "os.kill(worker.pid, 19); os.kill(os.getpid(), 19)")
    log = tmp_path / "stuck" / "driver.log"
    run = run_until(lambda: seen and "about" in log.read_text(), tmp_path, monkeypatch)
    # When
    wrong = run.play_all([play], 1)
    # Then
    assert "being played: the second one" in wrong["stuck"]
    assert not lives(int((tmp_path / "stuck" / "pid").read_text()))


@pytest.mark.parametrize(("waits", "code"), [("sys.exit(3)", 3), ("raise SystemExit", 0)])
def test_a_play_is_over_when_its_player_ends(tmp_path: Path, waits: str, code: int) -> None:
    """Whatever it leaves behind, even if that keeps its output open; an error is told of."""
    # Given
    left = "left = subprocess.Popen([sys.executable, __file__, 'worker'])"
    play, _ = stuck(tmp_path, f"{left}; (directory / 'left').write_text(str(left.pid)); {waits}")
    # When
    wrong = Run(tmp_path, limit_s=60).play_all([play], 1)
    # Then
    assert ("the player ended with 3" in wrong.get("stuck", "")) is bool(code)
    for name in ("pid", "left"):
        pid = int((tmp_path / "stuck" / name).read_text())
        eventually(lambda pid=pid: not lives(pid), f"{name} is ended")


def test_what_is_played_ends_with_a_run_that_was_killed(tmp_path: Path) -> None:
    """SIGKILL leaves a run no time to end anything: its players see that it is gone."""
    # Given
    stuck(tmp_path)
    command = [sys.executable, "-c", textwrap.dedent(RUN), str(tmp_path)]
    run = subprocess.Popen(command, cwd=PROJECT)
    pid_path = tmp_path / "stuck" / "pid"
    eventually(lambda: pid_path.exists() and pid_path.read_text(), "it is played", timeout=60)
    # When
    run.send_signal(signal.SIGKILL)
    run.wait()
    # Then
    eventually(lambda: not lives(int(pid_path.read_text())), "its worker is ended", timeout=60)


def test_a_process_that_was_not_asked_for_has_ended_all_the_same() -> None:
    """In a container without an init process, orphans stay in the table of processes."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert lives(process.pid)
    assert process.stdin is not None
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{process.pid}").exists()
    assert not lives(process.pid)
    process.wait()
    assert not lives(process.pid)


def test_a_run_that_begins_while_the_ledger_is_read_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bodies write at any moment; a charge without its beginning would be an error."""
    # Given
    ledger = Ledger(tmp_path)
    ids = {"order_id": "1", "run_id": "a"}
    ledger.write("ready")
    read_text = Path.read_text

    def read_while_it_is_written(path: Path) -> str:
        text = read_text(path)
        if path.parent == tmp_path:
            ledger.begin(task_id="t", **ids)
            ledger.write("charge", amount=1, **ids)
            ledger.write("end", **ids)
        return text

    # When
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", read_while_it_is_written)
        begun = ledger.runs()
    # Then
    assert begun == []
    (run,) = ledger.runs("1")
    assert (run.amount, run.pid) == (1, os.getpid())
    assert run.ended is not None


def test_a_body_that_was_killed_is_over_even_if_its_pid_is_used_again(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Else each further answer would be waited for for a minute, for as long as the other lives."""
    # Given: a body that began in a process with our pid, before us
    ledger = Ledger(tmp_path)
    ledger.begin("1", "a", "t")
    book = tmp_path / "ledger.jsonl"
    assert lives(os.getpid(), born(os.getpid()))
    url = redis_server.url().rpartition("/")[0]
    with Bench("", Celery(), ledger, url) as bench:
        assert not bench.is_quiet()
        # When
        book.write_text(book.read_text().replace(born(os.getpid()), "12345"))
        # Then
        assert bench.is_quiet()
    assert not lives(os.getpid(), "12345")


class Bench(PlayedBench):
    """A library that refuses nothing."""

    def refuses(self, error: str, at_the_call: bool) -> bool:
        """Never."""
        return False


@pytest.mark.usefixtures("capsys")
def test_a_worker_that_ended_by_itself_is_not_waited_for(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Nothing would ever come: it is an error at once, which names the worker."""
    url = redis_server.url().rpartition("/")[0]
    with Bench("no.such.module", Celery(), Ledger(tmp_path), url) as bench:
        with pytest.raises(BenchError, match=r"ended by itself with 2; see worker1\.log"):
            bench.start_worker(1)
        with pytest.raises(BenchError, match="ended by itself"):
            bench.answers()
    assert "no.such.module" in (tmp_path / "worker1.log").read_text()


def test_logs_of_an_earlier_run_are_not_mixed_with_others(tmp_path: Path) -> None:
    """Nothing is played, and nothing is overwritten."""
    (tmp_path / "idempotent").mkdir()
    done = CliRunner().invoke(comparison.main, ["idempotent", "--logs", str(tmp_path)])
    assert done.exit_code == 2
    assert "name a directory that is" in done.output


def test_the_comparison_is_written_again_from_what_was_kept(tmp_path: Path) -> None:
    """The page is what is made of the results beside it."""
    kept = PROJECT / "docs" / "comparison-results.json"
    written = tmp_path / "written"
    command = ["--render", str(kept), "--rst", str(written), "--json", str(tmp_path / "again")]
    done = CliRunner().invoke(comparison.main, command)
    assert done.exit_code == 0, done.output
    assert written.read_text() == (kept.parent / "comparison-results.inc").read_text()
    assert (tmp_path / "again").read_text() == kept.read_text()
