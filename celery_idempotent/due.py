"""Reads when a message is due, or expires, as Celery reads it."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Final

from celery.utils.time import maybe_iso8601, maybe_make_aware

from celery_idempotent.core.options import LONGEST

_LONGEST_MS: Final = int(LONGEST * 1000)


def ms_until(when: Any) -> int | None:
    """Return how many milliseconds it is until an instant, or how many a countdown has.

    ``None``: it is neither, and Celery says so.

    Args:
        when: seconds, an instant (UTC, where it names no time zone), or one as text.
    """
    try:
        if isinstance(when, str):
            when = maybe_iso8601(when)
        if isinstance(when, datetime):
            when = (maybe_make_aware(when) - datetime.now(timezone.utc)).total_seconds()
        return max(0, min(int(when * 1000), _LONGEST_MS))
    except (TypeError, ValueError, OverflowError):
        return None
