"""The two brokers that workers are tested on, and how each comes to deliver a message again."""

from __future__ import annotations

import os
import socket
import uuid
from typing import Any, Protocol
from urllib.parse import urlsplit

from kombu import Connection

from celery_idempotent.testing.servers import RedisServer
from tests.support.proxy import Proxy
from tests.support.tasks import Settings

AMQP_VARIABLE = "CELERY_IDEMPOTENT_TEST_AMQP_URL"
AMQP_URL = os.environ.get(AMQP_VARIABLE, "amqp://guest:guest@127.0.0.1:5672//")


class Broker(Protocol):
    """What a test needs of a broker."""

    name: str
    #: Where a producer connects; a worker's connection may go another way, to be cut there.
    producer_url: str

    def settings(self, visibility_timeout: float | None) -> Settings:
        """What the app needs to use it; a visibility timeout means nothing to AMQP."""

    def redeliver(self) -> None:
        """Have every message that is not acknowledged delivered again, the worker alive."""

    def messages(self) -> int:
        """How many messages wait in the queue, not counting those that a worker holds."""

    def close(self) -> None:
        """Remove what the test has left there."""


class RedisBroker:
    """Redis: what a worker holds too long is delivered again after the visibility timeout."""

    name = "redis"

    def __init__(self, server: RedisServer, db: int = 0) -> None:
        self.url = self.producer_url = server.url(db)
        self.queue = f"idempotent-{uuid.uuid4().hex[:8]}"

    def settings(self, visibility_timeout: float | None) -> Settings:
        options: dict[str, Any] = {
            # Look for messages that are due again every second, not every hundred.
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        }
        if visibility_timeout is not None:
            options["visibility_timeout"] = visibility_timeout
        return {
            "broker_url": self.url,
            "broker_transport_options": options,
            "task_default_queue": self.queue,
        }

    def redeliver(self) -> None:
        """Nothing to do: the visibility timeout that the test has chosen passes by itself."""

    def messages(self) -> int:
        with Connection(self.url) as connection:
            size: int = connection.default_channel.client.llen(self.queue)
            return size

    def close(self) -> None:
        """Nothing to do: the server is emptied between tests."""


class RabbitBroker:
    """RabbitMQ: what a worker holds is delivered again when its connection is cut."""

    name = "rabbitmq"

    def __init__(self, url: str = AMQP_URL) -> None:
        self.producer_url = url
        parts = urlsplit(url)
        self.proxy = Proxy(parts.hostname or "127.0.0.1", parts.port or 5672)
        user = f"{parts.username or 'guest'}:{parts.password or 'guest'}"
        self.url = f"amqp://{user}@127.0.0.1:{self.proxy.port}{parts.path or '//'}"
        self.queue = f"idempotent-{uuid.uuid4().hex[:8]}"

    def settings(self, visibility_timeout: float | None) -> Settings:
        return {
            "broker_url": self.url,
            "task_default_queue": self.queue,
            "broker_connection_max_retries": None,
        }

    def redeliver(self) -> None:
        self.proxy.cut()

    def messages(self) -> int:
        with Connection(self.producer_url) as connection:
            declared = connection.default_channel.queue_declare(self.queue, passive=True)
            size: int = declared.message_count
            return size

    def close(self) -> None:
        self.proxy.close()
        with Connection(self.producer_url) as connection:
            connection.default_channel.queue_delete(self.queue)
            connection.default_channel.exchange_delete(self.queue)


def rabbitmq_answers() -> bool:
    """Whether there is something to connect to."""
    parts = urlsplit(AMQP_URL)
    try:
        with socket.create_connection((parts.hostname, parts.port or 5672), timeout=2):
            return True
    except OSError:
        return False
