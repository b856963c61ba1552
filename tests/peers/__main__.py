"""Plays one library's cases, and prints what was seen as JSON; or writes the tables of all."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from celery_idempotent.testing.servers import RedisServer
from tests.peers.bench import LEDGER_VARIABLE, SERVER_VARIABLE
from tests.peers.report import PEERS, table_path, write

ROOT = Path(__file__).parents[2]


def play(name: str, directory: Path) -> str:
    """Play a library in a process of its own, on a server of its own; the table that it makes."""
    with RedisServer() as server:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            SERVER_VARIABLE: server.url().rpartition("/")[0],
            LEDGER_VARIABLE: str(directory / "ledger"),
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.peers", name, "--here", str(directory)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


def main() -> None:
    """Entry: ``python -m tests.peers [LIBRARY ...]`` writes the tables of the documentation."""
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PEERS)} (default: all)")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        (name,) = arguments.names
        peer = importlib.import_module(f"tests.peers.{name}").PEER
        print(write(peer, peer.play(arguments.here)), end="")
        return
    for name in arguments.names or PEERS:
        with tempfile.TemporaryDirectory(prefix="peers-") as directory:
            table_path(name).write_text(play(name, Path(directory)), encoding="utf-8")
        print(table_path(name).relative_to(ROOT))


if __name__ == "__main__":
    main()
