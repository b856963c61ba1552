"""The API, and whose keys they are."""

import json

from django.db import transaction
from django.http import HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404
from django.urls import path

from celery_idempotent.django import outbox
from celery_idempotent.django.middleware import IdempotencyMiddleware
from shop.models import Order, Payment
from shop.tasks import charge


class Idempotency(IdempotencyMiddleware):
    def identity(self, request):
        """Here everybody is who they say they are; ask your authentication."""
        return request.headers.get("Authorization")


def order(request, order_id):
    if request.method == "PUT":
        item = json.loads(request.body)["item"]
        Order.objects.update_or_create(pk=order_id, defaults={"item": item})
    found = get_object_or_404(Order, pk=order_id)
    if request.method == "DELETE":
        found.delete()
        return HttpResponse(status=204)
    return JsonResponse({"id": order_id, "item": found.item})


def orders(request):
    made = Order.objects.create(item=json.loads(request.body)["item"])
    return JsonResponse({"id": made.pk, "item": made.item}, status=201)


def pay(request):
    asked = json.loads(request.body)
    with transaction.atomic():
        made = Payment.objects.create(order_id=asked["order"], amount=asked["amount"])
        # Sent if, and only if, the payment is committed.
        outbox.publish(charge.s(made.order_id, made.amount))
    return JsonResponse({"payment": made.pk}, status=202)


def not_found(request, exception):
    return JsonResponse({"detail": "Not Found"}, status=404)


handler404 = not_found
urlpatterns = [
    path("orders/<int:order_id>", order),
    path("orders", orders),
    path("payments/charge", pay),
]
