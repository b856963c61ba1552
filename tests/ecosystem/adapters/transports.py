"""Brokers besides Redis."""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Connection, Exchange, Queue

from tests.ecosystem.adapter import Adapter
from tests.ecosystem.adapters.rabbit import AMQP_URL

__all__ = ["Files", "Quorum"]


class Files(Adapter):
    """Each message is a file."""

    def settings(self) -> dict[str, Any]:
        for name in ("queue", "control"):
            (self.directory / name).mkdir(exist_ok=True)
        return {
            "broker_url": "filesystem://",
            "broker_transport_options": {
                "data_folder_in": str(self.directory / "queue"),
                "data_folder_out": str(self.directory / "queue"),
                "control_folder": str(self.directory / "control"),
            },
        }


class Quorum(Adapter):
    """RabbitMQ delays the messages itself."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._queue = f"ecosystem-{self.directory.name}"

    def settings(self) -> dict[str, Any]:
        return {"broker_url": AMQP_URL, "task_default_queue": self._queue}

    def install(self, app: Celery, note: Any) -> None:
        """Declare the queue on a topic exchange: Celery delays on no other."""
        exchange = Exchange(f"{self._queue}-topic", type="topic")
        kind = {"x-queue-type": "quorum"}
        app.conf.task_queues = [Queue(self._queue, exchange, self._queue, queue_arguments=kind)]

    def stop(self) -> None:
        with Connection(AMQP_URL) as connection:
            channel = connection.channel()
            channel.queue_delete(self._queue)
            channel.exchange_delete(f"{self._queue}-topic")
