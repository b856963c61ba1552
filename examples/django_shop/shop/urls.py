"""The API, and the middleware that identifies its callers."""

import functools
import json

from django.db import transaction
from django.http import HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404
from django.urls import path

from celery_idempotent.django import outbox
from celery_idempotent.django.middleware import IdempotencyMiddleware
from shop.models import Order, Payment
from shop.tasks import charge

tokens = {"token-of-ann": "ann"}  # stands for your table of tokens


def user_of(request):
    """Return the user of the request's token; None if it is unknown."""
    return tokens.get(request.headers.get("Authorization", "").removeprefix("Bearer "))


def signed_in(view):
    @functools.wraps(view)
    def refuse_others(request, *args, **kwargs):
        if user_of(request) is None:
            return JsonResponse({"detail": "Unauthorized"}, status=401)
        return view(request, *args, **kwargs)

    return refuse_others


class Idempotency(IdempotencyMiddleware):
    def identity(self, request):
        """Return the user of the key. With None the request goes to the view, which answers 401."""
        return user_of(request)


@signed_in
def order(request, order_id):
    if request.method == "PUT":
        item = json.loads(request.body)["item"]
        Order.objects.update_or_create(pk=order_id, defaults={"item": item})
    found = get_object_or_404(Order, pk=order_id)
    if request.method == "DELETE":
        found.delete()
        return HttpResponse(status=204)
    return JsonResponse({"id": order_id, "item": found.item})


@signed_in
def orders(request):
    made = Order.objects.create(item=json.loads(request.body)["item"])
    return JsonResponse({"id": made.pk, "item": made.item}, status=201)


@signed_in
def pay(request):
    asked = json.loads(request.body)
    with transaction.atomic():
        made = Payment.objects.create(order_id=asked["order"], amount=asked["amount"])
        # The call is sent if, and only if, the payment is committed.
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
