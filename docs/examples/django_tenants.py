"""Tenants with a schema each: the namespace names it, and tasks have both bases."""

import django
from celery import Celery  # in a project: tenant_schemas_celery.app.CeleryApp
from django.conf import settings as django_settings

from celery_idempotent import IdempotentTask
from celery_idempotent.django.tenants import schema_namespace

django_settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
)
django.setup()

from django.db import connection  # noqa: E402  (both need Django's settings)
from tenant_schemas_celery.task import TenantTask  # noqa: E402


class settings:  # noqa: N801  (stands for your Django settings module)
    SHARED_APPS = ("django_tenants", "celery_idempotent.django")
    CELERY_IDEMPOTENCY_NAMESPACE = schema_namespace  # "<schema>/<task>"
    CELERY_IDEMPOTENCY_STORE_URL = "memory://"
    CELERY_TASK_ALWAYS_EAGER = True


app = Celery("shop")
app.config_from_object(settings, namespace="CELERY")
charged = []


class Task(IdempotentTask, TenantTask):
    abstract = True


@app.task(base=Task, idempotency_key="order:{order_id}")
def charge(order_id):
    charged.append((connection.schema_name, order_id))


# [end]

for connection.schema_name in ("north", "south", "north"):
    charge.delay(1)
assert charged == [("north", 1), ("south", 1)]
