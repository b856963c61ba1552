"""Tenants, their domains, and what each of them has for itself."""

from __future__ import annotations

from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Client(TenantMixin):  # type: ignore[misc]
    """A tenant."""

    auto_create_schema = True


class Domain(DomainMixin):  # type: ignore[misc]
    """A tenant's domain."""


class Setting(models.Model):
    """Something that is made once, in the schema for all."""

    name = models.CharField(max_length=50)
