"""A page of records inside Flower: its own look, its own login, one more tab.

In the configuration file of Flower (``flowerconfig.py``, or what ``--conf`` names)::

    from celery_idempotent.ops.flower import install

    install()

or without such a file: ``celery -A app idempotency flower``.
"""

from __future__ import annotations

import logging

from celery_idempotent.errors import missing_extra

try:
    import flower.urls  # noqa: F401
except ImportError as exc:
    raise missing_extra(exc, "the page for Flower needs", "flower") from exc

__all__ = ["install"]

log = logging.getLogger("celery_idempotent")


def install() -> bool:
    """Add the page to the Flower that is started next; whether it has a place for it."""
    from celery_idempotent.ops.flower import seams

    try:
        from celery_idempotent.ops.flower.urls import handlers
    except ImportError as exc:
        log.warning("this Flower has other pages than are known: none for idempotency (%s)", exc)
        return False
    loader = seams.add_tab()
    if loader is None or not seams.add_pages(handlers(loader)):
        return False
    seams.add_rows()
    return True
