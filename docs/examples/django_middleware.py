"""Django: a middleware that says whose keys they are."""

import json

import django
from celery import Celery
from django.conf import settings
from django.core.management import call_command
from django.http import JsonResponse
from django.urls import path

from celery_idempotent import IdempotentTask
from celery_idempotent.django.middleware import IdempotencyMiddleware

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="for this example",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        f"{__name__}.Keys",
    ],
)
django.setup()
call_command("migrate", verbosity=0)
celery = Celery("shop")
celery.conf.update(task_always_eager=True, idempotency_store_url="memory://")
charged = []


@celery.task(base=IdempotentTask)
def charge(user, order):
    charged.append((user, order))


class Keys(IdempotencyMiddleware):
    """In MIDDLEWARE, after AuthenticationMiddleware."""

    def identity(self, request):
        """The user; None, and the request goes to the view, which answers 401."""
        return str(request.user.pk) if request.user.is_authenticated else None

    def required(self, request):
        """Without a key 400: the view is not called."""
        return request.path == "/payments"


def pay(request):
    if not request.user.is_authenticated:
        return JsonResponse({"detail": "sign in"}, status=401)
    # Its key comes from the request's.
    charge.delay(request.user.username, json.loads(request.body)["order"])
    # The same for each try of this request: a name for a row, or for another API.
    return JsonResponse({"payment": request.idempotency.key_for("payment")}, status=202)


urlpatterns = [path("payments", pay)]
# [end]

from django.contrib.auth.models import User  # noqa: E402
from django.test import Client  # noqa: E402

clients = {name: Client() for name in ("ann", "bob")}
for name, client in clients.items():
    client.force_login(User.objects.create_user(name))


def send(order=42, **headers):
    return Client().post("/payments", {"order": order}, "application/json", headers=headers)


def headers_of(user):
    return {"Cookie": f"sessionid={clients[user].session.session_key}"}


def refresh(user):
    revoke(user)
    clients[user].force_login(User.objects.get(username=user))


def revoke(user):
    clients[user].session.flush()


if __name__ == "__main__":
    key = {"Idempotency-Key": '"a"'}
    first, second = (send(**headers_of("ann"), **key) for _ in range(2))
    assert first.json() == second.json()
    assert second["Idempotency-Replayed"] == "true"
    assert send(**headers_of("ann")).status_code == 400
    assert charged == [("ann", 42)]
