"""Django: records, outbox and admin pages in the project's own database.

::

    INSTALLED_APPS = [..., "celery_idempotent.django"]
    CELERY_IDEMPOTENCY_STORE_URL = "django://"
"""
