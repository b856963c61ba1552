"""Where RabbitMQ is, and its removal of what a row has left there."""

from __future__ import annotations

import os

__all__ = ["AMQP_URL"]

AMQP_URL = os.environ.get("CELERY_IDEMPOTENT_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")
