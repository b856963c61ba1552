"""One run: each play in a process of its own, with a server of its own, and for a limited time."""

from __future__ import annotations

import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

import click

from benchmarks.playing.process import PROJECT, end_group, group, lives, wait_until_gone
from celery_idempotent.testing.servers import RedisServer

__all__ = ["LIMIT_S", "Play", "Run"]

#: How long one play may take, unless the command says otherwise.
LIMIT_S = 600.0
#: How long a player that was told to end may take to do so.
_ENDS_WITHIN_S = 10.0
_POLL_S = 0.5
#: How many lines of a log are shown, and how many of its stacks.
_LINES = 30
_STACK_LINES = 150


@dataclass(frozen=True)
class Play:
    """What one process plays."""

    #: What it is called, also in messages, and its directory.
    name: str
    #: A module of this project, and its arguments.
    command: Sequence[str]
    environment: Mapping[str, str]
    #: Called with each line that it prints about what it saw.
    note: Callable[[dict[str, Any]], None]


@dataclass
class _Played:
    """What a run knows of a play that goes on."""

    directory: Path
    player: subprocess.Popen[str]
    #: The situations that were begun and not seen yet, with the time of their beginning.
    begun: dict[str, float] = field(default_factory=dict)
    #: Its workers; each is the leader of a process group.
    workers: set[int] = field(default_factory=set)


class Run:
    """Plays, several at a time, and prints progress lines.

    A player prints JSON lines. Their ``kind`` is "server" (with its ``version``), "worker" (with
    the ``pid`` of one that was started, or that ``ended``), "begun" (with the ``name`` of a
    situation), or one that is for :attr:`Play.note`; with "seen" the situation ``name`` is over. It
    ends when its standard input does.

    Args:
        directory: each play gets a directory in it, for its ledger and its logs.
        limit_s: how many seconds a play may take. Then its stacks are shown, and it is ended.
    """

    def __init__(self, directory: Path, limit_s: float = LIMIT_S) -> None:
        #: The day of the run, ISO 8601.
        self.measured_on = datetime.date.today().isoformat()
        #: The versions that all plays share.
        self.versions = {
            "Python": platform.python_version(),
            "Celery": metadata.version("celery"),
            "kombu": metadata.version("kombu"),
            "redis-py": metadata.version("redis"),
        }
        self._directory = directory
        self._limit_s = limit_s
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        self._is_stopped = threading.Event()

    def say(self, text: str) -> None:
        """Print one progress line."""
        click.echo(f"{time.monotonic() - self._begun:6.1f} s  {text}")

    def play_all(self, plays: Iterable[Play], jobs: int) -> dict[str, str]:
        """Play, so many at a time; return what went wrong with each that did not come to its end.

        A message about each of those is on standard error.
        """
        wrong = {}
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            try:
                going = {play.name: pool.submit(self._play, play) for play in plays}
                for name, done in going.items():
                    problem = done.result()
                    if problem:
                        wrong[name] = problem
            except BaseException:
                # Ctrl-C, for example: what plays is ended, and no other may begin.
                self._is_stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return wrong

    def _play(self, play: Play) -> str | None:
        directory = self._directory / play.name
        directory.mkdir(parents=True)
        with RedisServer() as server, open(directory / "driver.log", "w") as log:
            environment = {
                **os.environ,
                **play.environment,
                "PLAYED_SERVER_URL": server.url().rsplit("/", 1)[0],
                "PLAYED_LEDGER": str(directory),
                # With SIGABRT a process writes the stacks of its threads into its log.
                "PYTHONFAULTHANDLER": "1",
            }
            player = subprocess.Popen(
                [sys.executable, "-m", *play.command],
                cwd=PROJECT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
            played = _Played(directory, player)
            try:
                problem = self._follow(play, played)
                if problem:
                    click.echo(f"{play.name}: {problem}\n{_told(played)}", err=True)
                return problem
            finally:
                _end(played)

    def _follow(self, play: Play, played: _Played) -> str | None:
        """Note what the player prints until it has ended; return why it did not end well."""
        player = played.player
        lines: SimpleQueue[str | None] = SimpleQueue()
        assert player.stdout is not None
        reader = threading.Thread(target=_read, args=(player.stdout, lines), daemon=True)
        reader.start()
        deadline = time.monotonic() + self._limit_s
        while not self._is_stopped.is_set() and time.monotonic() < deadline:
            try:
                line = lines.get(timeout=_POLL_S)
            except Empty:
                # A process that the player left behind may keep its output open.
                if player.poll() is None:
                    continue
                line = None
            if line is not None:
                self._note(play, played, json.loads(line))
                continue
            with suppress(subprocess.TimeoutExpired):
                code = player.wait(timeout=_ENDS_WITHIN_S)
                return f"the player ended with {code}{_doing(played)}" if code else None
            return f"the player closed its output, and did not end{_doing(played)}"
        if self._is_stopped.is_set():
            return f"it was stopped{_doing(played)}"
        return f"it was ended after {self._limit_s:g} s{_doing(played)}"

    def _note(self, play: Play, played: _Played, line: dict[str, Any]) -> None:
        kind = line["kind"]
        if kind == "begun":
            played.begun[line["name"]] = time.monotonic()
        elif kind == "worker":
            if line.get("ended"):
                played.workers.discard(line["pid"])
            else:
                played.workers.add(line["pid"])
        else:
            with self._lock:
                if kind == "server":
                    name, version = str(line["version"]).split()
                    self.versions[name] = version
                    return
                if kind == "seen":
                    played.begun.pop(line["name"], None)
                play.note(line)


def _read(output: IO[str], lines: SimpleQueue[str | None]) -> None:
    for line in output:
        lines.put(line)
    lines.put(None)


def _doing(played: _Played) -> str:
    now = time.monotonic()
    names = [f"{name} (for {now - begun:.1f} s)" for name, begun in played.begun.items()]
    return f"; being played: {', '.join(names) or 'nothing'}"


def _told(played: _Played) -> str:
    """Return what the logs have, and the stacks of all processes; the player and workers end."""
    paths = sorted(played.directory.glob("*.log")) + [played.directory / "ledger.jsonl"]
    sizes = {path: path.stat().st_size for path in paths if path.exists()}
    told = [_tail(f"the end of {path.name}", path.read_bytes(), _LINES) for path in sizes]
    # Leaders first, as a pool begins a new process for each that ends. One after another, as all
    # of a worker write into one log.
    for leader in (played.player.pid, *played.workers):
        for pid in group(leader):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)
                os.kill(pid, signal.SIGCONT)
            played.player.poll()
            wait_until_gone(pid, 1.0)
    for path, size in sizes.items():
        stacks = path.read_bytes()[size:]
        if stacks and path.suffix == ".log":
            told.append(_tail(f"stacks in {path.name}", stacks, _STACK_LINES))
    return "\n".join(told)


def _tail(title: str, text: bytes, most: int) -> str:
    lines = text.decode(errors="replace").splitlines()
    return "\n".join([f"--- {title}", *lines[-most:]])


def _end(played: _Played) -> None:
    """End the player and all that it started, whatever state they are in."""
    player = played.player
    assert player.stdin is not None
    with suppress(OSError):
        player.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        player.wait(timeout=_ENDS_WITHIN_S)
    for leader in (player.pid, *played.workers):
        end_group(leader)
    with suppress(subprocess.TimeoutExpired):
        player.wait(timeout=_ENDS_WITHIN_S)
    assert not lives(player.pid), f"process {player.pid} does not end with SIGKILL"
