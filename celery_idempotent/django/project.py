"""The Celery app of a Django project."""

from __future__ import annotations

from typing import Any

from celery import current_app

from celery_idempotent.errors import ConfigurationError


def celery_app() -> Any:
    """Return the project's Celery app.

    Raises:
        ConfigurationError: there is none in this process.
    """
    app = current_app._get_current_object()
    if app.main in (None, "default"):
        raise ConfigurationError(
            "there is no Celery app in this process: import it in your project's __init__.py, "
            "from .celery import app as celery_app"
        )
    return app
