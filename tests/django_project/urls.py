"""The project's pages."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from tests.django_project.web import payments

urlpatterns = [
    path("admin/", admin.site.urls),
    path("payments", csrf_exempt(payments)),
]
