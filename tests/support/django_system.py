"""A Django project as it runs: its database, its workers, and a producer that knows only names."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Any

from celery import Celery
from django.db import connections
from sqlalchemy.engine import make_url

from celery_idempotent.testing.servers import RedisServer
from tests.support import warm
from tests.support.brokers import RedisBroker
from tests.support.ledger import Ledger
from tests.support.tasks import SETTINGS_VARIABLE
from tests.support.waiting import eventually
from tests.support.workers import ROOT


class DjangoSystem:
    """What a test uses; :meth:`close` ends all of it.

    Args:
        alias: the database, as this process knows it.
    """

    def __init__(self, server: RedisServer, alias: str, directory: Path, **settings: Any) -> None:
        self.alias = alias
        self.directory = directory
        celery = {
            **RedisBroker(server).settings(60),
            "result_backend": server.url(1),
            "idempotency_store_url": "django://",
            "broker_connection_retry_on_startup": True,
            **settings,
        }
        self.ledger = Ledger(directory / f"ledger-{uuid.uuid4().hex[:6]}")
        self.settings = {
            "url": _url_of(alias),
            "TEST_LEDGER": str(self.ledger.path),
            **{f"CELERY_{name.upper()}": value for name, value in celery.items()},
        }
        self.app = Celery("producer", set_as_current=False)
        self.app.conf.update({**celery, "idempotency_store_url": "memory://"})
        self.processes: list[warm.Process] = []

    @property
    def environment(self) -> dict[str, str]:
        """What a process of the project needs."""
        return {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.django_project.settings",
            SETTINGS_VARIABLE: json.dumps(self.settings),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }

    @property
    def log(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in self.directory.glob("*.log"))

    def start(self, *command: str) -> warm.Process:
        """Start a process of the project."""
        with open(self.directory / f"{len(self.processes)}.log", "wb") as log:
            process = warm.start(command, cwd=ROOT, env=self.environment, stdout=log)
        self.processes.append(process)
        return process

    def start_worker(self, concurrency: int = 2) -> warm.Process:
        """Start a worker, and return once it consumes."""
        ready = self.ledger.count("ready")
        worker = self.start(
            *("-m", "celery", "-A", "tests.django_project.celery_app", "worker"),
            *("--concurrency", str(concurrency), "--hostname", f"w{ready}@test"),
            *("--loglevel", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"),
        )
        eventually(
            lambda: self.ledger.count("ready") > ready or worker.poll() is not None,
            "a worker is ready",
            timeout=60,
        )
        assert worker.poll() is None, self.log
        return worker

    def manage(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run ``manage.py``, in all but its name."""
        return warm.run(["-m", "django", *command], cwd=ROOT, env=self.environment)

    def send(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a task by its name."""
        return self.app.send_task(name, args, kwargs)

    def balance(self) -> int:
        """Ann's money."""
        from tests.django_project.shop.models import Account

        balance: int = Account.objects.using(self.alias).get(name="ann").balance
        return balance

    def close(self) -> None:
        for process in self.processes:
            kill(process)
        print(self.log[-6000:], self.ledger, sep="\n")  # noqa: T201  (shown where a test fails)
        self.app.close()
        connections[self.alias].close()


def kill(process: warm.Process) -> None:
    """SIGKILL a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _url_of(alias: str) -> str:
    given = connections.settings[alias]
    if given["ENGINE"].endswith("sqlite3"):
        return f"sqlite:///{given['NAME']}"
    url = make_url("postgresql://").set(
        username=given["USER"] or None,
        password=given["PASSWORD"] or None,
        host=given["HOST"],
        port=int(given["PORT"]),
        database=given["NAME"],
    )
    return url.render_as_string(hide_password=False)
