"""The samples for who comes from another library: before and after, and both at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_idempotent.testing.servers import RedisServer
from tests.support import warm
from tests.support.ledger import Ledger
from tests.support.waiting import eventually
from tests.support.workers import Worker

pytestmark = [pytest.mark.system, pytest.mark.long(60)]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"

#: What a worker of a sample imports: the sample, whose slow part waits for the test.
GATED = """
import sys
from celery.signals import worker_ready
from tests.support.ledger import Ledger
import {name} as sample

app, ledger, part = sample.app, Ledger({ledger!r}), {part!r}
{more}


def slow(what):
    ledger.write("start")
    ledger.hold("go")
    return done(what)


if part:
    done = getattr(sample, part)
    setattr(sample, part, slow)


@worker_ready.connect
def ready(sender, **_):
    ledger.write("ready", node=sender.hostname)
"""


class Sample:
    """A sample in a folder and on a server of its own, with a worker where a test starts one."""

    def __init__(self, name: str, folder: Path, part: str = "", more: str = "") -> None:
        self.server = RedisServer()
        self.server.start()
        self.folder = folder / name
        self.folder.mkdir()
        self.ledger = Ledger(self.folder / "ledger")
        text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        address = self.server.url().rpartition("/")[0]
        (self.folder / f"{name}.py").write_text(text.replace("redis://localhost:6379", address))
        gated = GATED.format(name=name, ledger=str(self.ledger.path), part=part, more=more)
        (self.folder / "gated.py").write_text(gated)
        self._worker: Worker | None = None

    def do(self, code: str) -> Any:
        """Run code in a process of its own, as a caller would; what it says is ``answer``."""
        before = (
            "import json\nfrom gated import app, sample\nfrom celery.result import AsyncResult\n"
        )
        after = "\nprint(json.dumps(answer))"
        script = self.folder / "call.py"
        script.write_text(before + code + after, encoding="utf-8")
        path = f"{ROOT}{os.pathsep}{self.folder}"
        done = warm.run([str(script)], cwd=self.folder, env={**os.environ, "PYTHONPATH": path})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def press(self, user: str) -> str:
        """Press the button of customer 7."""
        answer: str = self.do(f"answer = sample.button_pressed(7, {user!r})")
        return answer

    def get(self, task_id: str) -> Any:
        """The answer of a call; an exception by its name."""
        return self.do(
            f"answer = AsyncResult({task_id!r}, app=app).get(timeout=60, propagate=False)\n"
            "answer = type(answer).__name__ if isinstance(answer, Exception) else answer"
        )

    def start_worker(self) -> None:
        """Start a worker, and return once it takes messages."""
        path = f"{ROOT}{os.pathsep}{self.folder}"
        self._worker = Worker(
            {"test_ledger": str(self.ledger.path)},
            app="gated",
            root=self.folder,
            concurrency=2,
            environment={"PYTHONPATH": path},
        ).wait_until_ready()

    @property
    def log(self) -> str:
        """What the worker has logged."""
        assert self._worker is not None
        return self._worker.log

    def results(self) -> int:
        """How many calls have a result of their own."""
        with redis.Redis.from_url(self.server.url(1)) as client:
            return len(list(client.scan_iter("celery-task-meta-*")))

    def close(self) -> None:
        """End it all."""
        if self._worker is not None:
            self._worker.kill()
        self.server.stop()


@pytest.fixture
def make_sample(tmp_path: Path) -> Iterator[Any]:
    made: list[Sample] = []

    def make(name: str, **options: Any) -> Sample:
        made.append(Sample(name, tmp_path, **options))
        return made[-1]

    yield make
    for sample in made:
        sample.close()


@pytest.mark.parametrize(
    ("library", "duplicate", "later"),
    [
        ("once", "it is being built", "new"),
        ("singleton", "first", "new"),
        ("heimdall", "first", "first"),
    ],
)
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_button_does_the_same_before_and_after(
    make_sample: Any, library: str, side: str, duplicate: str, later: str
) -> None:
    """Pressed twice while its call is queued, and once more when it has run."""
    # Given
    sample = make_sample(f"{library}_{side}")
    # When
    first, second = sample.press("ann"), sample.press("bob")
    sample.start_worker()
    answer = sample.get(first)
    third = sample.press("cid")
    # Then
    assert second == (first if duplicate == "first" else duplicate)
    assert answer == "the report of customer 7"
    assert (third == first) == (later == "first")
    if later == "new":
        assert sample.get(third) == answer
    assert sample.results() == (1 if later == "first" else 2)


@pytest.mark.parametrize(("side", "skipped"), [("before", None), ("after", "TaskRevokedError")])
def test_a_call_is_skipped_while_another_runs(make_sample: Any, side: str, skipped: Any) -> None:
    """With a lock of one's own it ends as if it had run; with "drop" it says that it did not."""
    # Given
    sample = make_sample(f"lock_{side}", part="fetch")
    sample.start_worker()
    call = "answer = sample.import_feed.delay('news').id"
    # When
    first = sample.do(call)
    sample.ledger.wait_for("start")
    second = sample.do(call)
    # Then
    assert sample.get(second) == skipped
    sample.ledger.open("go")
    assert sample.get(first) == "the articles of news"
    # And the next one runs
    assert sample.get(sample.do(call)) == "the articles of news"
    assert sample.ledger.count("start") == 2


@pytest.mark.parametrize("mode", ["shadow", "enforce"])
@pytest.mark.parametrize(
    ("library", "arguments"), [("once", "7, 'ann'"), ("heimdall", "7,")], ids=["once", "heimdall"]
)
def test_both_at_once(make_sample: Any, library: str, arguments: str, mode: str) -> None:
    """The lock stops what is enqueued; what comes past it is reported, or answered if enforced."""
    # Given
    more = f"app.conf.idempotency_mode = {mode!r}"
    sample = make_sample(f"both_{library}", part="build", more=more)
    sample.start_worker()
    call = (
        "try:\n"
        f"    answer = sample.build_report.delay({arguments}).id\n"
        "except Exception as error:\n"
        "    answer = type(error).__name__"
    )
    first = sample.do(call)
    sample.ledger.wait_for("start")
    # When
    stopped = sample.do(call)
    past = sample.do(f"answer = app.send_task('both_{library}.build_report', ({arguments})).id")
    if mode == "shadow":
        sample.ledger.wait_for("start", 2)
    else:
        eventually(lambda: "is busy, waiting" in sample.log, "it waits")
    sample.ledger.open("go")
    # Then
    assert stopped in ("AlreadyQueued", first)
    assert sample.get(first) == sample.get(past) == "the report of customer 7"
    assert sample.ledger.count("start") == (2 if mode == "shadow" else 1)
    assert ("shadow" in sample.log) == (mode == "shadow")

    # And the lock was given back
    def runs_again() -> bool:
        again = sample.do(call)
        return again not in ("AlreadyQueued", first)

    eventually(runs_again, "the next call is published")
