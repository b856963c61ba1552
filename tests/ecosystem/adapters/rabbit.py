"""Where RabbitMQ is, and its removal of what a row has left there."""

from __future__ import annotations

import os

from kombu import Connection

__all__ = ["AMQP_URL", "remove"]

AMQP_URL = os.environ.get("CELERY_IDEMPOTENT_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")


def remove(queue: str, exchange: str) -> None:
    """Remove a queue and an exchange of a row; what isn't there is no error."""
    with Connection(AMQP_URL) as connection:
        channel = connection.channel()
        channel.queue_delete(queue)
        channel.exchange_delete(exchange)
