"""The examples run with one command, and show what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.long(10)]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("example", ["payments", "django_shop"])
def test_a_client_that_loses_each_answer(example: str) -> None:
    """Two of five calls need a key; with one, an order is made once and charged once."""
    # When
    done = subprocess.run(
        [sys.executable, f"examples/{example}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    # Then
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("TWO") == 2
    assert done.stdout.count("(a replay)") == 2
    assert "Two of the five need a key: POST /orders and POST /payments/charge." in done.stdout
