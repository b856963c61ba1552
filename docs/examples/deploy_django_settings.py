"""shop/settings.py: records in the project's own database, messages in Redis."""

import os

SECRET_KEY = os.environ.get("SECRET_KEY", "only-here")
USE_TZ = True
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "celery_idempotent.django",
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ.get("PGHOST", "127.0.0.1"),
        "USER": os.environ.get("PGUSER", "postgres"),
        "NAME": os.environ.get("PGDATABASE", "shop"),
    }
}

CELERY_BROKER_URL = "redis://localhost:6379/0"
CELERY_RESULT_BACKEND = "redis://localhost:6379/1"
CELERY_IDEMPOTENCY_STORE_URL = "django://"
