"""What the tenants' pages do: run as a module, it makes their calls and prints the results."""

from __future__ import annotations

import json
import sys

import django

from tests.tenants_project.celery_app import app, charge


def main(what: str) -> None:
    """Make the tenants, or their calls."""
    django.setup()
    from django.core.management import call_command
    from django.db import transaction
    from django_tenants.utils import schema_context

    from celery_idempotent.django import outbox
    from tests.tenants_project.models import Client

    tenants = ("north", "south")
    if what == "migrate":
        call_command("migrate_schemas", shared=True, run_syncdb=True, verbosity=0)
        for name in tenants:
            Client.objects.create(schema_name=name)
        return
    results = []
    for name in (*tenants, *tenants):
        with schema_context(name):
            if what == "outbox":
                with transaction.atomic():
                    results.append(outbox.publish(charge.s(7)))
            else:
                results.append(charge.delay(1))
    if what == "outbox":
        outbox.Relay(app).once()
    print(json.dumps([result.get(timeout=60) for result in results]))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
