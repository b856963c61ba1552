"""A short run of chaos, as `make chaos` plays it: the figures are there, and all of them hold."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.workers import ROOT

#: A pause of the server, a stop longer than the lease, a kill of the server, and kills of children.
SEED = 9
REQUIRED = (
    "overlapping lease holders",
    "lost",
    "unanswered",
    "keys accepted twice",
    "effects repeated without a fault",
    "session or keyed insert with a second row",
    "keys with differing answers",
    "calls that failed",
    "promises broken, by the history",
)


def figure(text: str, name: str) -> int:
    """The count in the row of the table with this name."""
    (row,) = re.findall(rf"│ {re.escape(name)} +│ +(\d+) ", text)
    return int(row)


@pytest.mark.long(90)
def test_nothing_is_lost_and_nothing_done_twice() -> None:
    """Redis alone, as on a laptop; kills, stops and restarts took place, and all is answered."""
    # When
    played = subprocess.run(
        [
            *(sys.executable, "-m", "tests.chaos", "--only-redis"),
            *("--minutes", "0.25", "--seed", str(SEED)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    # Then
    text = played.stdout
    assert played.returncode == 0, text
    assert f"chaos, seed {SEED}," in text
    assert "left out: RabbitMQ" in text
    assert "sessions are on SQLite" in text
    assert "All that is required holds." in text
    assert {name: figure(text, name) for name in REQUIRED} == dict.fromkeys(REQUIRED, 0)
    assert figure(text, "keys") >= 50
    assert figure(text, "deliveries") >= figure(text, "keys")
    assert figure(text, "effects") >= figure(text, "keys")
    assert figure(text, "ends that were recorded") >= figure(text, "keys")
    assert figure(text, "kills of processes") >= 3
    assert figure(text, "kills of the server") >= 1
