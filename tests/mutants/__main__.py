"""Takes each guard out of a copy of the project, and has the tests notice: `make mutants`."""

from __future__ import annotations

import argparse
import itertools
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Mutant, SourceChanged, Stages
from tests.support import warm

ROOT = Path(__file__).parents[2]
COPIED = ("celery_idempotent", "tests", "benchmarks", "setup.cfg", "setup.py", "pyproject.toml")
#: One test run of a mutant; a guard may be all that kept the tests from waiting for ever.
LIMIT_S = 240


#: What pytest says in the end; a test's log may have lines that begin as these do.
_FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/\S+?\.py::.+?)(?: - .*)?$", re.MULTILINE)


@dataclass
class Result:
    """What became of one mutant."""

    outcome: str  # "noticed", "SURVIVED", "ERROR"
    by: str = ""
    output: str = ""
    took_s: float = 0.0


class Copy:
    """A copy of the project, for one mutant at a time."""

    _changes = itertools.count(1)

    def __init__(self, directory: Path) -> None:
        self.tree = directory
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
                shutil.copytree(source, self.tree / name, ignore=ignored)
            else:
                shutil.copy(source, self.tree / name)

    def test(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run tests in the copy, until one fails."""
        # Compiled files are kept in the copy: most of a short test run would be compiling.
        environment = {**os.environ, "PYTHONPATH": str(self.tree), "PYTHONDONTWRITEBYTECODE": ""}
        command = [
            *("-m", "pytest", "-x", "-q", "-rf", "--tb=short", "--timeout=60"),
            *("-p", "no:cacheprovider", "--hypothesis-seed=1", *arguments),
        ]
        return warm.run(command, cwd=self.tree, env=environment, timeout=LIMIT_S)

    def examine(self, mutant: Mutant) -> Result:
        """Take the guard out, run its tests, and put it back."""
        path = self.tree / "celery_idempotent" / mutant.path
        source = path.read_text()
        began = time.monotonic()
        try:
            mutant.apply(self.tree)
            self.has_changed(path)
            result = self._judge(mutant.stages)
        except SourceChanged as exc:
            result = Result("ERROR", output=str(exc))
        finally:
            path.write_text(source)
            self.has_changed(path)
        result.took_s = time.monotonic() - began
        return result

    def has_changed(self, path: Path) -> None:
        """Give a file a time that it never had: by its whole seconds a compiled file is known."""
        changed_at = int(time.time()) + next(self._changes)
        os.utime(path, (changed_at, changed_at))

    def _judge(self, stages: Stages) -> Result:
        for arguments in stages:
            try:
                run = self.test(arguments)
            except subprocess.TimeoutExpired:
                return Result("noticed", f"{arguments[0]} took longer than {LIMIT_S} s")
            if run.returncode == 1:
                failed = _FAILED.search(run.stdout)
                return Result("noticed", failed[1] if failed else "?")
            if run.returncode != 0:
                return Result("ERROR", output=run.stdout[-2000:])
        return Result("SURVIVED")


def control(copies: Sequence[Copy], stages: set[tuple[str, ...]]) -> bool:
    """Run the tests with every guard in its place: they have to pass, or failing shows nothing."""
    good = True
    waiting: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for copy in copies:
        waiting.put(copy)

    def run(arguments: tuple[str, ...]) -> None:
        nonlocal good
        copy = waiting.get()
        try:
            done = copy.test(arguments)
        finally:
            waiting.put(copy)
        last = done.stdout.strip().rpartition("\n")[2]
        print(f"  control: {' '.join(arguments)}: {last}", flush=True)
        if done.returncode:
            print(done.stdout[-3000:])
            good = False

    with ThreadPoolExecutor(len(copies)) as pool:
        list(pool.map(run, sorted(stages)))
    return good


def _work(
    copy: Copy, waiting: queue.SimpleQueue[Mutant], done: dict[Mutant, Result], of: int
) -> None:
    while True:
        try:
            mutant = waiting.get_nowait()
        except queue.Empty:
            return
        result = done[mutant] = copy.examine(mutant)
        print(
            f"  {len(done):3}/{of}: {result.outcome:8} {result.took_s:5.1f} s  "
            f"{mutant.language:6}  {mutant.guard}",
            flush=True,
        )


def table(done: dict[Mutant, Result], mutants: Sequence[Mutant]) -> None:
    """Print which guard was noticed by which test."""
    width = max(len(mutant.guard) for mutant in mutants)
    print()
    for mutant in mutants:
        result = done[mutant]
        by = result.by.replace("tests/", "", 1)
        print(f"{mutant.guard:{width}}  {mutant.language:6}  {result.outcome:8}  {by}")


def main() -> int:
    """Examine the mutants; the exit code is 1 where one survives, or can't be examined."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("-k", dest="part", default="", help="only guards whose name has this in it")
    parser.add_argument("-j", dest="jobs", type=int, default=2, help="how many at once")
    options = parser.parse_args()
    mutants = [
        mutant
        for mutant in MUTANTS
        if options.part in f"{mutant.guard} {mutant.path} {mutant.language}"
    ]
    if not mutants:
        parser.error(f"no guard has {options.part!r} in its name")
    began = time.monotonic()
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in mutants:
        waiting.put(mutant)
    done: dict[Mutant, Result] = {}
    with tempfile.TemporaryDirectory(prefix="idempotent-mutants-") as directory:
        copies = [Copy(Path(directory, str(number))) for number in range(options.jobs)]
        if not control(copies, {stage for mutant in mutants for stage in mutant.stages}):
            print("the tests fail with every guard in its place: nothing can be shown")
            return 1
        threads = [
            threading.Thread(target=_work, args=(copy, waiting, done, len(mutants)), daemon=True)
            for copy in copies
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    table(done, mutants)
    bad = [mutant for mutant in mutants if done[mutant].outcome != "noticed"]
    for mutant in bad:
        print(f"\n{mutant.guard} ({mutant.path}): {done[mutant].outcome}\n{done[mutant].output}")
    print(f"\n{len(mutants)} guards, {len(bad)} not noticed, {time.monotonic() - began:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
