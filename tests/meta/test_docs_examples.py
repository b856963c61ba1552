"""Every example in README and documentation does what is said of it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from celery_idempotent.testing.servers import RedisServer
from tests.support import warm
from tests.support.printed import END, samples, steps_of_the_readme
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
#: Together they are the quick start: they need a broker and a worker.
QUICK_START = ("shop.py", "calls.py", "mismatch.py")
EAGER = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name not in QUICK_START)
PRINTED = {sample.name: sample.text for sample in samples() if sample.name in EAGER}


#: Without the plugin of Hypothesis, which is ours: it takes longer to import than most samples run.
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest")


def has_checks(script: str) -> bool:
    """Whether a file goes on after what is printed of it."""
    return END in (EXAMPLES / script).read_text(encoding="utf-8")


def _is_tests(text: str) -> bool:
    return "def test_" in text or "\nclass Test" in text


def run(script: str, directory: Path, *how: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a reader would, from the folder that it is in."""
    return warm.run([*how, script], cwd=directory, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def put(script: str, text: str, directory: Path, server: RedisServer) -> None:
    """Save a sample, with a private server in place of the one on localhost."""
    address = server.url().rpartition("/")[0]
    (directory / script).write_text(text.replace("redis://localhost:6379", address))


@pytest.mark.parametrize("script", EAGER)
def test_a_sample_runs_as_printed(script: str, redis_server: RedisServer, tmp_path: Path) -> None:
    """Pasted into an empty folder it runs, and what it asserts holds."""
    # Given
    text = PRINTED[script]
    put(script, text, tmp_path, redis_server)
    # When
    how = PYTEST if _is_tests(text) else ()
    done = run(script, tmp_path, *how)
    # Then
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", [name for name in EAGER if has_checks(name)])
def test_an_example_does_what_it_says(
    script: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Followed by the checks that are not printed it runs, too."""
    # Given
    put(script, (EXAMPLES / script).read_text(encoding="utf-8"), tmp_path, redis_server)
    # When
    done = run(script, tmp_path)
    # Then
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_not_encrypted_is_found_in_the_store(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """The checks of the encrypted sample can fail: with JSON they read results in the store."""
    # Given
    text = (EXAMPLES / "encrypted.py").read_text(encoding="utf-8")
    plain = text.replace('_serializer="encrypted"', '_serializer="json"')
    plain = plain.replace('_content=["encrypted"]', '_content=["json"]')
    put("plain.py", plain, tmp_path, redis_server)
    # When
    done = run("plain.py", tmp_path)
    # Then
    assert done.returncode == 1
    assert "AssertionError: (['Ann', 'Miller'" in done.stderr or "'finding'" in done.stderr


def test_the_readme_can_be_followed(redis_server: RedisServer, tmp_path: Path) -> None:
    """From its top to its end in an empty folder: each file is saved, each command is typed."""
    # Given
    programs = str(Path(sys.executable).parent)
    env = {**environment(), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    written: dict[str, str] = {}
    workers: list[subprocess.Popen[bytes]] = []
    log_path = tmp_path / "worker.log"
    # When
    try:
        for name, text in steps_of_the_readme():
            if name:
                put(name, text, tmp_path, redis_server)
            elif text == "pip install .":
                pass  # it is what the tests themselves were installed by
            elif " worker " in text:
                workers.append(worker_of(text, tmp_path, env, log_path))
            else:
                written[text] = typed(text, tmp_path, env)

        def duplicates() -> list[str]:
            shown = typed("celery -A shop idempotency show order:42", tmp_path, env)
            found: list[str] = json.loads(shown)["duplicates"]
            return found

        # Then
        listed = written["celery -A shop idempotency list"].splitlines()
        assert {json.loads(line)["key"] for line in listed} == {"order:42", "req-7f3a"}
        assert "order:42 was used before" in written["python mismatch.py"]
        assert "1 passed" in written["pytest test_mail.py"]
        # And what was not refused made two charges, as the comments say
        log = log_path.read_text()
        assert log.count("outcome='deduplicated'") == 3  # two in calls.py, one in mismatch.py
        # And what workers add to the journal, a moment later
        eventually(lambda: len(duplicates()) == 2, "the duplicates are in the journal", timeout=60)
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def typed(command: str, directory: Path, env: dict[str, str]) -> str:
    """Type a command; what it writes."""
    done = subprocess.run(
        shlex.split(command),
        cwd=directory,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def worker_of(
    command: str, directory: Path, env: dict[str, str], log_path: Path
) -> subprocess.Popen[bytes]:
    """Start a worker as it is typed, and wait until it is ready."""
    with open(log_path, "wb") as log:
        worker = subprocess.Popen(
            shlex.split(command),
            cwd=directory,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    eventually(
        lambda: b" ready." in log_path.read_bytes() or worker.poll() is not None,
        "the worker is ready",
        timeout=60,
    )
    assert worker.poll() is None, log_path.read_text()
    return worker
