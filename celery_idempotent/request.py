"""The documented home of the request class that a project's own ``Request`` is derived from."""

from __future__ import annotations

from celery_idempotent.worker.request import IdempotentRequest

__all__ = ["IdempotentRequest"]
