"""The project's Celery app, with its tasks."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import signals
from django.db import connection
from tenant_schemas_celery.app import CeleryApp
from tenant_schemas_celery.task import TenantTask

from celery_idempotent import IdempotentTask
from tests.support.ledger import Ledger
from tests.support.tasks import SETTINGS_VARIABLE

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.tenants_project.settings")

app = CeleryApp("tenants")
app.config_from_object("django.conf:settings", namespace="CELERY")
ledger = Ledger(json.loads(os.environ[SETTINGS_VARIABLE])["TEST_LEDGER"])


class Task(IdempotentTask, TenantTask):  # type: ignore[misc]
    """The base of the project's tasks."""

    abstract = True


@signals.worker_ready.connect
def _note_ready(**_: Any) -> None:
    ledger.write("ready")


@app.task(base=Task, name="tenants.charge", idempotency_key="order:{order}")
def charge(order: int, gate: str = "") -> str:
    """Say for whom it ran."""
    ledger.write("start", key=order, tenant=connection.schema_name)
    if gate:
        ledger.hold(gate)
    return f"{connection.schema_name} paid {order}"
