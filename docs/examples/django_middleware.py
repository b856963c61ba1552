"""Django: a middleware that says whose keys they are."""

import django
from celery import Celery
from django.conf import settings
from django.http import JsonResponse
from django.test import Client
from django.urls import path

from celery_idempotent import IdempotentTask
from celery_idempotent.django.middleware import IdempotencyMiddleware

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], MIDDLEWARE=[f"{__name__}.Keys"])
django.setup()
celery = Celery("shop")
celery.conf.update(task_always_eager=True, idempotency_store_url="memory://")
charged = []


@celery.task(base=IdempotentTask)
def charge(order):
    charged.append(order)


# [middleware]
class Keys(IdempotencyMiddleware):
    """In MIDDLEWARE, after AuthenticationMiddleware."""

    def identity(self, request):
        # Or: str(request.user.pk) if request.user.is_authenticated else None
        return request.headers.get("Authorization")

    def required(self, request):
        return request.path.startswith("/payments")


def pay(request):
    charge.delay(42)
    return JsonResponse({"payment": request.idempotency.key_for("payment")}, status=202)


# [end]
urlpatterns = [path("payments", pay)]

client = Client(headers={"Authorization": "Bearer ann"})
first, second = (client.post("/payments", headers={"Idempotency-Key": '"a"'}) for _ in range(2))
assert first.json() == second.json()
assert second["Idempotency-Replayed"] == "true"
assert client.post("/payments").status_code == 400
assert charged == [42]
