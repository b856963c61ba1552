"""Nothing besides Celery."""

from __future__ import annotations

from tests.ecosystem.adapter import Adapter

__all__ = ["TheAdapter"]


class TheAdapter(Adapter):
    """Redis for everything."""
