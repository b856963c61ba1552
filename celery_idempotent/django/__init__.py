"""Django: records, outbox and admin pages in the project's own database.

::

    INSTALLED_APPS = [..., "celery_idempotent.django"]
    CELERY_IDEMPOTENCY_STORE_URL = "django://"
"""

from celery_idempotent.errors import missing_extra

try:
    import django  # noqa: F401
except ImportError as exc:
    raise missing_extra(exc, "celery_idempotent.django needs", "django") from exc
