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
import json, os, signal, sys, threading
facts = {
    "argv": sys.argv,
    "path": sys.path,
    "folder": os.getcwd(),
    "name": __name__,
    "main": sys.modules["__main__"].__dict__ is globals(),
    "variable": os.environ.get("OF_THIS_TEST"),
    "variables": len([name for name in os.environ if name.startswith("OF_")]),
    "leads its session": os.getsid(0) == os.getpid(),
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
    env = {**os.environ, "OF_THIS_TEST": "set", "PYTHONPATH": str(directory / "named")}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = warm.start(args, cwd=directory, env=env, stdout=out, stderr=err, cold=cold)
        code = process.wait(30)
        out.seek(0)
        err.seek(0)
        return json.loads(out.read()), err.read().decode().strip().rpartition("\n")[2], code


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
