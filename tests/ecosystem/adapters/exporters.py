"""What makes metrics of Celery's events."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import redis

from celery_idempotent.testing.servers import _free_port
from tests.ecosystem.adapter import Adapter, Figure
from tests.ecosystem.world import World
from tests.support.waiting import eventually

__all__ = ["PrometheusExporter"]


class PrometheusExporter(Adapter):
    """celery-prometheus-exporter, which starts anew at an event that it doesn't know."""

    def start(self) -> None:
        self._address = f"127.0.0.1:{_free_port()}"
        broker = f"{self.server}/0"
        self._log = self.directory / "exporter.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "celery_prometheus_exporter"]
                + ["--broker", broker, "--addr", self._address],
                stdout=log,
                stderr=log,
            )
        with redis.Redis.from_url(broker) as client:
            eventually(
                lambda: (
                    any(b"celeryev" in it for it in client.pubsub_channels())
                    or client.pubsub_numpat()
                ),
                "the exporter listens",
                60,
            )
        eventually(self._answers, "the exporter answers", 60)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def settings(self) -> dict[str, Any]:
        return {"idempotency_events": False}

    def figures(self, world: World) -> Iterator[Figure]:
        ended = {it: world.ledger.count("finished", state=it) for it in ("SUCCESS", "FAILURE")}
        eventually(lambda: self._counted() == ended, f"{ended} are counted", 30)
        yield Figure("tasks by state", self._counted(), ended)
        # Were our event sent, it would begin anew.
        with world.app.connection() as connection, world.app.events.Dispatcher(connection) as sent:
            sent.send("task-deduplicated", uuid=world.calls[0])
        eventually(lambda: not any(self._counted().values()), "all is forgotten", 30)
        stopped = "KeyError: 'deduplicated'" in self._log.read_text("utf-8")
        yield Figure("whether it stops at an event of ours", stopped, True)

    def _answers(self) -> bool:
        try:
            return bool(self._scraped())
        except OSError:
            return False

    def _scraped(self) -> str:
        with urllib.request.urlopen(f"http://{self._address}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    def _counted(self) -> dict[str, int]:
        found = re.findall(r'^celery_tasks\{state="(\w+)"\} (\S+)$', self._scraped(), re.MULTILINE)
        return {state: int(float(n)) for state, n in found if state in ("SUCCESS", "FAILURE")}
