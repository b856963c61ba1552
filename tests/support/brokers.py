"""The two brokers that workers are tested on, and how each comes to deliver a message again."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

import pytest
from kombu import Connection
from kombu.transport import redis as kombu_redis

from celery_idempotent.testing.servers import RedisServer
from tests.support.proxy import Proxy
from tests.support.tasks import Settings

#: For tests in which a copy comes while its body runs. Before 5.7 Celery's prefork pool forgets,
#: with its connection, which of its processes are busy (``AsynPool.flush``): it gives the copy to
#: the one that runs the body, where it waits for the body's end. With threads an older worker takes
#: no message any more after that. Plain Celery does the same.
RABBITMQ_SENDS_COPIES = pytest.mark.celery_at_least(5, 7, broker="rabbitmq")

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

    #: How often kombu looks for messages that are due again, in seconds.
    LOOKS_S = 1
    #: How long the lock lives under which it looks, in seconds. It stays where a worker is killed,
    #: or a server ends, at that moment; by default nobody looks then for five minutes.
    LOCK_S = 4

    def __init__(self, server: RedisServer, db: int = 0) -> None:
        self.url = self.producer_url = server.url(db)
        self.queue = f"idempotent-{uuid.uuid4().hex[:8]}"
        self._closed = threading.Event()
        self._looks: threading.Thread | None = None

    def settings(self, visibility_timeout: float | None) -> Settings:
        options: dict[str, Any] = {
            # Look for messages that are due again every second, not every hundred.
            "unacked_restore_interval": self.LOOKS_S,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": self.LOCK_S,
        }
        if visibility_timeout is not None:
            options["visibility_timeout"] = visibility_timeout
            if not hasattr(kombu_redis.Channel, "unacked_restore_interval"):
                # An older kombu looks by its own times.
                self.deliver_again_after(visibility_timeout)
        return {
            "broker_url": self.url,
            "broker_transport_options": options,
            "task_default_queue": self.queue,
        }

    def deliver_again_after(self, seconds: float) -> None:
        """Have what is held for so long delivered again, also sooner than the workers would."""
        if self._looks is None:
            self._looks = threading.Thread(target=self._look, args=(seconds,), daemon=True)
            self._looks.start()

    def _look(self, visibility_timeout: float) -> None:
        options = {"visibility_timeout": visibility_timeout}
        while not self._closed.wait(self.LOOKS_S):
            with suppress(Exception), Connection(self.url, transport_options=options) as connection:
                connection.default_channel.qos.restore_visible(num=1000, interval=1)

    def redeliver(self) -> None:
        """Nothing to do: the visibility timeout that the test has chosen passes by itself."""

    def messages(self) -> int:
        with Connection(self.url) as connection:
            size: int = connection.default_channel.client.llen(self.queue)
            return size

    def close(self) -> None:
        """Stop looking; the server is emptied between tests."""
        self._closed.set()
        if self._looks is not None:
            self._looks.join()


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
            # What is still in the proxy as a test cuts it would be lost, as in any broken line.
            "broker_transport_options": {"confirm_publish": True},
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
