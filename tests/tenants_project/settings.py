"""The settings; the database's URL and more come from the environment, as JSON."""

from __future__ import annotations

import json
import os
from typing import Any

from tests.django_project.configuration import database
from tests.support.tasks import SETTINGS_VARIABLE

given: dict[str, Any] = json.loads(os.environ[SETTINGS_VARIABLE])

SECRET_KEY = "for tests only"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SHARED_APPS = [
    "django_tenants",
    "django.contrib.contenttypes",
    "tests.tenants_project",
    "celery_idempotent.django",
]
TENANT_APPS = ["django.contrib.contenttypes"]
INSTALLED_APPS = SHARED_APPS
TENANT_MODEL = "tenants_project.Client"
TENANT_DOMAIN_MODEL = "tenants_project.Domain"
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
DATABASES = {
    "default": {**database(given.pop("url")), "ENGINE": "django_tenants.postgresql_backend"}
}
if given.pop("names_schema", True):
    from celery_idempotent.django.tenants import schema_namespace

    CELERY_IDEMPOTENCY_NAMESPACE = schema_namespace
globals().update(given)
