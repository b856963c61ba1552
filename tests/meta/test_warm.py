"""A process of the tests that starts warm is like one that starts cold."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support import warm

pytestmark = pytest.mark.system

FACTS = """
import json, os, signal, sys, threading, time
facts = {
    "argv": sys.argv,
    "path": sys.path,
    "folder": os.getcwd(),
    "name": __name__,
    "main": sys.modules["__main__"].__dict__ is globals(),
    "variable": os.environ.get("OF_THIS_TEST"),
    "variables": len([name for name in os.environ if name.startswith("OF_")]),
    "leads its session": os.getsid(0) == os.getpid(),
    "zone": time.tzname,
    "files": sorted(os.listdir("/proc/self/fd")),
    "threads": threading.active_count(),
    "signals": [str(signal.getsignal(one)) for one in (2, 13, 15, 17)],
    "tested": sorted(name for name in sys.modules if name.startswith(("celery_id", "tests"))),
}
print(json.dumps(facts))
if "raise" in sys.argv:
    raise ValueError("as it was told")
sys.exit(3)
"""


def facts_of(args: list[str], directory: Path, *, cold: bool) -> tuple[Any, str, int]:
    given = {"OF_THIS_TEST": "set", "TZ": "JST-9", "PYTHONPATH": str(directory / "named")}
    env = {**os.environ, **given}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = warm.start(args, cwd=directory, env=env, stdout=out, stderr=err, cold=cold)
        code = process.wait(30)
        out.seek(0)
        err.seek(0)
        return json.loads(out.read()), err.read().decode().strip().rpartition("\n")[2], code


#: The variables of the program that the process began as.
STARTED_WITH = "print(open('/proc/self/environ').read().replace(chr(0), chr(10)))"


def started_with(args: list[str], directory: Path, environment: dict[str, str]) -> list[str]:
    done = warm.run(args, cwd=directory, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "how", [["-m", "facts"], ["facts.py"], ["facts.py", "raise"]], ids=" ".join
)
def test_it_is_as_if_it_were_a_new_interpreter(how: list[str], tmp_path: Path) -> None:
    """Arguments, paths, files, signals, the exit code, and nothing imported of what is tested."""
    # Given
    (tmp_path / "facts.py").write_text(FACTS)
    # When
    warm_facts, cold_facts = (facts_of(how, tmp_path, cold=cold) for cold in (False, True))
    # Then
    assert warm_facts == cold_facts
    assert cold_facts[2] == (1 if "raise" in how else 3)


@pytest.mark.parametrize(
    "variable",
    ["LD_PRELOAD=/no/such.so", "PYTHONHASHSEED=4711", "MALLOC_ARENA_MAX=1", "LC_ALL=C"],
)
def test_what_is_read_while_an_interpreter_starts_starts_a_new_one(
    variable: str, tmp_path: Path
) -> None:
    """The linker, libc and Python look at these variables once; others are set in a warm one."""
    # Given
    (tmp_path / "started.py").write_text(STARTED_WITH)
    name, _, value = variable.partition("=")
    # Then
    assert variable in started_with(["started.py"], tmp_path, {name: value})
    assert "OF_THIS_TEST=set" not in started_with(["started.py"], tmp_path, {"OF_THIS_TEST": "set"})


def test_a_variable_that_is_taken_away_starts_a_new_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warm process has it, since it was there when the run began."""
    # Given
    (tmp_path / "started.py").write_text(STARTED_WITH)
    here = {**warm._ENVIRONMENT, "PYTHONUTF8": "1"}
    monkeypatch.setattr(warm, "_ENVIRONMENT", here)
    # Then
    assert "OF_THIS_TEST=set" in started_with(["started.py"], tmp_path, {"OF_THIS_TEST": "set"})


def test_an_option_of_python_starts_a_new_interpreter(tmp_path: Path) -> None:
    """A program on the command line is no file."""
    environment = {"OF_THIS_TEST": "set"}
    assert "OF_THIS_TEST=set" in started_with(["-c", STARTED_WITH], tmp_path, environment)


def test_it_can_be_killed(tmp_path: Path) -> None:
    """The one who started it is told of the end by a signal, as of one that was its own child."""
    # Given
    (tmp_path / "waits.py").write_text("import time\ntime.sleep(600)")
    with tempfile.TemporaryFile() as out:
        process = warm.start(["waits.py"], cwd=tmp_path, env=dict(os.environ), stdout=out)
        assert process.poll() is None
        # When
        process.kill()
        # Then
        assert process.wait(30) == -signal.SIGKILL
        assert process.poll() == -signal.SIGKILL
