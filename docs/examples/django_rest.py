"""Django REST framework: it authenticates in the view, so the middleware has to look by itself."""

import django
from celery import Celery
from django.conf import settings
from django.urls import path

from celery_idempotent.django.middleware import IdempotencyMiddleware

TOKENS = {"secret-of-ann": "ann"}
settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=[f"{__name__}.Keys"],
    INSTALLED_APPS=["rest_framework"],
    REST_FRAMEWORK={"UNAUTHENTICATED_USER": None},
)
django.setup()
celery = Celery("shop")
celery.conf.update(idempotency_store_url="memory://")

from rest_framework import authentication, exceptions, serializers  # noqa: E402
from rest_framework.permissions import BasePermission  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.test import APIClient  # noqa: E402
from rest_framework.views import APIView  # noqa: E402


# [rest]
class TokenAuthentication(authentication.BaseAuthentication):
    def authenticate(self, request):
        token = request.headers.get("Authorization", "").removeprefix("Token ")
        if token and token not in TOKENS:
            raise exceptions.AuthenticationFailed
        return (TOKENS[token], token) if token else None

    def authenticate_header(self, request):
        return "Token"


class Keys(IdempotencyMiddleware):
    def identity(self, request):
        """The same authentication as the view's; None, and the view answers 401 as ever."""
        try:
            found = TokenAuthentication().authenticate(request)
        except exceptions.AuthenticationFailed:
            return None
        return None if found is None else found[0]


# [end]


class IsSomebody(BasePermission):
    def has_permission(self, request, view):
        return bool(request.user)


class Payment(serializers.Serializer):
    amount = serializers.IntegerField(min_value=1)


class Payments(APIView):
    authentication_classes = (TokenAuthentication,)
    permission_classes = (IsSomebody,)
    made = 0

    def post(self, request):
        Payment(data=request.data).is_valid(raise_exception=True)
        Payments.made += 1
        return Response({"payment": Payments.made}, status=201)


urlpatterns = [path("payments", Payments.as_view())]

client = APIClient()
key = {"Idempotency-Key": '"a"'}


def send(amount, **headers):
    return client.post("/payments", {"amount": amount}, format="json", headers=key | headers)


assert send(5).status_code == 401
assert send(5, Authorization="Token wrong").status_code == 401
first, second = (send(5, Authorization="Token secret-of-ann") for _ in range(2))
assert (first.json(), second.json()) == ({"payment": 1}, {"payment": 1})
assert second["Idempotency-Replayed"] == "true"
