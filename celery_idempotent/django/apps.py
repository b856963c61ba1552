"""The Django app: its label and its checks."""

from __future__ import annotations

from django.apps import AppConfig


class IdempotencyConfig(AppConfig):
    """``celery_idempotent.django`` in ``INSTALLED_APPS``."""

    name = "celery_idempotent.django"
    label = "celery_idempotent"
    verbose_name = "Idempotency"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the checks for ``manage.py check``."""
        from celery_idempotent.django import checks

        checks.register_all()
