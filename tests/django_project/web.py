"""The project's middleware and its pages."""

from __future__ import annotations

import json
from typing import Any

from django.db import transaction
from django.http import HttpRequest, JsonResponse

from celery_idempotent.django.middleware import IdempotencyMiddleware


class Idempotency(IdempotencyMiddleware):
    """A caller is who it says it is."""

    def identity(self, request: Any) -> str | None:
        user: str | None = request.headers.get("User")
        return user


def payments(request: HttpRequest) -> JsonResponse:
    """Make a payment: the account, and the task that pays into it, in one transaction."""
    from celery_idempotent.django import outbox
    from tests.django_project.celery_app import deposit
    from tests.django_project.shop.models import Account

    asked = json.loads(request.body)
    with transaction.atomic():
        Account.objects.get_or_create(name=f"payment {asked['payment']}")
        outbox.publish(deposit.s(asked["payment"], asked["amount"]))
        if asked.get("fails"):
            raise ValueError("the payment was refused")
    return JsonResponse({"payment": asked["payment"]}, status=201)
