"""Django REST framework: it authenticates in the view, so the middleware has to look by itself."""

import django
from celery import Celery
from django.conf import settings
from django.core.management import call_command
from django.urls import path

from celery_idempotent import IdempotentTask
from celery_idempotent.django.middleware import IdempotencyMiddleware

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="for this example",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    MIDDLEWARE=[f"{__name__}.Keys"],
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "rest_framework",
        "rest_framework.authtoken",
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


from rest_framework.authentication import TokenAuthentication  # noqa: E402
from rest_framework.exceptions import AuthenticationFailed  # noqa: E402
from rest_framework.permissions import IsAuthenticated  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.views import APIView  # noqa: E402


class Keys(IdempotencyMiddleware):
    def identity(self, request):
        """Ask the view's own authentication; None, and the view answers 401."""
        try:
            found = TokenAuthentication().authenticate(request)
        except AuthenticationFailed:
            return None
        return None if found is None else str(found[0].pk)

    def required(self, request):
        """Without a key 400: the view is not called."""
        return request.path == "/payments"


class Payments(APIView):
    authentication_classes = (TokenAuthentication,)
    permission_classes = (IsAuthenticated,)

    def post(self, request):
        charge.delay(request.user.username, request.data["order"])
        return Response({"payment": request.idempotency.key_for("payment")}, status=202)


urlpatterns = [path("payments", Payments.as_view())]
# [end]

from django.contrib.auth.models import User  # noqa: E402
from rest_framework.authtoken.models import Token  # noqa: E402
from rest_framework.test import APIClient  # noqa: E402

for name in ("ann", "bob"):
    Token.objects.create(user=User.objects.create_user(name))


def send(order=42, **headers):
    return APIClient().post("/payments", {"order": order}, format="json", headers=headers)


def headers_of(user):
    return {"Authorization": f"Token {Token.objects.get(user__username=user).key}"}


def refresh(user):
    revoke(user)
    Token.objects.create(user=User.objects.get(username=user))


def revoke(user):
    Token.objects.filter(user__username=user).delete()


if __name__ == "__main__":
    key = {"Idempotency-Key": '"a"'}
    first, second = (send(**headers_of("ann"), **key) for _ in range(2))
    assert first.json() == second.json()
    assert second["Idempotency-Replayed"] == "true"
    assert charged == [("ann", 42)]
