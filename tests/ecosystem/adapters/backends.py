"""Each place where Celery can keep results."""

from __future__ import annotations

import shutil
import socket
import subprocess
from typing import Any

from celery_idempotent.testing.servers import _free_port
from tests.ecosystem.adapter import Adapter
from tests.ecosystem.adapters.rabbit import AMQP_URL, remove
from tests.support.missing import NotThere
from tests.support.waiting import eventually

__all__ = ["InDatabase", "InFiles", "InMemcached", "Nowhere", "Rpc"]


class Rpc(Adapter):
    """Results come as messages, to whoever made the call."""

    chords = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._queue = f"ecosystem-{self.directory.name}"

    def settings(self) -> dict[str, Any]:
        where = {"broker_url": AMQP_URL, "task_default_queue": self._queue}
        return {**where, "result_backend": "rpc://"}

    def stop(self) -> None:
        remove(self._queue, self._queue)


class InDatabase(Adapter):
    """Results are rows."""

    def settings(self) -> dict[str, Any]:
        return {"result_backend": f"db+sqlite:///{self.directory}/results.db"}


class InFiles(Adapter):
    """Each result is a file."""

    def settings(self) -> dict[str, Any]:
        (self.directory / "results").mkdir(exist_ok=True)
        return {"result_backend": f"file://{self.directory}/results"}


class InMemcached(Adapter):
    """Results are in memcached."""

    def start(self) -> None:
        """Start a server of our own."""
        program = shutil.which("memcached")
        if program is None:
            raise NotThere("no memcached on PATH: install one (apt install memcached)")
        self._port = _free_port()
        self._server = subprocess.Popen(
            [program, "-u", "nobody", "-l", "127.0.0.1", "-p", str(self._port)]
        )

        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self._port)) == 0

        eventually(answers, "memcached answers")

    def stop(self) -> None:
        if hasattr(self, "_server"):
            self._server.kill()
            self._server.wait()

    def settings(self) -> dict[str, Any]:
        return {"result_backend": f"cache+memcached://127.0.0.1:{self._port}/"}


class Nowhere(Adapter):
    """Results are thrown away."""

    results = chords = False

    def settings(self) -> dict[str, Any]:
        return {"result_backend": None}
