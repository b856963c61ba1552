"""Type checkers know a task's parameters, its result and the option for a key, with celery-types.

Celery itself has no types; without that package a task is of any type, as ``make types`` checks it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.ecosystem.environments import python_of

pytestmark = [pytest.mark.system, pytest.mark.long(60)]

ROOT = Path(__file__).parents[2]
PROGRAM = "tests/meta/beside_celery_types.py"


@pytest.fixture(scope="module")
def python() -> Path:
    """An environment with celery-types: in ours it would change what is known of Celery."""
    return python_of("types")


def check(*command: str | Path) -> str:
    done = subprocess.run(
        [*command, PROGRAM],
        cwd=ROOT,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_mypy(python: Path) -> None:
    """With --strict; what it says of our own files under celery-types no user sees."""
    said = check(python, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-incremental")
    assert "no issues found in 1 source file" in said


def test_pyright(python: Path) -> None:
    """It is installed as its package does it: its program is npm's."""
    said = check(python, "-m", "pyright", "--pythonpath", python)
    assert said.startswith("0 errors, 0 warnings"), said
