"""Every example in README and documentation does what is said of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_idempotent.testing.servers import RedisServer
from tests.support.printed import END, samples
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
#: Together they are the quick start: they need a broker and a worker.
QUICK_START = ("shop.py", "calls.py", "mismatch.py")
EAGER = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name not in QUICK_START)
PRINTED = {sample.name: sample.text for sample in samples() if sample.name in EAGER}


def has_checks(script: str) -> bool:
    """Whether a file goes on after what is printed of it."""
    return END in (EXAMPLES / script).read_text(encoding="utf-8")


def run(script: str, directory: Path, *how: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a reader would, from the folder that it is in."""
    return subprocess.run(
        [sys.executable, *how, script],
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


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
    how = ["-m", "pytest", "-q", "-p", "no:cacheprovider"] if "def test_" in text else []
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


@pytest.fixture
def shop(redis_server: RedisServer, tmp_path: Path) -> Iterator[Path]:
    """The quick start in a folder, on a private server, with its worker running."""
    for name in QUICK_START:
        put(name, (EXAMPLES / name).read_text(encoding="utf-8"), tmp_path, redis_server)
    log_path = tmp_path / "worker.log"
    with open(log_path, "wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "shop", "worker", "-c", "2", "-l", "INFO"],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        eventually(
            lambda: b" ready." in log_path.read_bytes() or worker.poll() is not None,
            "the worker is ready",
            timeout=60,
        )
        assert worker.poll() is None, log_path.read_text()
        yield tmp_path
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def test_the_quick_start_works(shop: Path) -> None:
    """Its calls are answered as it says, and the same key for something else is refused."""
    # When
    calls, mismatch = run("calls.py", shop), run("mismatch.py", shop)
    # Then
    assert calls.returncode == 0, calls.stderr + (shop / "worker.log").read_text()
    assert mismatch.returncode == 0, mismatch.stderr
    assert "order:42 was used before" in mismatch.stdout
    # And the calls that were not refused made two charges, as the comments say
    log = (shop / "worker.log").read_text()
    assert log.count("outcome='deduplicated'") == 3  # two in calls.py, one in mismatch.py


def test_a_duplicate_can_be_seen_from_another_terminal(shop: Path) -> None:
    """The commands of the README name the keys, and the duplicates of one."""
    # Given
    assert run("calls.py", shop).returncode == 0
    # When
    commands = ("-m", "celery", "-A", "shop", "idempotency")
    listed = run("list", shop, *commands)
    # Then
    assert {json.loads(line)["key"] for line in listed.stdout.splitlines()} == {
        "order:42",
        "req-7f3a",
    }

    def duplicates() -> list[str]:
        shown = run("order:42", shop, *commands, "show")
        found: list[str] = json.loads(shown.stdout)["duplicates"]
        return found

    # And what workers add to the journal, a moment later
    eventually(lambda: len(duplicates()) == 1, "the duplicate is in the journal", timeout=60)
