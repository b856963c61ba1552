"""An application in a process that a test kills: ``python -m tests.support.served_alone``."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery_idempotent.run.context import RunContext
from celery_idempotent.settings import environment_of
from tests.support.http_app import HTTP_APPS, Reply, make_celery
from tests.support.served import serving
from tests.support.workers import ROOT

LEASE_S = 1.0


def start(kind: str, directory: Path, streams: bool) -> tuple[subprocess.Popen[str], int]:
    """Start one; gives its process and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, kind, str(directory), "stream" if streams else "whole"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def main(kind: str, directory: str, how: str) -> None:
    """Serve until the other end of stdin is closed."""
    celery = make_celery(idempotency_lease=LEASE_S)
    celery.conf.idempotency_store_url = f"sqlite:///{directory}/records.db"
    store: Any = environment_of(celery).store
    store.create_schema()

    def never() -> None:
        (Path(directory) / "begun").touch()
        threading.Event().wait()

    def charge() -> None:
        with (Path(directory) / "charges").open("a") as charges:
            charges.write("charged\n")

    def stream() -> Iterator[bytes]:
        yield b"one"
        never()

    def handler(body: bytes, run: RunContext | None) -> Reply:
        assert run is not None
        run.step("charge", charge)
        if run.interrupted:
            return Reply(201, [], [b"done"])
        if how == "stream":
            return Reply(200, [("Content-Type", "text/event-stream")], stream())
        never()
        raise AssertionError

    with serving(HTTP_APPS[kind](handler, celery, service="shop")) as client:
        print(client.port, flush=True)  # noqa: T201
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
