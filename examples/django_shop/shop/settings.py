"""Settings: records, outbox and data are in one database, so that they commit together."""

import os

SECRET_KEY = "an example has none"
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
ROOT_URLCONF = "shop.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["celery_idempotent.django", "shop"]
MIDDLEWARE = ["shop.urls.Idempotency"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["SHOP_DATABASE"],
        "OPTIONS": {"timeout": 30},
    }
}

CELERY_BROKER_URL = f"{os.environ['SHOP_SERVER']}/0"
CELERY_RESULT_BACKEND = f"{os.environ['SHOP_SERVER']}/1"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_IDEMPOTENCY_STORE_URL = "django://"
