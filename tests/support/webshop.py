"""A shop on the web: its site (ASGI, for uvicorn), its task, its books, and how it is started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import uuid
from pathlib import Path
from typing import Any

from celery import Celery

from celery_idempotent import MESSAGE_ID, IdempotentTask
from celery_idempotent.http import IdempotencyASGIMiddleware
from tests.support import warm
from tests.support.tasks import SETTINGS_VARIABLE
from tests.support.waiting import eventually
from tests.support.workers import ROOT


class Books:
    """What happened, in files that the library knows nothing of: one for each key and number.

    A second entry with the same key and number is none, as with a bank that takes a key with each
    charge. No process that is killed leaves half of one.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def write(self, book: str, key: str, number: int) -> None:
        (self._path / book).mkdir(parents=True, exist_ok=True)
        (self._path / book / f"{number}-{key}").touch()

    def read(self, book: str) -> list[tuple[int, str]]:
        """All entries of one book: numbers, and their keys."""
        if not (self._path / book).exists():
            return []
        entries = [entry.name.partition("-") for entry in (self._path / book).iterdir()]
        return sorted((int(number), key) for number, _, key in entries)


def make_shop(settings: dict[str, Any]) -> tuple[Celery, Any]:
    """The Celery app, and the site behind its middleware."""
    celery = Celery("webshop", set_as_current=False)
    celery.conf.update(settings)
    books = Books(settings["test_books"])

    @celery.task(base=IdempotentTask, name="webshop.charge", bind=True, shared=False)
    def charge(self: Any, number: int) -> str:
        books.write("charges", self.idempotency.key_for("bank"), number)
        return "charged"

    @celery.task(base=IdempotentTask, name="webshop.mail", shared=False, idempotency_key=MESSAGE_ID)
    def mail(number: int) -> None:
        books.write("mails", uuid.uuid4().hex, number)  # each run of it is one

    def send_mails(number: int) -> None:
        """Send two mails, and be killed the first time before anybody hears of it."""
        for _ in range(2):
            mail.delay(number)
        if not books.read("killed"):
            books.write("killed", "", number)
            os.kill(os.getpid(), signal.SIGKILL)

    async def site(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        number = json.loads((await receive())["body"])["number"]
        books.write("requests", uuid.uuid4().hex, number)
        if scope["path"] == "/mails":
            send_mails(number)
        # A request that was cut off after this is sent again: the order's key keeps it one order.
        order = scope["idempotency"].key_for("order")
        books.write("orders", order, number)
        charge.delay(number)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"order": order}).encode()})

    def identity(scope: Any) -> str | None:
        return next((v.decode() for n, v in scope["headers"] if n == b"user"), None)

    return celery, IdempotencyASGIMiddleware(site, celery, identity=identity, required=True)


if SETTINGS_VARIABLE in os.environ:  # in a process that uvicorn or celery started
    app, web = make_shop(json.loads(os.environ[SETTINGS_VARIABLE]))


class Process:
    """One of the shop's processes, with its children, in a group of its own."""

    def __init__(self, settings: dict[str, Any], directory: Path, *command: str) -> None:
        self.log_path = directory / f"{command[1]}-{len(list(directory.iterdir()))}.log"
        with open(self.log_path, "wb") as log:
            self._process = warm.start(
                command,
                cwd=ROOT,
                env={
                    **os.environ,
                    SETTINGS_VARIABLE: json.dumps(settings),
                    "PYTHONPATH": str(ROOT),
                },
                stdout=log,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_for_log(self, words: str) -> None:
        """Return once it has logged these words."""
        eventually(lambda: words in self.log or self._process.poll() is not None, words, timeout=60)
        assert self._process.poll() is None, self.log

    def kill(self) -> None:
        """SIGKILL it and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def start_site(settings: dict[str, Any], directory: Path, port: int) -> Process:
    """Start the site, and return once it answers."""
    site = Process(
        settings,
        directory,
        *("-m", "uvicorn", "tests.support.webshop:web"),
        *("--port", str(port), "--lifespan", "off", "--no-access-log"),
    )
    site.wait_for_log("Uvicorn running")
    return site


def start_worker(settings: dict[str, Any], directory: Path) -> Process:
    """Start a worker, and return once it consumes."""
    worker = Process(
        settings,
        directory,
        *("-m", "celery", "-A", "tests.support.webshop", "worker", "--concurrency", "2"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO"),
    )
    worker.wait_for_log(" ready.")
    return worker
