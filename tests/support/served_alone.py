"""An application in a process that a test kills: ``python -m tests.support.served_alone``."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery_idempotent.run.context import RunContext
from celery_idempotent.settings import environment_of
from tests.support import warm
from tests.support.http_app import HTTP_APPS, Reply, make_celery
from tests.support.served import serving
from tests.support.waiting import eventually
from tests.support.workers import ROOT

LEASE_S = 1.0


def start(kind: str, directory: Path, streams: bool) -> tuple[warm.Process, int]:
    """Start one; gives its process and its port."""
    command = ["-m", __name__, kind, str(directory), "stream" if streams else "whole"]
    path = directory / "port"
    path.write_text("")
    with open(directory / "log", "ab") as log:
        process = warm.start(command, cwd=ROOT, env=dict(os.environ), stdout=log)
    eventually(lambda: path.read_text() or process.poll() is not None, "it serves")
    assert process.poll() is None, (directory / "log").read_text()
    return process, int(path.read_text())


def main(kind: str, directory: str, how: str) -> None:
    """Serve until it is killed."""
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
        (Path(directory) / "port").write_text(str(client.port))
        threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
